"""The figure of a diagnosis: what each level tells, how alike the outputs are, what more levels bring."""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ndc_core.analysis.diagnosis import MeasuredLosses
from ndc_core.analysis.grid_search import Choice
from pipeline.report.figures import COLOURS, Picture, render


def diagnosis_figure(
    sigma_pixel: Sequence[float],
    measured: MeasuredLosses,
    proposal: Choice,
    *,
    chosen: Sequence[Choice],
    evenly_spaced: Sequence[Choice],
) -> Picture:
    with mpl.rc_context({"svg.hashsalt": "ndc", "font.size": 11, "svg.fonttype": "path"}):
        figure = Figure(figsize=(15, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        alone, likeness, growth = figure.subplots(1, 3)
        _draw_alone(alone, sigma_pixel, measured, proposal)
        _draw_likeness(likeness, measured)
        _draw_growth(growth, sigma_pixel, proposal, chosen, evenly_spaced)
        for axes in (alone, likeness, growth):
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=9)
        return Picture(render(figure, "svg").decode(), render(figure, "png"))


def _draw_alone(axes: Axes, sigma_pixel: Sequence[float], measured: MeasuredLosses, proposal: Choice) -> None:
    for level in proposal.levels:
        axes.axvline(level, color="#999999", linewidth=0.8, linestyle=":" if level == proposal.levels[0] else "-")
    for tau, sigma in enumerate(sigma_pixel):
        accuracy = 100 * measured.one_level_accuracy[tau]
        axes.plot(measured.levels[1:], accuracy, color=_colour(tau), marker=".", label=f"$\\sigma$ = {sigma:g}")
    axes.axhline(100 / measured.classes, color="black", linewidth=0.8, linestyle="--", label="chance")
    axes.set_title("A vote with one level alone")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 101)
    _level_axis(axes, measured)


def _draw_likeness(axes: Axes, measured: MeasuredLosses) -> None:
    axes.plot(measured.levels[1:], measured.cosine, color=COLOURS[3], marker=".", label="cosine similarity")
    axes.plot(measured.levels[1:], measured.difference, color=COLOURS[4], marker=".", label="relative difference")
    axes.set_title("Outputs for two labels")
    axes.set_ylim(bottom=0)
    _level_axis(axes, measured)


def _draw_growth(
    axes: Axes, sigma_pixel: Sequence[float], proposal: Choice, chosen: Sequence[Choice], evenly: Sequence[Choice]
) -> None:
    for tau, sigma in enumerate(sigma_pixel):
        error = [100 * choice.standard_error[tau] for choice in chosen]
        label = f"$\\sigma$ = {sigma:g}"
        axes.errorbar(*_growth(chosen, tau), yerr=error, color=_colour(tau), elinewidth=0.6, label=label)
        axes.plot(*_growth(evenly, tau), color=_colour(tau), linestyle=":")
    axes.plot([], [], color="black", linestyle=":", label="evenly spaced instead")
    axes.axvline(proposal.evaluations, color="#999999", linewidth=0.8, label="proposed")
    axes.set_ylim(0, 101)
    axes.set_title("A vote with several levels chosen greedily")
    axes.set_xlabel("levels evaluated")
    axes.set_ylabel("accuracy (%)")


def _growth(choices: Sequence[Choice], tau: int) -> tuple[list[int], list[float]]:
    return [choice.evaluations for choice in choices], [100 * choice.accuracy[tau] for choice in choices]


def _level_axis(axes: Axes, measured: MeasuredLosses) -> None:
    axes.set_xscale("log")
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0) if tick >= measured.levels[0]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("noise level $\\sigma_t$ (model units, $2\\sigma$)")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
