"""Votes of a smoothed classifier on images, and the certificate they give."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8

from ndc_core.certificates.certificate import Certificate, Tally, Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.classifiers.scoring import NOBODY, Prediction, independent, on_ready_path
from ndc_core.models.forward_passes import TASKS_AT_ONCE, Task, gather
from ndc_core.noise.grid import path_levels
from ndc_core.noise.lattice import noisy_images
from ndc_core.noise.shared_path import WALKS, stations_of
from ndc_core.noise.smoothing import NOISES, InputNoise, NoiseName, NoNoise
from ndc_core.noise.streams import DrawNoise, Phase, draw_noise, draw_walks
from ndc_core.space import sigma_to_model, sigma_to_pixel

# Of one actor, for noise and losses: the batches that vote and those whose noise is drawn ahead share it.
MEMORY_BYTES = 256 * 2**20
BATCHES_AHEAD = 2

Voter = DiffusionClassifier | Baseline
Image = Shaped[np.ndarray, "c h w"]
Name = TypeVar("Name")


@dataclass(frozen=True)
class Poll:
    """Draws of an image that are to vote, at one noise level or at several on one path.

    The noise of a path is drawn for all levels `of_the_run`, so that a level's votes do not depend on which others vote
    with it. A vote may stop when its level's candidate is out of the race (see `ballots.on_ready_path`). The image is
    8-bit, or with `float` noise pixels in double precision. The noise `none` is for DC: its steps draw theirs on a
    lattice (see `lattice`).
    """

    image: Image
    image_id: str
    sigma_pixel: tuple[float, ...]
    noise: NoiseName
    seed: int
    phase: Phase
    draws: range
    keep_scores: bool = False
    candidates: tuple[int, ...] = ()
    of_the_run: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.draws)

    @property
    def taus_model(self) -> tuple[float, ...]:
        return tuple(sigma_to_model(sigma) for sigma in self.sigma_pixel)


@dataclass(frozen=True)
class VoteCounts:
    """How many draws each class won at a noise level, its share of the cost, and each draw's scores if asked for."""

    votes: Int[np.ndarray, " classes"]
    evaluations: int
    scores: Float[np.ndarray, "draws classes"] | None = None


def hold_polls(
    classifier: Voter, next_poll: Callable[[], tuple[Name, Poll] | None]
) -> Iterator[tuple[Name, list[VoteCounts] | Exception]]:
    """Counts the votes of polls, for each noise level of each, as soon as a poll is complete; or says why it is not.

    The same draws give the same votes whenever, wherever and with whatever others they are asked for (rule S1).
    `next_poll` gives None when there is none at present.

    Raises (as the poll's result):
        ValueError: an image that does not fit the model or the noise.
        NonFiniteScoreError: the denoiser returned NaN or infinity; image, draw, sigma and class are named.
    """
    with ThreadPoolExecutor(1) as thread:
        station = _PollingStation(classifier, next_poll, thread)
        tasks = gather(
            station.next_task, rows_per_pass=classifier.rows_per_pass, device=torch.device(classifier.device)
        )
        for (box, draws), found in tasks:
            yield from station.take(box, draws, found)


def count_votes(
    classifier: Voter,
    image: Image,
    *,
    sigma_pixel: float,
    noise: NoiseName,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: range,
    keep_scores: bool = False,
) -> VoteCounts:
    """Votes of the named draws of one image at one noise level.

    Raises:
        ValueError, NonFiniteScoreError: see `hold_polls`.
    """
    waiting = [(None, Poll(image, image_id, (sigma_pixel,), noise, seed, phase, draws, keep_scores))]
    ((_, found),) = hold_polls(classifier, lambda: waiting.pop() if waiting else None)
    if isinstance(found, Exception):
        raise found
    return found[0]


@dataclass(eq=False)
class _Box(Generic[Name]):
    """A poll's batches that are still out, and what the others gave."""

    name: Name
    poll: Poll
    draws_out: int
    found: dict[int, list[Prediction]] = field(default_factory=dict)  # by first draw
    failed: bool = False


class _PollingStation(Generic[Name]):
    """Cuts polls into batches, draws their noise ahead in a thread, and puts their votes together again."""

    def __init__(
        self,
        classifier: Voter,
        next_poll: Callable[[], tuple[Name, Poll] | None],
        thread: ThreadPoolExecutor,
    ) -> None:
        self.classifier, self.next_poll, self.thread = classifier, next_poll, thread
        self.batches: deque[tuple[_Box[Name], range]] = deque()
        self.ahead: deque[tuple[_Box[Name], range, Future[Task[list[Prediction]]]]] = deque()

    def next_task(self) -> tuple[tuple[_Box[Name], range], Task[list[Prediction]]] | None:
        while len(self.ahead) <= BATCHES_AHEAD and (batch := self._next_batch()):
            self.ahead.append((*batch, self.thread.submit(prepare, self.classifier, batch[0].poll, batch[1])))
        if not self.ahead:
            return None
        box, draws, prepared = self.ahead.popleft()
        return (box, draws), self._task(prepared)

    def _task(self, prepared: Future[Task[list[Prediction]]]) -> Task[list[Prediction]]:
        return (yield from prepared.result())

    def _next_batch(self) -> tuple[_Box[Name], range] | None:
        if not self.batches:
            named = self.next_poll()
            if named is None:
                return None
            name, poll = named
            box = _Box(name, poll, draws_out=len(poll.draws))
            self.batches.extend((box, draws) for draws in batches(self.classifier, poll))
        return self.batches.popleft()

    def take(
        self, box: _Box[Name], draws: range, found: list[Prediction] | Exception
    ) -> Iterator[tuple[Name, list[VoteCounts] | Exception]]:
        if box.failed:
            return
        if isinstance(found, Exception):
            box.failed = True
            self.batches = deque(batch for batch in self.batches if batch[0] is not box)
            yield box.name, _named(found, box.poll, draws)
            return
        box.found[draws[0]] = found
        box.draws_out -= len(draws)
        if not box.draws_out:
            yield box.name, _counted(box, self.classifier.num_classes)


def _named(error: Exception, poll: Poll, draws: range) -> Exception:
    if not isinstance(error, NonFiniteScoreError):
        return error
    sigmas = ", ".join(f"{sigma:g}" for sigma in poll.sigma_pixel)
    where = f"image {poll.image_id}, sigma_pixel {sigmas}, {poll.phase} draw {draws[error.row]}, {error.where}"
    return NonFiniteScoreError(where, row=error.row)


def _counted(box: _Box[Name], classes: int) -> list[VoteCounts]:
    in_order = [box.found[first] for first in sorted(box.found)]
    cost = sum(one.evaluations for found in in_order for one in found)
    levels = len(box.poll.sigma_pixel)
    counts = []
    for level, of_level in enumerate(zip(*in_order, strict=True)):
        votes = sum(np.bincount(one.winners, minlength=classes) for one in of_level)
        scores = np.concatenate([one.scores for one in of_level]) if box.poll.keep_scores else None
        # What levels share is divided among them, to the last evaluation.
        counts.append(VoteCounts(np.asarray(votes), cost * (level + 1) // levels - cost * level // levels, scores))
    return counts


def prepare(classifier: Voter, poll: Poll, draws: Sequence[int]) -> Task[list[Prediction]]:
    """Draws a batch's noise; gives its task."""
    if poll.image.shape != tuple(classifier.image_shape):
        raise ValueError(
            f"image {poll.image_id} has shape {poll.image.shape}, the model takes {tuple(classifier.image_shape)}"
        )
    if isinstance(classifier, DiffusionClassifier) and classifier.one_path:
        return _prepare_path(classifier, poll, draws)
    if poll.noise == "none":
        return _prepare_lattice(classifier, poll, draws)
    (sigma_pixel,) = poll.sigma_pixel
    input_noise = NOISES[poll.noise](sigma_pixel)
    drawn = noise_of(classifier, input_noise, seed=poll.seed, image_id=poll.image_id, phase=poll.phase, draws=draws)
    z = input_noise.add(poll.image, drawn.input)
    if isinstance(classifier, Baseline):
        return classifier.votes(z, tau_model=sigma_to_model(sigma_pixel), noise=drawn.refine)
    (candidate,) = poll.candidates or (NOBODY,)
    return independent(classifier, z, tau_model=sigma_to_model(sigma_pixel), noise=drawn, candidate=candidate)


def _prepare_path(classifier: DiffusionClassifier, poll: Poll, draws: Sequence[int]) -> Task[list[Prediction]]:
    at = stations_of(classifier.grid, poll.of_the_run or poll.sigma_pixel)
    walk = WALKS[poll.noise](at)
    noise = draw_walks(
        seed=poll.seed,
        image_id=poll.image_id,
        phase=poll.phase,
        draws=draws,
        walk=walk,
        image_shape=classifier.image_shape,
    )
    # A station's noisy image is a function of its own noise, not of how it was reached (rules S2 and S8).
    z = NOISES[poll.noise].add(poll.image, noise).astype(np.float32)
    levels = [sigma_to_pixel(level) for level in path_levels(classifier.grid, taus_model=poll.taus_model)]
    return on_ready_path(
        classifier,
        [z[:, at.index(sigma)] for sigma in poll.sigma_pixel],
        z[:, [at.index(level) for level in levels]],
        taus_model=poll.taus_model,
        candidates=poll.candidates,
    )


def _prepare_lattice(classifier: Voter, poll: Poll, draws: Sequence[int]) -> Task[list[Prediction]]:
    if not isinstance(classifier, DiffusionClassifier) or classifier.name != "dc" or classifier.sift:
        raise ValueError("noise = 'none' is for the classifier dc without sift: set noise to 'integer' or 'float'")
    if poll.sigma_pixel != (0.0,):
        raise ValueError(f"noise = 'none' has no sigma_pixel, and it is {poll.sigma_pixel[0]:g}; set it to 0")
    clean = np.repeat(NoNoise.add(poll.image, np.zeros((1, *poll.image.shape))), len(draws), axis=0)
    levels = path_levels(classifier.grid, taus_model=(0.0,))
    noisy = noisy_images(poll.image, levels, seed=poll.seed, image_id=poll.image_id, phase=poll.phase, draws=draws)
    return on_ready_path(classifier, [clean], noisy, taus_model=(0.0,), candidates=poll.candidates)


def noise_of(
    classifier: Voter,
    input_noise: InputNoise,
    *,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: Sequence[int],
) -> DrawNoise:
    """All the noise that the classifier's named draws need, without one path."""
    refine_steps, sift_steps = classifier.noise_steps
    return draw_noise(
        seed=seed,
        image_id=image_id,
        phase=phase,
        draws=draws,
        input_noise=input_noise,
        image_shape=classifier.image_shape,
        refine_steps=refine_steps,
        sift_steps=sift_steps,
    )


def batches(classifier: Voter, poll: Poll) -> list[range]:
    """The poll's draws, at most a pass's rows at once and no more than fit in memory; a function of shapes only."""
    levels, steps = len(poll.sigma_pixel), sum(classifier.noise_steps)
    noise_bytes = poll.image.size * ((steps + 2 * levels) * 24 if classifier.one_path else (steps + 2) * 4)
    loss_bytes = classifier.noise_steps[0] * classifier.num_classes * (8 * (levels + 2) + 2)
    of_a_batch = MEMORY_BYTES // (TASKS_AT_ONCE + BATCHES_AHEAD + 1)
    at_once = max(1, min(classifier.rows_per_pass, of_a_batch // (noise_bytes + loss_bytes)))
    return [poll.draws[first : first + at_once] for first in range(0, len(poll.draws), at_once)]


def certify(
    classifier: Voter,
    image: UInt8[np.ndarray, "c h w"],
    *,
    sigma_pixel: float,
    alpha: float,
    selection_votes: int = 100,
    estimation_votes: int = 10_000,
    noise: NoiseName = "integer",
    seed: int = 0,
    image_id: str = "image",
) -> Certificate:
    """Cohen's certificate of one 8-bit image: no change of L2 norm below its radius (pixels in [0, 1])
    changes the smoothed classifier's class, with probability at least 1 - alpha over the votes.

    Images whose certificates shall fail independently need different `image_id`s. With `integer` noise the promise
    is about 8-bit adversarial images and is exact; with `float` about all of them, up to floating-point rounding.

    Raises:
        ValueError: sigma or alpha out of range, no votes, or an image that does not fit the model.
    """
    if not sigma_pixel > 0:
        raise ValueError(f"sigma_pixel must be above 0, not {sigma_pixel}")
    if noise == "none":
        raise ValueError("a smoothed classifier's certificate needs noise: set noise to 'integer' or 'float'")
    input_noise = NOISES[noise](sigma_pixel)
    terms = Terms(
        sigma_pixel=sigma_pixel,
        alpha=alpha,
        votes=estimation_votes,
        distance=input_noise.distance(image.size),
        scope=input_noise.scope,
    )

    def counts(phase: Phase, votes: int) -> list[int]:
        tally = count_votes(
            classifier,
            image,
            sigma_pixel=sigma_pixel,
            noise=noise,
            seed=seed,
            image_id=image_id,
            phase=phase,
            draws=range(votes),
        )
        return tally.votes.tolist()

    selection, estimation = counts("selection", selection_votes), counts("estimation", estimation_votes)
    return Cohen(terms).certificate(Tally(selection, [estimation]))
