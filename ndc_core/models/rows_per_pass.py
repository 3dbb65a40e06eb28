"""How many rows a forward pass should have on this machine, found by trying."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch

from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss
from ndc_core.models.image_classifier import ImageClassifier, ImageNetwork

FEWEST, MOST = 16, 8192
SECONDS_A_SIZE = 0.2
LONGEST_PASS_SECONDS = 4.0
GOOD_ENOUGH = 0.9
Pass = Callable[[int], None]
# Words of out-of-memory errors on CPUs and GPUs for which torch has no type.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "32BitIndexMath")


@dataclass(frozen=True)
class Rate:
    """The rate is 0 for a size that does not fit into memory."""

    rows: int
    rows_per_second: float


def fastest_rows(network: Denoiser | ImageClassifier, *, device: str, label_gradient: bool = False) -> Rate:
    """The smallest power of two whose rate is nearly the best: larger passes only wait longer and pad more.

    It takes a second or two. The size changes rounding, so a run searches once, before its law is declared (rule S1).
    With `label_gradient` there must also be memory for the differentiated passes, which need much more.

    Raises:
        ValueError: there is no memory for the smallest.
    """
    before, one_pass = _passes(network, device=device, label_gradient=label_gradient)
    return choose(measured(one_pass, before=before))


def rate_of(network: Denoiser | ImageClassifier, rows: int, *, device: str, label_gradient: bool = False) -> Rate:
    """How fast passes of this many rows are, or passes of few rows if one would take long.

    Raises:
        ValueError: there is no memory for them.
    """
    before, one_pass = _passes(network, device=device, label_gradient=label_gradient)

    def rate(tried: int) -> float:
        try:
            return tried / _seconds(one_pass, tried, before=before)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        raise ValueError(
            f"there is no memory for passes of {tried:,} rows on this {device}; set compute.rows_per_pass lower"
        )

    of_few = rate(min(rows, FEWEST))
    return Rate(rows, of_few if rows / of_few > LONGEST_PASS_SECONDS else rate(rows))


def choose(rates: Iterator[Rate]) -> Rate:
    """Doubles as long as that pays; gives the smallest size that is nearly as fast as the best.

    The largest size that fits into memory is left out, if there are others: votes need memory besides their passes.

    Raises:
        ValueError: there is no memory for the smallest.
    """
    tried: list[Rate] = []
    for rate in rates:
        if not rate.rows_per_second:
            tried = tried[:-1] or tried
            break
        tried.append(rate)
        best = max(measured.rows_per_second for measured in tried)
        if len(tried) > 2 and tried[-3].rows_per_second == best:  # two doublings were no gain
            break
    if not tried:
        raise ValueError(
            f"there is no memory for passes of {FEWEST} rows; set compute.rows_per_pass lower, or take a larger device"
        )
    best = max(measured.rows_per_second for measured in tried)
    return next(measured for measured in tried if measured.rows_per_second >= GOOD_ENOUGH * best)


def measured(one_pass: Pass, *, before: Pass | None = None) -> Iterator[Rate]:
    """Rates of passes of 16, 32, ... rows, as far as memory and patience go; `before` runs once before each size."""
    rows = FEWEST
    while rows <= MOST:
        try:
            seconds = _seconds(one_pass, rows, before=before)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            yield Rate(rows, 0.0)
            return
        yield Rate(rows, rows / seconds)
        if seconds > LONGEST_PASS_SECONDS / 2:
            return
        rows *= 2


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer rows may help."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _seconds(one_pass: Pass, rows: int, *, before: Pass | None = None) -> float:
    """The time of the fastest of some passes: other work on the machine only slows them down."""
    (before or one_pass)(rows)  # the setup at the first pass of a shape is not counted
    started = time.perf_counter()
    seconds: list[float] = []
    while not seconds or time.perf_counter() - started < SECONDS_A_SIZE:
        began = time.perf_counter()
        one_pass(rows)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _passes(network: Denoiser | ImageClassifier, *, device: str, label_gradient: bool) -> tuple[Pass, Pass]:
    """The pass to try before a size is measured, and the pass to measure."""

    def one_pass(rows: int) -> None:
        _one_pass(network, rows, device=device)

    def gradient(rows: int) -> None:
        one_pass(rows)
        _one_gradient(cast(Denoiser, network), rows, device=device)

    return gradient if label_gradient else one_pass, one_pass


def _one_gradient(denoiser: Denoiser, rows: int, *, device: str) -> None:
    z = torch.zeros(rows, *denoiser.image_shape, device=device)
    label = torch.zeros(rows, denoiser.num_classes, device=device, requires_grad=True)
    loss = denoiser(z, torch.ones(rows, device=device), label).square().sum()
    torch.autograd.grad(loss, label)


@torch.inference_mode()
def _one_pass(network: Denoiser | ImageClassifier, rows: int, *, device: str) -> None:
    z = torch.zeros(rows, *network.image_shape, device=device)
    sigma_model = torch.ones(rows, device=device)
    if isinstance(network, ImageNetwork):
        network(z)
    elif isinstance(network, EveryLoss):
        network.every_loss(z, sigma_model, z[:, None])
    elif isinstance(network, EveryClass):
        network.every_class(z, sigma_model)
    else:
        cast(Denoiser, network)(z, sigma_model, torch.zeros(rows, network.num_classes, device=device))
    if device == "cuda":
        torch.cuda.synchronize()
