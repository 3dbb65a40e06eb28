"""Draws the pictures of docs/concepts.md into docs/pictures/, from the embedded model and from closed forms.

.venv/bin/ndc train --dataset digits --out models/digits
.venv/bin/ndc distill models/digits models/digits-heads
.venv/bin/python -m docs.pictures

The same models give the same pictures; models are the same where training ends by its steps, not by the clock.
"""

import io
from collections.abc import Callable
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from docs.one_vote import ALPHA, ESTIMATION, SIGMA, TAU, Seen, certified, held_out, levers, look
from ndc_core.certificates.certificate import Tally, Terms
from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.certificates.confidence_sequences import probability_lower
from ndc_core.certificates.sequential import Sequential
from pipeline.report.figures import COLOURS, render

FOLDER = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, PINK, SKY = COLOURS
GREY, PALE = "#777777", "#dddddd"
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white"}
THE_DIGIT = 5  # of the held-out ones
# Held-out digits whose votes agree, mostly agree, and single out no class.
CLEAR, DOUBTFUL, ABSTAINED = 5, 56, 11
SHOWN_LEVELS = (2, 12, 23)


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show(axes: Axes, image: np.ndarray, *, title: str = "", frame: str = PALE, width: float = 1) -> None:
    axes.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    for spine in axes.spines.values():
        spine.set(visible=True, color=frame, linewidth=width)


def plain_grid(axes: Axes) -> None:
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def noise_twice(seen: Seen) -> Figure:
    """The path of one vote: the smoothing noise, the estimate, and the levels of the score."""
    figure = new_figure(9, 3.1)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
    steps = [0, 6, 12, 18, 23]
    row = above.subplots(1, 3 + len(steps))
    for axes, image, title, colour in (
        (row[0], seen.clean, "the image\n", GREY),
        (row[1], seen.noisy, "smoothing\nnoise", ORANGE),
        (row[2], seen.estimate, "denoised,\nno label", GREEN),
    ):
        show(axes, image, title=title, frame=colour, width=3)
    for axes, step in zip(row[3:], steps, strict=True):
        show(axes, seen.diffused[step], title=f"level\n{seen.levels[step]:.2f}", frame=BLUE, width=3)
    axes = below.subplots()
    axes.vlines(seen.levels, 0, 0.6, color=SKY, linewidth=1.5)
    axes.vlines(seen.levels[steps], 0, 0.9, color=BLUE, linewidth=3)
    axes.vlines([TAU], 0, 0.9, color=ORANGE, linewidth=4)
    axes.annotate("smoothing noise of the certificate", (TAU, 1.0), color=ORANGE, ha="left")
    axes.annotate("levels of the score: noise of the vote's own", (1.0, 1.0), color=BLUE, ha="left")
    axes.set_xscale("log")
    ticks = [0.5, 0.6, 0.8, 1.0, 1.4, 2.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(ylim=(0, 1.35), yticks=[], xlabel="noise level in model units (twice the unit of pixels)")
    axes.spines["left"].set_visible(False)
    return figure


def one_vote(seen: Seen, label: int) -> Figure:
    """The denoiser's outputs at three levels for each label, and the error of each label over all levels."""
    figure = new_figure(9, 5.2)
    total = seen.errors.sum(axis=0)
    winner, classes = int(total.argmin()), len(total)
    above, below = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    panels = above.subplots(len(SHOWN_LEVELS), classes + 1)
    for row, step in zip(panels, SHOWN_LEVELS, strict=True):
        show(row[0], seen.diffused[step], frame=BLUE, width=3)
        row[0].set_ylabel(f"level {seen.levels[step]:.2f}", fontsize=10)
        for c in range(classes):
            own = c == winner
            show(row[c + 1], seen.denoised[step, c], frame=ORANGE if own else PALE, width=3 if own else 1)
    panels[0][0].set_title("the network\nis shown", fontsize=10)
    for c in range(classes):
        panels[0][c + 1].set_title(f"as a\n{c}", fontsize=10)
    axes = below.subplots()
    bars = axes.bar(range(classes), total, color=[ORANGE if c == winner else PALE for c in range(classes)], width=0.6)
    axes.bar_label(bars, fmt="%.1f", fontsize=10)
    axes.set_xticks(range(classes))
    axes.set(xlabel="label", ylabel="error, all levels", ylim=(0, 1.18 * total.max()))
    axes.set_title(f"the vote: {winner}" + (" (right)" if winner == label else ""), fontsize=11, color=ORANGE)
    return figure


def votes_to_radius() -> Figure:
    """Three images, their votes, the bound and the radius."""
    figure = new_figure(9, 4.6)
    examples = held_out()
    parts = figure.subfigures(1, 3)
    for part, index in zip(parts, (CLEAR, DOUBTFUL, ABSTAINED), strict=True):
        example = examples[index]
        shares, certificate = certified(example)
        above, below = part.subfigures(2, 1, height_ratios=(1, 1.9))
        seen = look(example)
        left, right = above.subplots(1, 2)
        show(left, seen.clean, title="image", frame=GREY, width=2)
        show(right, seen.noisy, title="as one vote sees it", frame=ORANGE, width=2)
        axes = below.subplots()
        top, lower = int(shares.argmax()), certificate.p_lower or 0.0
        colours = [BLUE if c == top else SKY for c in range(len(shares))]
        axes.bar(range(len(shares)), 100 * shares, color=colours, width=0.7)
        axes.axhline(50, color=GREY, linestyle="--", linewidth=1)
        axes.axhline(100 * lower, color=ORANGE, linewidth=2)
        proved = f"proved: at least {np.floor(1000 * lower) / 10:.1f} %"
        radius = f"radius {np.floor(1000 * certificate.radius) / 1000:.3f}"
        verdict = "half is not: abstains" if certificate.predicted is None else f"so class {top}, {radius}"
        axes.set_title(f"{proved}\n{verdict}", fontsize=11, color=ORANGE)
        axes.set_xticks(range(len(shares)))
        axes.set(ylim=(0, 103), xlabel="class", ylabel=f"share of {ESTIMATION:,} votes (%)" if part is parts[0] else "")
    return figure


def radius_of_votes() -> Figure:
    """Closed forms: the radius over the bound, and its ceiling over the number of votes."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    sigmas = (0.125, 0.25, 0.5, 1.0)
    p = np.linspace(0.5, 0.9993, 2000)
    for sigma, colour in zip(sigmas, COLOURS, strict=False):
        left.plot(100 * p, sigma * norm.ppf(p), color=colour, linewidth=2, label=f"$\\sigma$ = {sigma:g}")
    left.set(xlabel="share of votes, proved (%)", ylabel="radius", xlim=(50, 100), ylim=(0, 3.3))
    left.set_title("radius = $\\sigma\\ \\Phi^{-1}$(share)", fontsize=11)
    votes = np.unique(np.geomspace(10, 100_000, 60).astype(int))
    for sigma, colour in zip(sigmas, COLOURS, strict=False):
        ceiling = [sigma * norm.ppf(max(0.5, clopper_pearson_lower(n, n, alpha=ALPHA))) for n in votes.tolist()]
        right.plot(votes, ceiling, color=colour, linewidth=2)
    right.set_xscale("log")
    right.set(xlabel="number of votes, all of one class", ylabel="radius", xlim=(10, 100_000), ylim=(0, 4.2))
    right.set_title(f"the most that votes can prove ($\\alpha$ = {ALPHA:g})", fontsize=11)
    for axes in (left, right):
        plain_grid(axes)
    left.legend(frameon=False, loc="upper left")
    return figure


def sequential_votes() -> Figure:
    """Simulated images of known probability: the bound after each look, until the procedure stops."""
    figure = new_figure(9, 3.8)
    axes = figure.subplots()
    radii, most = (0.25, 0.5), 10_000
    procedure = Sequential(Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=most, radii=radii))
    for p, colour in ((1.0, BLUE), (0.99, GREEN), (0.93, ORANGE), (0.8, PINK)):
        drawn = np.random.default_rng(0).random(most) < p
        looks: list[tuple[int, int]] = []
        for end in procedure.looks:
            wins = int(drawn[:end].sum())
            looks.append((wins, end - wins))
            if procedure.decided(Tally([1, 0], looks)):
                break
        ends = [sum(counts) for counts in looks]
        bound = np.maximum.accumulate([probability_lower(w, w + lost, alpha=ALPHA) for w, lost in looks])
        axes.plot(ends, norm.ppf(np.maximum(bound, 0.5)) * SIGMA, color=colour, linewidth=2, marker="o", markersize=4)
        axes.plot(ends[-1], norm.ppf(max(bound[-1], 0.5)) * SIGMA, "s", color=colour, markersize=9)
        axes.annotate(
            f"{100 * p:g} % of votes agree: {ends[-1]:,} votes",
            (ends[-1], norm.ppf(max(bound[-1], 0.5)) * SIGMA),
            xytext=(-6, 9),
            textcoords="offset points",
            color=colour,
        )
    for radius in radii:
        axes.axhline(radius, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(f"declared radius {radius:g}", (11_500, radius - 0.005), color=GREY, va="top", ha="right")
    axes.set_xscale("log")
    ticks = [100, 200, 500, 1000, 2000, 5000, 10_000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(90, 12_000), ylim=(0, 0.62), xlabel="votes so far", ylabel=f"radius proved ($\\sigma$ = {SIGMA:g})")
    plain_grid(axes)
    return figure


def levers_of_cost() -> Figure:
    """Which labels one vote asks for at which levels, with several levers."""
    figure = new_figure(9, 4.6)
    ways = list(levers(held_out()[THE_DIGIT]))
    colours = ListedColormap(["white", BLUE, GREEN])
    for axes, way in zip(figure.subplots(1, len(ways)), ways, strict=True):
        axes.pcolormesh(way.cells, cmap=colours, vmin=0, vmax=2, edgecolors=PALE, linewidth=0.4)
        axes.set_title(f"{way.name}\n{way.evaluations} evaluations", fontsize=10, va="bottom")
        axes.set_xticks(np.arange(10) + 0.5, [str(c) for c in range(10)], fontsize=7)
        axes.set_yticks([])
        axes.tick_params(length=0)
    figure.supxlabel("label", fontsize=10)
    figure.supylabel("levels of the score, the lowest at the bottom", fontsize=10)
    return figure


def save(name: str, figure: Figure) -> None:
    drawn = Image.open(io.BytesIO(render(figure, "png"))).convert("RGB")
    drawn.quantize(256).save(FOLDER / f"{name}.png", optimize=True)  # a third of the bytes
    click.echo(f"wrote {FOLDER / name}.png")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    example = held_out()[THE_DIGIT]
    seen = look(example)
    drawings: dict[str, Callable[[], Figure]] = {
        "noise-twice": lambda: noise_twice(seen),
        "one-vote": lambda: one_vote(seen, example.label),
        "votes-to-radius": votes_to_radius,
        "radius-of-votes": radius_of_votes,
        "sequential": sequential_votes,
        "levers": levers_of_cost,
    }
    with mpl.rc_context(STYLE):
        for name, draw in drawings.items():
            save(name, draw())


if __name__ == "__main__":
    main()
