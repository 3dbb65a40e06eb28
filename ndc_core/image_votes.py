"""Votes of several images at once, each of which draws as many as its own procedure asks for."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from ndc_core.classifiers.voter import NO_CLASS, Voter
from ndc_core.cores import usable_cores
from ndc_core.noise.draw_generators import Phase
from ndc_core.noise.smoothing import NoiseName
from ndc_core.vote_requests import Image, VoteRequest
from ndc_core.voting import stream_votes

Result = TypeVar("Result")
Counts = list[int]  # of each class


@dataclass(frozen=True)
class Draws:
    """Draws that an image's procedure asks for. A vote may stop when `candidate` is beaten."""

    phase: Phase
    draws: range
    candidate: int = NO_CLASS


Sampling = Generator[Draws, Counts, Result]  # asks for draws, is sent their votes, and ends with a result


def sample_images(
    classifier: Voter,
    images: Sequence[Image],
    sampling: Callable[[], Sampling[Result]],
    *,
    sigma_pixel: float,
    noise: NoiseName,
    seed: int,
    purpose: str = "",
) -> list[Result]:
    """The result of each image's sampling. Draws of all images share forward passes.

    The draws of an image are a function of the seed, of `purpose` and of its own pixels: they are the same alone and in
    every batch, and other images have other draws (rule S1).

    Raises:
        NonFiniteScoreError: see `stream_votes`.
    """
    samplings = [sampling() for _ in images]
    names = [purpose + name_of(image) for image in images]
    requested = deque((index, next(own)) for index, own in enumerate(samplings))
    results: dict[int, Result] = {}

    def next_request() -> tuple[int, VoteRequest] | None:
        if not requested:
            return None
        index, draws = requested.popleft()
        return index, VoteRequest(
            images[index],
            names[index],
            (sigma_pixel,),
            noise,
            seed,
            draws.phase,
            draws.draws,
            candidates=(draws.candidate,),
        )

    with no_more_threads_than_cores():
        for index, counts in stream_votes(classifier, next_request):
            if isinstance(counts, Exception):
                raise counts
            try:
                requested.append((index, samplings[index].send(counts[0].votes.tolist())))
            except StopIteration as end:
                results[index] = end.value
    return [results[index] for index in range(len(images))]


def name_of(image: Image) -> str:
    return hashlib.sha256(image.dtype.str.encode() + image.tobytes()).hexdigest()[:16]


@contextmanager
def no_more_threads_than_cores() -> Iterator[None]:
    """In a container torch starts a thread for each of the machine's cores, although it may use only a few of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, usable_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
