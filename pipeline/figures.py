"""The certified-accuracy curve."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.reduce import Attacked, CertifiedImage

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # told apart by the colour-blind too


@dataclass(frozen=True)
class Picture:
    svg: str
    png: bytes


def certified_accuracy_steps(items: Sequence[CertifiedImage]) -> tuple[np.ndarray, np.ndarray]:
    """The exact curve: every radius where it falls, and the share certified at least that far."""
    radii = np.sort([item.certificate.radius for item in items if item.holds(0.0)])
    share = np.arange(len(radii), 0, -1) / len(items)
    return np.concatenate([[0.0], radii]), np.concatenate([[len(radii) / len(items)], share])


def certified_accuracy_figure(
    levels: Mapping[str, Sequence[CertifiedImage]], empirical: Mapping[str, Attacked]
) -> Picture:
    """Certified accuracy over the L2 radius, a step curve for each level; dashed, what attacks left of each."""
    with mpl.rc_context({"svg.hashsalt": "ndc", "font.size": 11, "svg.fonttype": "path"}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, (name, items) in enumerate(levels.items()):
            colour = COLOURS[index % len(COLOURS)]
            label = f"$\\sigma$ = {name}" if name[0].isdigit() else name
            radii, share = certified_accuracy_steps(items)
            # A radius that just holds is certified: the step goes down behind it.
            ends, shares = np.append(radii, radii[-1]), 100 * np.append(share, 0)
            axes.step(ends, shares, where="pre", color=colour, linewidth=2, label=label)
            if attacked := empirical.get(name):
                reached = sorted(attacked.accuracy)
                axes.plot(  # an attack of one radius is an attack of every larger one
                    reached,
                    [100 * attacked.accuracy[radius] for radius in reached],
                    color=colour,
                    linestyle="--",
                    drawstyle="steps-post",
                    marker="o",
                    markersize=4,
                    label=f"{label}, under attack",
                )
        axes.set_xlabel("L2 radius (pixels in [0, 1])")
        axes.set_ylabel("accuracy (%): certified, under attack" if empirical else "certified accuracy (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 101)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        return Picture(render(figure, "svg").decode(), render(figure, "png"))


def render(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()
