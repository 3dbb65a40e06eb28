"""How many rows a forward pass should have on this machine, found by trying."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch

from ndc_core.denoiser import Denoiser, EveryClass
from ndc_core.image_classifier import ImageClassifier, ImageNetwork

FEWEST, MOST = 16, 8192
SECONDS_A_SIZE = 0.2
LONGEST_PASS_SECONDS = 4.0
GOOD_ENOUGH = 0.9
Pass = Callable[[int], None]


@dataclass(frozen=True)
class Rate:
    rows: int
    rows_per_second: float


def fastest_rows(network: Denoiser | ImageClassifier, *, device: str) -> Rate:
    """The smallest power of two whose rate is nearly the best: larger passes only wait longer and pad more.

    It takes a second or two. The size changes rounding, so a run searches once, before its law is declared (rule S1).
    """
    return choose(measured(lambda rows: _one_pass(network, rows, device=device)))


def rate_of(network: Denoiser | ImageClassifier, rows: int, *, device: str) -> Rate:
    """How fast passes of this many rows are, or where one would take long, passes of few."""

    def rate(tried: int) -> float:
        return tried / _seconds(lambda count: _one_pass(network, count, device=device), tried)

    of_few = rate(min(rows, FEWEST))
    return Rate(rows, of_few if rows / of_few > LONGEST_PASS_SECONDS else rate(rows))


def choose(rates: Iterator[Rate]) -> Rate:
    """Doubles as long as that is worth it; the smallest of those nearly as fast as the best."""
    found: list[Rate] = []
    for rate in rates:
        found.append(rate)
        best = max(one.rows_per_second for one in found)
        if len(found) > 2 and found[-3].rows_per_second == best:  # two doublings were no gain
            break
    best = max(one.rows_per_second for one in found)
    return next(one for one in found if one.rows_per_second >= GOOD_ENOUGH * best)


def measured(one_pass: Pass) -> Iterator[Rate]:
    """Rates of passes of 16, 32, ... rows, as far as memory and patience go."""
    rows = FEWEST
    while rows <= MOST:
        try:
            seconds = _seconds(one_pass, rows)
        except torch.OutOfMemoryError:
            return
        yield Rate(rows, rows / seconds)
        if seconds > LONGEST_PASS_SECONDS / 2:
            return
        rows *= 2


def _seconds(one_pass: Pass, rows: int) -> float:
    """Of the fastest of some passes: whatever else the machine does only slows them down."""
    one_pass(rows)  # what is set up at the first pass of a shape is not counted
    started = time.perf_counter()
    seconds: list[float] = []
    while not seconds or time.perf_counter() - started < SECONDS_A_SIZE:
        before = time.perf_counter()
        one_pass(rows)
        seconds.append(time.perf_counter() - before)
    return min(seconds)


@torch.inference_mode()
def _one_pass(network: Denoiser | ImageClassifier, rows: int, *, device: str) -> None:
    z = torch.zeros(rows, *network.image_shape, device=device)
    sigma_model = torch.ones(rows, device=device)
    if isinstance(network, ImageNetwork):
        network(z)
    elif isinstance(network, EveryClass):
        network.every_class(z, sigma_model)
    else:
        cast(Denoiser, network)(z, sigma_model, torch.zeros(rows, network.num_classes, device=device))
    if device == "cuda":
        torch.cuda.synchronize()
