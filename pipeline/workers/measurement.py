"""What one actor does in a second, and what a few images' votes cost it: measured before a run, where it would run."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ndc_core.classifiers.voter import NO_CLASS, Voter
from ndc_core.models.rows_per_pass import Rate, fastest_rows, is_out_of_memory, rate_of
from ndc_core.noise.draw_generators import Phase
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import VoteCounts, stream_votes
from pipeline.declaration.config import Device, RunConfig
from pipeline.workers.compute import pick_device, set_up_process
from pipeline.workers.models import build_classifier

SECONDS_OF_VOTES = 15.0
MOST_DRAWS, FEWEST_DRAWS = 60, 8
# A plan looks at no draw of the run it is for: choosing settings by them would spend alpha.
SEED_APART = 2**40


@dataclass(frozen=True)
class SampledCell:
    """Votes of one image at one noise level: all about the class that the selection votes named."""

    sigma_pixel: float
    draws: int
    candidate_votes: int
    evaluations: dict[Phase, int]
    scores: np.ndarray | None
    classes: int
    candidate: int


@dataclass(frozen=True)
class MeasuredCost:
    """`evaluations_per_second` of one actor. Cells are left out where votes cost too much to try a few."""

    device: str
    rows_per_pass: int
    evaluations_per_second: float
    cells: tuple[SampledCell, ...]

    @property
    def evaluations_per_vote(self) -> float | None:
        draws = sum(2 * cell.draws for cell in self.cells)
        return sum(sum(cell.evaluations.values()) for cell in self.cells) / draws if draws else None


@dataclass(frozen=True)
class MeasurementRequest:
    """A run's configuration and some of its images, by id; none to measure passes only."""

    config: RunConfig
    images: tuple[tuple[str, np.ndarray], ...]
    most_evaluations_per_vote: int


def measure(request: MeasurementRequest, device: Device = "auto") -> MeasuredCost:
    """Finds the rows of a pass, unless they are set, and the rate; then, if that takes seconds, votes on the images.

    Raises:
        ValueError: the device that is asked for is not on this node, or a model that cannot be used.
    """
    config, threads = request.config, torch.get_num_threads()
    set_up_process(threads=config.compute.threads_per_actor)
    try:
        picked = pick_device(device, share=config.compute.gpus_per_actor or 1)
        rate = _rate(config, device=picked)
        per_second, cells = rate.rows_per_second, tuple[SampledCell, ...]()
        cells_asked = len(request.images) * len(config.sigma_pixel)
        votes = SECONDS_OF_VOTES * per_second / request.most_evaluations_per_vote
        draws = min(MOST_DRAWS, int(votes / (2 * cells_asked))) if cells_asked else 0
        if draws >= FEWEST_DRAWS:
            cells, per_second = _sampled(config, rate.rows, request.images, draws, device=picked)
        return MeasuredCost(picked, rate.rows, per_second, cells)
    finally:
        torch.set_num_threads(threads)


def _rate(config: RunConfig, *, device: str) -> Rate:
    """The rate of passes with the rows that are set, or else of the fastest; the models are released afterwards."""
    classifier, rows = build_classifier(config, device=device), config.compute.rows_per_pass
    network, label_gradient = classifier.main_network, classifier.asks_for_gradients
    if rows is None:
        return fastest_rows(network, device=device, label_gradient=label_gradient)
    return rate_of(network, rows, device=device, label_gradient=label_gradient)


def _sampled(
    config: RunConfig, rows: int, images: Sequence[tuple[str, np.ndarray]], draws: int, *, device: str
) -> tuple[tuple[SampledCell, ...], float]:
    """Raises ValueError where there is memory for the passes, but not for what votes need in addition."""
    compute = config.compute.model_copy(update={"rows_per_pass": rows})
    classifier = build_classifier(config.model_copy(update={"compute": compute}), device=device)
    try:
        return _votes(classifier, config, images, draws)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    raise ValueError(f"there is no memory for votes in passes of {rows:,} rows; set compute.rows_per_pass lower")


def _votes(
    classifier: Voter, config: RunConfig, images: Sequence[tuple[str, np.ndarray]], draws: int
) -> tuple[tuple[SampledCell, ...], float]:
    """Selection and estimation votes of each image and noise level; evaluations per second with all that is around."""
    levels = [tuple(sorted(config.sigma_pixel))] if config.one_path else [(s,) for s in config.sigma_pixel]
    sampled = [(image, sigmas, (NO_CLASS,) * len(sigmas)) for image in images for sigmas in levels]
    _hold(classifier, config, sampled[:1], "selection", 1)  # what is compiled or set up at first is not counted
    started = time.perf_counter()
    selected = _hold(classifier, config, sampled, "selection", draws)
    about = [tuple(int(counts.votes.argmax()) for counts in of_image) for of_image in selected]
    sampled = [(image, sigmas, candidates) for (image, sigmas, _), candidates in zip(sampled, about, strict=True)]
    estimated = _hold(classifier, config, sampled, "estimation", draws)
    seconds = time.perf_counter() - started
    cells = []
    for (_, sigmas, candidates), first, second in zip(sampled, selected, estimated, strict=True):
        for sigma, candidate, chosen, judged in zip(sigmas, candidates, first, second, strict=True):
            cost: dict[Phase, int] = {"selection": chosen.evaluations, "estimation": judged.evaluations}
            votes = int(judged.votes[candidate])
            cells.append(SampledCell(sigma, draws, votes, cost, judged.scores, len(judged.votes), candidate))
    return tuple(cells), sum(sum(cell.evaluations.values()) for cell in cells) / seconds


SampledVotes = tuple[tuple[str, np.ndarray], tuple[float, ...], tuple[int, ...]]


def _hold(
    classifier: Voter, config: RunConfig, sampled: Sequence[SampledVotes], phase: Phase, draws: int
) -> list[list[VoteCounts]]:
    waiting = deque(enumerate(_requests(config, sampled, phase, draws)))
    counted: dict[int, list[VoteCounts]] = {}
    for index, counts in stream_votes(classifier, lambda: waiting.popleft() if waiting else None):
        if isinstance(counts, Exception):
            raise counts
        counted[index] = counts
    return [counted[index] for index in range(len(sampled))]


def _requests(config: RunConfig, sampled: Sequence[SampledVotes], phase: Phase, draws: int) -> Iterator[VoteRequest]:
    for (image_id, image), sigmas, candidates in sampled:
        yield VoteRequest(
            image=image,
            image_id=image_id,
            sigma_pixel=sigmas,
            noise=config.noise,
            seed=config.seed + SEED_APART,
            phase=phase,
            draws=range(draws),
            keep_scores=config.certificate.method == "lipschitz",
            candidates=candidates,
            all_sigmas=config.sigma_pixel,
        )
