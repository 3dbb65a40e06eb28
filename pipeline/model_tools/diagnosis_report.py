"""What `ndc diagnose` writes and prints: the proposed run, all numbers, the figure."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from rich.console import Console
from rich.table import Table

from ndc_core.analysis.grid_search import Choice
from pipeline.data.datasets import DATASETS
from pipeline.model_tools.diagnose import Diagnosis, RaceChoice
from pipeline.model_tools.diagnosis_figure import diagnosis_figure

VOTES = {"selection": 50, "estimation": 10_000}
RADII_OVER_SIGMA = (0.0, 0.5, 1.0, 1.5, 2.0)  # of the largest sigma_pixel
NOT_TOLD_APART = (
    "The classes are not told apart: at no noise level does a vote beat chance by more than luck on so few images. "
    "Either the model has collapsed (its outputs do not depend on the label, as a consistency model's may not), or its "
    "labels are not those of the data. What is proposed means nothing."
)


def write(diagnosis: Diagnosis, out: Path) -> None:
    """Writes run.toml, diagnosis.json and the figure to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.toml").write_text(run_toml(diagnosis), encoding="utf-8")
    (out / "diagnosis.json").write_text(json.dumps(as_json(diagnosis), indent=1) + "\n")
    picture = diagnosis_figure(
        diagnosis.settings.sigma_pixel,
        diagnosis.measured,
        diagnosis.proposal,
        chosen=diagnosis.chosen,
        evenly_spaced=diagnosis.evenly_spaced,
    )
    (out / "diagnosis.svg").write_text(picture.svg)
    (out / "diagnosis.png").write_bytes(picture.png)


def run_toml(diagnosis: Diagnosis) -> str:
    """The run that is proposed, with where it comes from. It names no test images unless they are embedded ones."""
    settings, choice, race, data = diagnosis.settings, diagnosis.choice, diagnosis.race, diagnosis.data
    raced = f"raced, {race.evaluations:.1f} of {race.evaluations_without:.1f} evaluations" if race.gap else "not raced"
    lines = [
        f"Proposed by `ndc diagnose` for {diagnosis.model} on {diagnosis.images}, seed {settings.seed}:",
        f"of {', '.join(settings.classifiers)}; {', '.join(settings.weights)}; and at most {settings.budget} levels.",
        f"Votes that are right on the images that judged, which chose nothing, {raced}:",
        *(f"sigma_pixel {sigma:g}: {text}" for sigma, text in zip(settings.sigma_pixel, accuracies(race), strict=True)),
        *([] if diagnosis.measured.told_apart else [NOT_TOLD_APART]),
    ]
    named = {"name": data.name, "split": "test"} if data.name in DATASETS else {}
    dataset = {**named, "format": data.format, "classes": data.classes, "label_order": data.label_order}
    largest = max(settings.sigma_pixel)
    run = {
        "seed": settings.seed,
        "model": diagnosis.model,
        "unconditional": settings.unconditional,
        "sigma_pixel": list(settings.sigma_pixel),
        "dataset": {key: value for key, value in dataset.items() if value is not None},
        "classifier": {
            "name": choice.classifier,
            "weight": choice.weight,
            "grid": {"levels": list(choice.grid.levels)},
            **({"race": {"gap": race.gap}} if race.gap else {}),
        },
        "votes": VOTES,
        "certificate": {
            "method": "sequential",
            "alpha": 0.001,
            "radii": [float(f"{factor * largest:.3g}") for factor in RADII_OVER_SIGMA],
        },
    }
    return "".join(f"# {line}\n" for line in lines) + tomli_w.dumps(run)


def accuracies(choice: Choice | RaceChoice) -> list[str]:
    """The accuracy at each tau, with the standard error."""
    pairs = zip(choice.accuracy, choice.standard_error, strict=True)
    return [f"{100 * accuracy:.1f} % ± {100 * error:.1f} %" for accuracy, error in pairs]


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    measured = diagnosis.measured
    with_gaps = measured.gaps.mean(axis=(0, 1)), measured.gaps.std(axis=(0, 1))
    return {
        "model": diagnosis.model,
        "data": diagnosis.images,
        **asdict(diagnosis.settings),
        "classifier": diagnosis.choice.classifier,
        "weight": diagnosis.choice.weight,
        "candidates": [asdict(candidate) for candidate in diagnosis.candidates],
        "race": asdict(diagnosis.race),
        "images": len(measured.labels),
        "classes": measured.classes,
        "told_apart": measured.told_apart,
        "lower_end": measured.levels[0],
        "levels": measured.levels[1:],
        "one_level_accuracy": _without_nan(measured.one_level_accuracy),
        "gap_mean": _without_nan(with_gaps[0]),
        "gap_std": _without_nan(with_gaps[1]),
        "cosine": measured.cosine.tolist(),
        "relative_difference": measured.difference.tolist(),
        "proposal": asdict(diagnosis.proposal),
        "chosen": [asdict(choice) for choice in diagnosis.chosen],
        "evenly_spaced": [asdict(choice) for choice in diagnosis.evenly_spaced],
        "every_level": asdict(diagnosis.every_level),
    }


def _without_nan(table: np.ndarray) -> list[list[float | None]]:
    """A level that does not count for a tau becomes null: JSON has no NaN."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in table]


def report(diagnosis: Diagnosis, out: Path, say: Callable[[str], None]) -> None:
    settings, race, measured = diagnosis.settings, diagnosis.race, diagnosis.measured
    show_tables(diagnosis)
    counted = f"{len(measured.labels)} images of {diagnosis.images}"
    say(f"{counted}: half chose levels, a quarter the way to vote and its race, a quarter judged")
    if not measured.told_apart:
        say(NOT_TOLD_APART)
    accuracy = ", ".join(accuracies(race))
    if race.gap:
        say(
            f"raced with gap {race.gap:g}: {race.evaluations:.1f} evaluations a vote instead of "
            f"{race.evaluations_without:.1f}, {accuracy} of votes right"
        )
    else:
        say(f"not raced, {race.evaluations_without:.1f} evaluations a vote: no race was as accurate for fewer")
    say(f"Written: {out}/run.toml, diagnosis.json, diagnosis.png, diagnosis.svg")
    images = "" if diagnosis.data.name in DATASETS else " --data IMAGES-TO-CERTIFY"
    sigmas = ", ".join(f"{sigma:g}" for sigma in settings.sigma_pixel)
    say(f"ndc certify {out}/run.toml{images} --run runs/{Path(diagnosis.model.rstrip('/')).name}   # at {sigmas}")


def show_tables(diagnosis: Diagnosis) -> None:
    settings, choice, size = diagnosis.settings, diagnosis.choice, diagnosis.proposal.evaluations
    console = Console(width=140)
    table = Table(title="Vote accuracy of the best grid for each, on the images that judge")
    for name in ("classifier", "weight", "levels", *(f"sigma_pixel {sigma:g}" for sigma in settings.sigma_pixel), ""):
        table.add_column(name, justify="right")
    for each in diagnosis.candidates:
        own = each.classifier, each.weight, str(each.grid.evaluations)
        table.add_row(*own, *accuracies(each.grid), "proposed" if each == choice else "")
    console.print(table)
    evenly = next((accuracies(grid) for grid in diagnosis.evenly_spaced if grid.evaluations == size), None)
    table = Table(title=f"{choice.classifier}, weight {choice.weight}: vote accuracy, on the images that judge")
    for name in (
        "sigma_pixel",
        f"{size} proposed",
        f"{size} evenly spaced",
        f"all {len(diagnosis.measured.cosine)} levels",
    ):
        table.add_column(name, justify="right")
    columns = accuracies(choice.grid), evenly or ["-"] * len(settings.sigma_pixel), accuracies(diagnosis.every_level)
    for sigma, *cells in zip(settings.sigma_pixel, *columns, strict=True):
        table.add_row(f"{sigma:g}", *cells)
    console.print(table)
