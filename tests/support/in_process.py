"""A pool of one actor in this process, in Ray's place: what a driver does around its votes needs no cluster.

A run on Ray costs a dozen seconds of a core, most of them for processes that import what this one has. What Ray itself
does with actors, nodes and GPUs is tested on Ray: tests/end_to_end.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from pipeline.declaration.config import ComputeConfig
from pipeline.driver import attack, certify, plan, prepare
from pipeline.sweep import run as sweep_run
from pipeline.workers.compute import why_no_cuda
from pipeline.workers.pools import Node, Pool, pool_of
from pipeline.workers.ray_pool import Metrics
from pipeline.workers.rows import rows_of

CPUS = 3


def rows_through_an_actor(
    rows: Sequence[dict[str, Any]], actor: type, settings: object, *, rows_together: int = 1, **_: object
) -> Iterator[dict[str, Any]]:
    """`map_over_actors` with one actor, which is told what Ray would have to send to it."""
    actor, settings, rows = pickle.loads(pickle.dumps((actor, settings, list(rows))))
    vote = actor(settings)
    for first in range(0, len(rows), rows_together):
        together = rows[first : first + rows_together]
        answers = vote({name: np.array([row[name] for row in together], dtype=object) for name in rows[0]})
        for columns in [answers] if isinstance(answers, dict) else answers:
            yield from rows_of(columns)


@contextmanager
def stopped_after(units: int) -> Iterator[None]:
    """Ctrl-C reaches a driver of this process when it has so many receipts, on Ray or not."""
    stream_all = certify.stream_receipts

    def stopped(*arguments: Any, **where: Any) -> Iterator[Any]:
        for number, receipt in enumerate(stream_all(*arguments, **where)):
            if number == units:
                raise KeyboardInterrupt
            yield receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "stream_receipts", stopped)
        yield


def replace_ray(patch: pytest.MonkeyPatch, *, gpus: int = 0) -> None:
    """Lets all drivers use this process as if it were a Ray node with that many GPUs."""

    def pool_here(compute: ComputeConfig, **_: object) -> Pool:
        return pool_of(compute, [Node(CPUS, gpus)], why_no_cuda=lambda _: why_no_cuda())

    def pools_here(computes: Sequence[ComputeConfig], **_: object) -> None:
        for compute in computes:
            pool_here(compute)

    def called_here(function: Callable[[Any, str], Any], argument: Any, *, compute: ComputeConfig, **_: object) -> Any:
        return function(argument, pool_here(compute).device)

    for module in (attack, certify, plan):
        patch.setattr(module, "connect_ray", pool_here)
    for module in (attack, certify):
        patch.setattr(module, "map_over_actors", rows_through_an_actor)
    patch.setattr(prepare, "run_once", called_here)
    patch.setattr(sweep_run, "connect_most", pools_here)
    patch.setattr(Metrics, "add", lambda self, **amounts: None)
