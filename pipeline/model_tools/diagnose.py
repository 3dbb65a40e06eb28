"""`ndc diagnose`: at which noise levels a model tells classes apart, and the run that is proposed for it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ndc_core.analysis.diagnosis import MeasuredLosses, candidate_levels, measure, noisy_images_of_a_draw
from ndc_core.analysis.grid_search import Choice, GridSearch, Levels, mean_and_error
from ndc_core.checkpoints.denoisers import CheckpointError
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.formulas import CLASSIFIERS
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
from pipeline.progress import counting
from pipeline.workers.compute import pick_device, set_up_process
from pipeline.workers.models import load_pair

SHOWN_EVALUATIONS = 16  # how far accuracy is followed, if the budget ends earlier
GAPS = (1.1, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
FEWEST_IMAGES = 8  # two of them judge, so that there is a standard error
MOST_ROWS, NUMBERS_OF_A_PASS = 256, 2**27


@dataclass(frozen=True)
class DiagnosisSettings:
    """`classifiers` and `weights` are those to choose from; `budget` counts levels."""

    sigma_pixel: tuple[float, ...]
    classifiers: tuple[str, ...]
    unconditional: str
    weights: tuple[str, ...]
    budget: int
    draws: int
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A classifier and a weight, with the best grid for them."""

    classifier: str
    weight: str
    grid: Choice


@dataclass(frozen=True)
class RaceChoice:
    """A gap, or none, with what votes cost and how often they are right on images that had no part in the choice."""

    gap: float | None
    evaluations: float
    evaluations_without: float
    accuracy: tuple[float, ...]
    standard_error: tuple[float, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All that the report and the figure show of a model on some images."""

    model: str
    data: DatasetSpec
    settings: DiagnosisSettings
    candidates: tuple[Candidate, ...]
    choice: Candidate
    race: RaceChoice
    measured: MeasuredLosses
    chosen: tuple[Choice, ...]  # by number of evaluations
    evenly_spaced: tuple[Choice, ...]
    every_level: Choice

    @property
    def proposal(self) -> Choice:
        return self.choice.grid

    @property
    def images(self) -> str:
        return f"{self.data.name} (training split)" if self.data.name in DATASETS else self.data.name


def diagnose_model(
    model: str, data: DatasetSpec, settings: DiagnosisSettings, *, say: Callable[[str], None]
) -> Diagnosis:
    """Measures a model on images spread over the data, and proposes a run.

    Raises:
        ValueError: noise levels without room for a grid, a model that cannot be used, or images that do not fit it.
    """
    levels = candidate_levels(settings.sigma_pixel)
    settings = replace(settings, sigma_pixel=tuple(sorted(settings.sigma_pixel)))
    device = pick_device("auto")
    say(f"on the {'GPU' if device == 'cuda' else 'CPU'}")
    needs_estimate = next((name for name in settings.classifiers if CLASSIFIERS[name].needs_estimate), None)
    denoiser, unconditional = load_pair(
        model, settings.unconditional, classifier=needs_estimate or settings.classifiers[0], device=device
    )
    classifiers = [
        DiffusionClassifier(
            denoiser,
            name,
            GridSpec(levels=levels),
            weight=settings.weights[0],
            rows_per_pass=rows_of_a_pass(denoiser),
            device=device,
            unconditional=unconditional,
        )
        for name in settings.classifiers
    ]
    for weight in settings.weights:
        replace(classifiers[0], weight=weight)  # refuses an unknown one before any work
    examples = spread_images(data, denoiser, say=say)
    set_up_process(threads=usable_cores())
    return diagnose(model, data, settings, classifiers, examples)


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
    """As many as memory allows: likeness compares outputs, and class heads give those of all classes in one pass."""
    if not isinstance(denoiser, EveryClass):
        return MOST_ROWS
    return min(MOST_ROWS, max(1, NUMBERS_OF_A_PASS // (denoiser.num_classes * math.prod(denoiser.image_shape))))


def diagnose(
    model: str,
    data: DatasetSpec,
    settings: DiagnosisSettings,
    classifiers: Sequence[DiffusionClassifier],
    examples: Sequence[Example],
) -> Diagnosis:
    """Chooses levels, then classifier and weight, then the gap; no image chooses and judges (`GridSearch.parts`)."""
    try:
        with counting("noisy images", len(examples) * places_of(classifiers, settings)) as count:
            measured = measure(
                classifiers,
                np.stack([example.image for example in examples]),
                np.array([example.label for example in examples]),
                sigma_pixel=settings.sigma_pixel,
                draws=settings.draws,
                seed=settings.seed,
                on_places=count,
            )
    except NonFiniteScoreError as error:
        raise CheckpointError(f"{model}: {error}; its weights are damaged: train or convert it again") from error
    taus_model = tuple(sigma_to_model(sigma) for sigma in settings.sigma_pixel)
    searches = [
        GridSearch(replace(classifier, weight=weight), losses, taus_model, settings.seed)
        for classifier, losses in zip(classifiers, measured, strict=True)
        for weight in settings.weights
    ]
    candidates = [candidate_of(search, settings.budget) for search in searches]
    most = max(settings.budget, SHOWN_EVALUATIONS)
    choice, search = max(
        zip(candidates, searches, strict=True),
        key=lambda pair: pair[1].accuracy_of_images(pair[0].grid.levels, pair[1].parts[1]).mean(),
    )
    return Diagnosis(
        model,
        data,
        settings,
        tuple(candidates),
        choice,
        race_of(search, choice.grid.levels),
        search.measured,
        tuple(map(search.judged, search.greedy(most))),
        tuple(map(search.judged, search.evenly_spaced(most))),
        search.judged(search.measured.levels),
    )


def places_of(classifiers: Sequence[DiffusionClassifier], settings: DiagnosisSettings) -> int:
    """Noisy images that the network evaluates for one image."""
    taus_model = tuple(sigma_to_model(sigma) for sigma in settings.sigma_pixel)
    return settings.draws * noisy_images_of_a_draw(classifiers, taus_model)


def candidate_of(search: GridSearch, budget: int) -> Candidate:
    grid = search.judged(search.proposal(search.greedy(budget), budget))
    return Candidate(search.classifier.name, search.classifier.weight, grid)


def race_of(search: GridSearch, levels: Levels) -> RaceChoice:
    """The gap that some images choose, judged by others."""
    gap, judges = search.gap(levels, GAPS), search.parts[2]
    raced, whole = (search.raced(levels, judges, each) for each in (gap, None))
    classifier = search.classifier
    estimating = classifier.estimator.evaluations if classifier.formula.needs_estimate else 0
    evaluations, without = (estimating + float(each.evaluations.mean()) for each in (raced, whole))
    return RaceChoice(gap, evaluations, without, *mean_and_error(raced.accuracy))
