"""The figure of a sweep: a panel for each varied key, with accuracy, radius and cost over its values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from pipeline.report.figures import COLOURS, Picture, render

COLUMNS = 3
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DECADE = 10
APART_POINTS = 2.5  # of the markers of two radii at one value, so that none hides another
INK = "#444444"
ROOM, ROOM_OF_LOG = 1.12, 1.5  # beyond the outermost values
LETTERS_LEVEL = 5  # longer names of values are set at an angle
CHOSEN = "without an interval:\nthe best sigma for each radius, chosen on this data"
PARTS = ("certified accuracy (%)", "average\nradius", "evaluations\nper image")


@dataclass(frozen=True)
class Shown:
    share: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Panel:
    """What was found at each value of a key; `numbers` is None where the values are categories."""

    key: str
    values: tuple[str, ...]
    numbers: tuple[float, ...] | None
    accuracy: Mapping[float, tuple[Shown, ...]]
    average_radius: tuple[float, ...]
    evaluations: tuple[float, ...]

    @property
    def logarithmic(self) -> bool:
        numbers = self.numbers or (0.0,)
        return min(numbers) > 0 and max(numbers) > DECADE * min(numbers)

    @property
    def places(self) -> tuple[float, ...]:
        return self.numbers or tuple(map(float, range(len(self.values))))


def sweep_figure(panels: Sequence[Panel]) -> Picture:
    """Certified accuracy at each radius with its interval, the average radius, and the cost, on common scales."""
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    radii = sorted({radius for panel in panels for radius in panel.accuracy})
    with mpl.rc_context({"svg.hashsalt": "ndc", "font.size": 9.5, "svg.fonttype": "path"}):
        figure = Figure(figsize=(1.2 + 3.3 * columns, 0.5 + 4.6 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(lines, columns, hspace=0.06)
        shared: list[Any] = [None, None, None]
        for index, panel in enumerate(panels):
            inner = grid[index // columns, index % columns].subgridspec(3, 1, height_ratios=(3, 1.1, 1.1), hspace=0.03)
            parts: list[Any] = []
            for part, above in enumerate(shared):
                parts.append(figure.add_subplot(inner[part], sharex=parts[0] if parts else None, sharey=above))
            shared = [first or own for first, own in zip(shared, parts, strict=True)]
            draw_panel(parts, panel, radii)
            if index % columns == 0:
                for axes, name in zip(parts, PARTS, strict=True):
                    axes.set_ylabel(name)
        shared[0].set_ylim(0, 102)
        shared[1].set_ylim(0, ROOM * max(max(panel.average_radius) for panel in panels) or 1)
        costs = [cost for panel in panels for cost in panel.evaluations]
        shared[2].set_ylim(min(costs) / ROOM_OF_LOG, max(costs) * ROOM_OF_LOG)
        figure.legend(handles=legend(radii), loc="outside upper center", ncols=len(radii), frameon=False)
        if any(point.interval is None for panel in panels for shown in panel.accuracy.values() for point in shown):
            figure.supxlabel(CHOSEN, fontsize="small")
        figure.align_ylabels()
        return Picture(render(figure, "svg").decode(), render(figure, "png"))


def style_of(radii: Sequence[float], radius: float) -> dict[str, Any]:
    index = radii.index(radius)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4.5}


def legend(radii: Sequence[float]) -> list[Line2D]:
    return [Line2D([], [], **style_of(radii, radius), linewidth=1.5, label=f"r = {radius:g}") for radius in radii]


def draw_panel(parts: Sequence[Any], panel: Panel, radii: Sequence[float]) -> None:
    accuracy, average, cost = parts
    line = "-" if panel.numbers else ""  # between categories there is nothing
    for radius, shown in panel.accuracy.items():
        index = radii.index(radius) - (len(radii) - 1) / 2
        shift = ScaledTranslation(index * APART_POINTS / 72, 0, accuracy.figure.dpi_scale_trans)
        style = style_of(radii, radius)
        accuracy.plot(
            panel.places,
            [100 * point.share for point in shown],
            **style,
            linestyle=line,
            linewidth=1.5,
            transform=accuracy.transData + shift,
        )
        for place, point in zip(panel.places, shown, strict=True):
            if point.interval:
                ends = [100 * end for end in point.interval]
                accuracy.plot(
                    [place, place],
                    ends,
                    color=style["color"],
                    linewidth=1,
                    alpha=0.6,
                    transform=accuracy.transData + shift,
                )
    for axes, values in ((average, panel.average_radius), (cost, panel.evaluations)):
        axes.plot(panel.places, values, color=INK, marker="o", markersize=4, linestyle=line, linewidth=1.5)
    cost.set_yscale("log")
    cost.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    cost.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    cost.yaxis.set_minor_formatter(NullFormatter())
    accuracy.set_title(panel.key, fontweight="bold", fontsize=10)
    for axes in parts:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        name_values(axes, panel, shown=axes is cost)


def name_values(axes: Any, panel: Panel, *, shown: bool) -> None:
    """Ticks below the lowest of a panel's parts: at the values, or as usual if these are numbers that lie close."""
    if panel.logarithmic:
        axes.set_xscale("log")
    if panel.numbers is None or panel.logarithmic:
        axes.xaxis.set_major_locator(FixedLocator(panel.places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(panel.values)
    if panel.numbers is None:
        axes.set_xlim(-0.5, len(panel.values) - 0.5)
        if max(map(len, panel.values)) > LETTERS_LEVEL:
            axes.tick_params(axis="x", labelrotation=30)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
    axes.tick_params(axis="x", labelbottom=shown)
