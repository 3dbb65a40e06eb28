"""`ndc diagnose`: at which noise levels a model tells classes apart, and a grid that is made of them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ndc_core.analysis.diagnosis import MeasuredLosses, candidate_levels, measure
from ndc_core.analysis.grid_search import Choice, GridSearch
from ndc_core.checkpoints.denoisers import CheckpointError
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.cores import usable_cores
from ndc_core.models.denoiser import Denoiser, EveryClass
from ndc_core.noise.grid import GridSpec
from ndc_core.space import sigma_to_model
from pipeline.data.datasets import (
    DATASETS,
    DatasetSpec,
    Example,
    check_classes,
    check_example,
    examples_of,
    meaning_of_labels,
    source_of,
)
from pipeline.data.source import DataError
from pipeline.model_tools.diagnosis_figure import diagnosis_figure
from pipeline.progress import counting
from pipeline.workers.compute import pick_device, set_up_process
from pipeline.workers.models import load_pair

SHOWN_EVALUATIONS = 16  # how far accuracy is followed, if the budget ends before
FEWEST_IMAGES = 4  # a grid is chosen on half of them and judged on the other, with a standard error
MOST_ROWS, NUMBERS_OF_A_PASS = 256, 2**27
NOT_TOLD_APART = (
    "The classes are not told apart: at no noise level does a vote beat chance by more than luck on so few images. "
    "Either the model has collapsed (its outputs do not depend on the label, as a consistency model's may not), or its "
    "labels are not those of the data. The proposed grid means nothing."
)


@dataclass(frozen=True)
class DiagnosisSettings:
    sigma_pixel: tuple[float, ...]
    classifier: str
    unconditional: str
    weight: str
    budget: int
    draws: int
    seed: int


@dataclass(frozen=True)
class Diagnosis:
    """All that is written down and drawn of a model on some images."""

    model: str
    data: str
    settings: DiagnosisSettings
    measured: MeasuredLosses
    proposal: Choice
    chosen: tuple[Choice, ...]  # by number of evaluations
    evenly_spaced: tuple[Choice, ...]
    every_level: Choice

    @property
    def grid_override(self) -> str:
        return f"classifier.grid={{levels={list(self.proposal.levels)}}}"


def diagnose_model(
    model: str, data: DatasetSpec, settings: DiagnosisSettings, *, out: Path, say: Callable[[str], None]
) -> Diagnosis:
    """Measures, proposes, and writes grid.toml, diagnosis.json and the figure to a folder.

    Raises:
        ValueError: noise levels without room for a grid, a model that cannot be used, or images that do not fit it.
    """
    levels = candidate_levels(settings.sigma_pixel)
    settings = replace(settings, sigma_pixel=tuple(sorted(settings.sigma_pixel)))
    device = pick_device("auto")
    say(f"on the {'GPU' if device == 'cuda' else 'CPU'}")
    denoiser, unconditional = load_pair(model, settings.unconditional, classifier=settings.classifier, device=device)
    classifier = DiffusionClassifier(
        denoiser,
        settings.classifier,
        GridSpec(levels=levels),
        weight=settings.weight,
        rows_per_pass=rows_of_a_pass(denoiser),
        device=device,
        unconditional=unconditional,
    )
    examples = spread_images(data, denoiser, say=say)
    set_up_process(threads=usable_cores())
    diagnosis = diagnose(model, data, settings, classifier, examples)
    write(diagnosis, out)
    report(diagnosis, out, say)
    return diagnosis


def spread_images(data: DatasetSpec, denoiser: Denoiser, *, say: Callable[[str], None]) -> list[Example]:
    """As many images as asked for, evenly spread over the data, which may be sorted by class.

    Says what was decided about the data by rule.
    """
    source = source_of(data)
    check_classes(data, source, num_classes=denoiser.num_classes)
    say(meaning_of_labels(data, source, num_classes=denoiser.num_classes))
    ids = [entry.image_id for entry in source.entries()]
    if len(ids) < FEWEST_IMAGES:
        raise DataError(f"{data.name} has {len(ids)} images, a diagnosis needs at least {FEWEST_IMAGES}; add some")
    places = np.linspace(0, len(ids) - 1, min(data.limit or len(ids), len(ids))).round().astype(int)
    chosen = replace(data, ids=tuple(ids[place] for place in places), limit=None)
    corrupt: list[str] = []
    examples = list(examples_of(chosen, source, channels=denoiser.image_shape[0], corrupt=corrupt))
    if corrupt:
        raise DataError(f"{len(corrupt):,} images of {data.name} cannot be decoded, first {corrupt[0]}; mend them")
    for note in source.notes.lines():
        say(f"data: {note}")
    for example in examples:
        check_example(example, image_shape=denoiser.image_shape, num_classes=denoiser.num_classes, noise="float")
    return examples


def rows_of_a_pass(denoiser: Denoiser) -> int:
    """As many as there is memory for: likeness is of outputs, and class heads give those of all classes in one pass."""
    if not isinstance(denoiser, EveryClass):
        return MOST_ROWS
    return min(MOST_ROWS, max(1, NUMBERS_OF_A_PASS // (denoiser.num_classes * math.prod(denoiser.image_shape))))


def diagnose(
    model: str,
    data: DatasetSpec,
    settings: DiagnosisSettings,
    classifier: DiffusionClassifier,
    examples: Sequence[Example],
) -> Diagnosis:
    try:
        with counting("diagnosed images", len(examples)) as count:
            measured = measure(
                classifier,
                np.stack([example.image for example in examples]),
                np.array([example.label for example in examples]),
                sigma_pixel=settings.sigma_pixel,
                draws=settings.draws,
                seed=settings.seed,
                on_image=count,
            )
    except NonFiniteScoreError as error:
        raise CheckpointError(f"{model}: {error}; its weights are damaged: train or convert it again") from error
    taus_model = tuple(sigma_to_model(sigma) for sigma in settings.sigma_pixel)
    search = GridSearch(classifier, measured, taus_model, settings.seed)
    most = max(settings.budget, SHOWN_EVALUATIONS)
    grown = search.greedy(most)
    return Diagnosis(
        model,
        f"{data.name} (training split)" if data.name in DATASETS else data.name,
        settings,
        measured,
        search.judged(search.proposal(grown, settings.budget)),
        tuple(map(search.judged, grown)),
        tuple(map(search.judged, search.evenly_spaced(most))),
        search.judged(measured.levels),
    )


# What is written


def write(diagnosis: Diagnosis, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "grid.toml").write_text(grid_toml(diagnosis), encoding="utf-8")
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


def grid_toml(diagnosis: Diagnosis) -> str:
    """The proposal as a part of a run's TOML file, with where it comes from."""
    settings, proposal = diagnosis.settings, diagnosis.proposal
    lines = [
        f"Proposed by `ndc diagnose` for {diagnosis.model} on {diagnosis.data}: {settings.classifier}, weight "
        f"{settings.weight}, seed {settings.seed}.",
        f"Budget {settings.budget} levels, {proposal.evaluations} evaluated; vote accuracy on images that it was not "
        "chosen on:",
        *(
            f"sigma_pixel {sigma:g}: {text}"
            for sigma, text in zip(settings.sigma_pixel, accuracies(proposal), strict=True)
        ),
        *([] if diagnosis.measured.told_apart else [NOT_TOLD_APART]),
    ]
    comments = "".join(f"# {line}\n" for line in lines)
    return f"{comments}[classifier.grid]\nlevels = {list(proposal.levels)}\n"


def accuracies(choice: Choice) -> list[str]:
    """Of each tau, with the standard error."""
    pairs = zip(choice.accuracy, choice.standard_error, strict=True)
    return [f"{100 * accuracy:.1f} % ± {100 * error:.1f} %" for accuracy, error in pairs]


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    measured = diagnosis.measured
    with_gaps = measured.gaps.mean(axis=(0, 1)), measured.gaps.std(axis=(0, 1))
    return {
        "model": diagnosis.model,
        "data": diagnosis.data,
        **asdict(diagnosis.settings),
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
    settings, proposal, measured = diagnosis.settings, diagnosis.proposal, diagnosis.measured
    size = proposal.evaluations
    evenly = next((accuracies(grid) for grid in diagnosis.evenly_spaced if grid.evaluations == size), None)
    table = Table(title=f"{settings.classifier}, weight {settings.weight}: vote accuracy, on images not chosen on")
    for name in ("sigma_pixel", f"{size} proposed", f"{size} evenly spaced", f"all {len(measured.cosine)} levels"):
        table.add_column(name, justify="right")
    columns = accuracies(proposal), evenly or ["-"] * len(settings.sigma_pixel), accuracies(diagnosis.every_level)
    for sigma, *cells in zip(settings.sigma_pixel, *columns, strict=True):
        table.add_row(f"{sigma:g}", *cells)
    Console(width=140).print(table)
    say(f"{len(measured.labels)} images of {diagnosis.data}: half chose the grid, half judged it")
    if not measured.told_apart:
        say(NOT_TOLD_APART)
    say(f"Written: {out}/grid.toml, diagnosis.json, diagnosis.png, diagnosis.svg")
    say(
        f"ndc certify PRESET --model {diagnosis.model} --set unconditional={settings.unconditional} "
        f"--set classifier.name={settings.classifier} --set classifier.weight={settings.weight} "
        f"--set '{diagnosis.grid_override}'"
    )
