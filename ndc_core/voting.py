"""Votes of a smoothed classifier on images: draws of requests, gathered into batches, counted."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int

from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.classifiers.voter import Prediction, Voter
from ndc_core.models.forward_passes import Task, gather, in_turn
from ndc_core.noise.draw_generators import Phase
from ndc_core.noise.smoothing import NoiseName
from ndc_core.vote_requests import Image, VoteRequest, bytes_of_a_draw, draws_of_a_batch, memory_bytes, prepare

# Threads that draw the noise of inputs. On a CPU the network has the cores.
THREADS = {"cuda": 4}

Name = TypeVar("Name")


@dataclass(frozen=True)
class VoteCounts:
    """How many draws each class won at a noise level, its share of the cost, and each draw's scores if asked for."""

    votes: Int[np.ndarray, " classes"]
    evaluations: int
    scores: Float[np.ndarray, "draws classes"] | None = None

    def __repr__(self) -> str:
        top = int(self.votes.argmax())
        share = f"{self.votes[top]:,} of {self.votes.sum():,} votes"
        return f"<class {top} has {share}, from {self.evaluations:,} evaluations>"


def stream_votes(
    classifier: Voter, next_request: Callable[[], tuple[Name, VoteRequest] | None]
) -> Iterator[tuple[Name, list[VoteCounts] | Exception]]:
    """Counts the votes of requests, for each noise level of each, as soon as a request is complete, or says why not.

    The same draws give the same votes at any time and place, together with any others (rule S1).
    `next_request` gives None when there is none at present.

    Raises (as the request's result):
        ValueError: an image that does not fit the model or the noise.
        NonFiniteScoreError: the denoiser returned NaN or infinity; image, draw, sigma and class are named.
    """
    device = torch.device(classifier.device)
    count = THREADS.get(device.type, 1)
    with ThreadPoolExecutor(count) as threads:
        batcher = _RequestBatcher(classifier, next_request, threads, count)
        for batch, predictions in gather(batcher.next_task, rows_per_pass=classifier.rows_per_pass, device=device):
            yield from batcher.take(batch, predictions)


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
        ValueError, NonFiniteScoreError: see `stream_votes`.
    """
    request = VoteRequest(image, image_id, (sigma_pixel,), noise, seed, phase, draws, keep_scores)
    ((_, counts),) = stream_votes(classifier, in_turn([(None, request)]))
    if isinstance(counts, Exception):
        raise counts
    return counts[0]


@dataclass(eq=False)
class _PendingRequest(Generic[Name]):
    """A request's votes so far."""

    name: Name
    request: VoteRequest
    draws_out: int
    votes: list[Int[np.ndarray, " classes"]]  # of each level
    evaluations: int = 0
    scores: dict[int, list[np.ndarray]] = field(default_factory=dict)  # of each level, by first draw
    failed: bool = False

    def is_complete_with(self, draws: range, predictions: list[Prediction]) -> bool:
        """Counts the votes of some draws."""
        for votes, prediction in zip(self.votes, predictions, strict=True):
            votes += np.bincount(prediction.winners, minlength=len(votes))
            self.evaluations += prediction.evaluations
        if self.request.keep_scores:
            self.scores[draws[0]] = [prediction.scores for prediction in predictions]
        self.draws_out -= len(draws)
        return not self.draws_out

    def counts(self) -> list[VoteCounts]:
        levels, cost = len(self.votes), self.evaluations
        in_order = [self.scores[first] for first in sorted(self.scores)]
        counts = []
        for level, votes in enumerate(self.votes):
            scores = np.concatenate([of_draws[level] for of_draws in in_order]) if in_order else None
            # What levels share is divided among them, to the last evaluation.
            counts.append(VoteCounts(votes, cost * (level + 1) // levels - cost * level // levels, scores))
        return counts


@dataclass(frozen=True)
class _Piece(Generic[Name]):
    """Some draws of a request."""

    pending: _PendingRequest[Name]
    draws: range


@dataclass(frozen=True, eq=False)
class _Batch(Generic[Name]):
    pieces: list[_Piece[Name]]
    bytes: int


class _RequestBatcher(Generic[Name]):
    """Cuts requests into batches, draws their noise ahead in threads, and puts their votes together again."""

    def __init__(
        self,
        classifier: Voter,
        next_request: Callable[[], tuple[Name, VoteRequest] | None],
        threads: ThreadPoolExecutor,
        count: int,
    ) -> None:
        self.classifier, self.next_request = classifier, next_request
        self.threads, self.batches_ahead = threads, count + 1
        self.memory_left = memory_bytes(torch.device(classifier.device))
        self.waiting: dict[Any, deque[_Piece[Name]]] = {}  # by kind: draws that are in no batch yet
        self.alone: deque[_Piece[Name]] = deque()  # to vote again, after a batch with others has failed
        self.ahead: deque[tuple[_Batch[Name], Future[Task[list[Prediction]]]]] = deque()

    def next_task(self) -> tuple[_Batch[Name], Task[list[Prediction]]] | None:
        while len(self.ahead) < self.batches_ahead and (batch := self._next_batch()):
            pieces = [(piece.pending.request, piece.draws) for piece in batch.pieces]
            self.ahead.append((batch, self.threads.submit(prepare, self.classifier, pieces)))
        if not self.ahead:
            return None
        batch, prepared = self.ahead.popleft()
        return batch, self._task(prepared)

    def _task(self, prepared: Future[Task[list[Prediction]]]) -> Task[list[Prediction]]:
        return (yield from prepared.result())

    def _next_batch(self) -> _Batch[Name] | None:
        """As many draws of one kind as a batch may have, from as many requests as that takes, or from all."""
        if self.memory_left <= 0:
            return None
        if self.alone:
            return self._batch([self.alone.popleft()])
        while True:
            for kind, pieces in self.waiting.items():
                most = draws_of_a_batch(self.classifier, pieces[0].pending.request)
                if sum(len(piece.draws) for piece in pieces) >= most:
                    return self._cut(kind, most)
            named = self.next_request()
            if named is None:
                break
            name, request = named
            pending = _PendingRequest(
                name,
                request,
                len(request.draws),
                [np.zeros(self.classifier.num_classes, int) for _ in request.sigma_pixel],
            )
            self.waiting.setdefault(request.kind, deque()).append(_Piece(pending, request.draws))
        if not self.waiting:
            return None
        kind, pieces = next(iter(self.waiting.items()))
        return self._cut(kind, draws_of_a_batch(self.classifier, pieces[0].pending.request))

    def _cut(self, kind: Any, most: int) -> _Batch[Name]:
        """The first waiting draws of a kind, at most `most`."""
        pieces, taken = self.waiting[kind], []
        while pieces and most:
            piece = pieces.popleft()
            taken.append(_Piece(piece.pending, piece.draws[:most]))
            if rest := piece.draws[most:]:
                pieces.appendleft(_Piece(piece.pending, rest))
            most -= len(taken[-1].draws)
        if not pieces:
            del self.waiting[kind]
        return self._batch(taken)

    def _batch(self, pieces: list[_Piece[Name]]) -> _Batch[Name]:
        draws = sum(len(piece.draws) for piece in pieces)
        batch = _Batch(pieces, draws * bytes_of_a_draw(self.classifier, pieces[0].pending.request))
        self.memory_left -= batch.bytes
        return batch

    def take(
        self, batch: _Batch[Name], predictions: list[Prediction] | Exception
    ) -> Iterator[tuple[Name, list[VoteCounts] | Exception]]:
        self.memory_left += batch.bytes
        if isinstance(predictions, Exception):
            if len(batch.pieces) > 1:  # one bad request must not fail the others
                self.alone.extend(piece for piece in batch.pieces if not piece.pending.failed)
            elif not (pending := batch.pieces[0].pending).failed:
                self._forget(pending)
                yield pending.name, _named(predictions, pending.request, batch.pieces[0].draws)
            return
        first = 0
        for piece in batch.pieces:
            rows, pending = slice(first, first + len(piece.draws)), piece.pending
            first = rows.stop
            own = [prediction.rows(rows) for prediction in predictions]
            if not pending.failed and pending.is_complete_with(piece.draws, own):
                yield pending.name, pending.counts()

    def _forget(self, pending: _PendingRequest[Name]) -> None:
        """Marks a request as failed: none of its draws need to vote any more."""
        pending.failed = True
        self.alone = deque(piece for piece in self.alone if piece.pending is not pending)
        for kind, pieces in list(self.waiting.items()):
            self.waiting[kind] = deque(piece for piece in pieces if piece.pending is not pending)
            if not self.waiting[kind]:
                del self.waiting[kind]


def _named(error: Exception, request: VoteRequest, draws: range) -> Exception:
    if not isinstance(error, NonFiniteScoreError):
        return error
    sigmas = ", ".join(f"{sigma:g}" for sigma in request.sigma_pixel)
    where = f"image {request.image_id}, sigma_pixel {sigmas}, {request.phase} draw {draws[error.row]}, {error.where}"
    return NonFiniteScoreError(where, row=error.row)
