"""The certified-accuracy curve. Matplotlib is imported when there is something to draw: it takes a second."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # told apart by the colour-blind too
LINES: tuple[Any, ...] = ("-", "-.", (0, (5, 1, 1, 1, 1, 1)))  # dashed lines are attacks, dotted ones lie beyond a stop
LETTERS_OF_A_LINE = 62  # of a legend
STOPPED = (
    "\n\N{BLACK RIGHT-POINTING TRIANGLE} sampling stopped at a level's last declared radius: not the end of robustness"
)


@dataclass(frozen=True)
class Picture:
    svg: str
    png: bytes


def certified_accuracy_steps(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The exact curve: every radius where it falls, and the share certified at least that far."""
    right = np.arange(len(curve.radii), 0, -1)
    return np.array([0.0, *curve.radii]), np.array([len(curve.radii), *right]) / curve.images


def certified_accuracy_figure(curves: Sequence[Curve], *, note: str = "") -> Picture:
    """Certified accuracy over the L2 radius, a step curve for each level; dashed, what attacks left of each. A `note`
    stands below.

    Curves of several methods are named with their method.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    several = len({curve.method for curve in curves}) > 1
    labels = [curve_label(curve, with_method=several) for curve in curves]
    legend_lines = sum(label.count("\n") + 1 for label in labels) if several else 0
    with mpl.rc_context({"svg.hashsalt": "ndc", "font.size": 11, "svg.fonttype": "path"}):
        figure = Figure(figsize=(7, 4.2 + 0.2 * legend_lines), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            colour, line = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
            draw_steps(axes, curve, color=colour, linestyle=line, label=label)
            if curve.attacked:
                reached = sorted(curve.attacked.accuracy)
                axes.plot(  # an attack of one radius is an attack of every larger one
                    reached,
                    [100 * curve.attacked.accuracy[radius] for radius in reached],
                    color=colour,
                    linestyle="--",
                    drawstyle="steps-post",
                    marker="o",
                    markersize=4,
                    label=f"{label}, {curve.attacked.label}",
                )
        stopped = any(curve.stopped_at is not None for curve in curves)
        axes.set_xlabel(f"L2 radius (pixels in [0, 1]){note and f'; {note}'}{STOPPED if stopped else ''}")
        attacked = any(curve.attacked for curve in curves)
        axes.set_ylabel("accuracy (%): certified, under attack" if attacked else "certified accuracy (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 101)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        columns = 1 if several else 2 if attacked else 3  # names that do not fit beside each other squeeze the axes
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
        return Picture(render(figure, "svg").decode(), render(figure, "png"))


def draw_steps(axes: "Axes", curve: Curve, *, label: str, **style: Any) -> None:
    """A radius that just holds is certified: the step goes down after it. Beyond the radius where sampling stopped the
    line is dotted, after an arrow: the votes end there, and more of them could certify more."""
    radii, share = certified_accuracy_steps(curve)
    ends, shares = np.append(radii, radii[-1]), 100 * np.append(share, 0)
    if curve.stopped_at is None:
        axes.step(ends, shares, where="pre", linewidth=2, label=label, **style)
        return
    stop, right = curve.stopped_at, 100 * curve.accuracy_at(curve.stopped_at)
    until = ends < stop
    axes.step([*ends[until], stop], [*shares[until], right], where="pre", linewidth=2, label=label, **style)
    beyond = {**style, "linestyle": ":"}
    axes.step([stop, *ends[~until]], [right, *shares[~until]], where="pre", linewidth=1.5, **beyond)
    if right:
        axes.plot([stop], [right], color=style["color"], marker=">", markersize=7, clip_on=False)


def curve_label(curve: Curve, *, with_method: bool) -> str:
    """The level alone, or method and level, in lines that fit the figure."""
    of_sigma = curve.level[0].isdigit()
    if not with_method:
        return f"$\\sigma$ = {curve.level}" if of_sigma else curve.level
    text = (
        f"{curve.method}, \N{GREEK SMALL LETTER SIGMA} = {curve.level}"
        if of_sigma
        else f"{curve.method}, {curve.level}"
    )
    return fill(text, LETTERS_OF_A_LINE).replace("$", "\\$")  # two of them would begin a formula


def render(figure: "Figure", kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()
