"""Sends rows of work to a pool of Ray's actors; receipts come back as they are made."""

import hashlib
import logging
import math
import string
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa

from pipeline.declaration.config import ComputeConfig, Device
from pipeline.side_channel import Say
from pipeline.workers.pools import Pool
from pipeline.workers.ray_cluster import connect_ray, stop_on_signals
from pipeline.workers.ray_watch import watch_over_actors
from pipeline.workers.rows import rows_of

FOR_EVER = -1  # actors and nodes may die as often as they like: the watchdog gives up units, not the run
MAX_BLOCKS = 20_000
TURNS_OF_AN_ACTOR = 8  # at the least, so that none is left alone with much of the work at the end
IN_FLIGHT = 2  # the unit behind the one in work has not begun, so nothing of it is lost with its actor
MOST_OF_A_LABEL = 200

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


class ActorStartError(RuntimeError):
    """Actors cannot load what they vote with on their nodes."""


def run_once(
    function: Callable[[Argument, Device], Answer], argument: Argument, *, compute: ComputeConfig, say: Say
) -> Answer:
    """What a function gives for the device, in a process that has an actor's resources: the driver's node may have no
    GPU.

    Raises:
        ValueError: as the function raises it, or for GPUs that no node has.
    """
    import ray

    pool = connect_ray(compute, say=say)
    stop_on_signals()
    task = ray.remote(function).options(num_cpus=pool.cpus_per_actor, num_gpus=pool.gpus_per_actor or None)
    try:
        answer: Answer = ray.get(task.remote(argument, pool.device))
        return answer
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, ValueError) else error) from None


class Metrics:
    """Counts of one run among what the driver's Ray node exports for Prometheus, as ray_ndc_votes_total and so on."""

    def __init__(self, run: str) -> None:
        self.tags = {"run": label_of(run)}

    @cached_property
    def counters(self) -> dict[str, Any]:
        from ray.util.metrics import Counter

        counted = {
            "units": "units done",
            "votes": "draws that have voted",
            "evaluations": "evaluations of the network, an image and a label each",
            "failed_units": "units that failed",
        }
        return {name: Counter(f"ndc_{name}", what, tag_keys=("run",)) for name, what in counted.items()}

    def add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            if amount:
                self.counters[name].inc(amount, tags=self.tags)


def label_of(run: str) -> str:
    """A run's folder as a label that Ray and Prometheus take: of printable ASCII, and not long. Two runs have different
    labels: other characters are written as in a URL, and a long name ends with a digest."""
    name = run.encode("utf-8", "surrogatepass")
    label, digest = quote(name, safe=string.punctuation.replace("%", "") + " "), hashlib.sha256(name).hexdigest()[:16]
    return label if len(label) <= MOST_OF_A_LABEL else f"{label[: MOST_OF_A_LABEL - 17]}-{digest}"


def map_over_actors(
    rows: Sequence[dict[str, Any]],
    actor: type,
    settings: object,
    *,
    pool: Pool,
    stuck_seconds: float,
    rows_together: int = 1,
    fill: int = 1,
    say: Say,
) -> Iterator[dict[str, Any]]:
    """Maps rows over a pool of `actor(settings, heartbeat)` and yields the rows that they return, as each is there.

    An actor is sent at most `rows_together` rows at a time (more only if there are more than MAX_BLOCKS times as
    many), and fewer where there are few for each, down to the `fill` that it needs to be busy. The pool grows to its
    most as nodes come, and goes on with those that are left when nodes go.
    """
    fewest, most = (min(bound, len(rows)) for bound in (pool.fewest, pool.most))
    together = rows_of_a_call(len(rows), actors=most, rows_together=rows_together, fill=fill)
    blocks = [pa.Table.from_pylist(rows[first : first + together]) for first in range(0, len(rows), together)]
    # A block that waits behind the one in work is one that another actor lacks, if there are few.
    in_flight = min(IN_FLIGHT, max(1, len(blocks) // most))
    stop_on_signals()  # again: Ray has put handlers of its own in place, which abort
    import ray.data

    _set_up_ray_data()
    with watch_over_actors(stuck_seconds=stuck_seconds, say=say) as heartbeat, warnings.catch_warnings():
        # Ray deprecates max_restarts and max_task_retries here without another way to say them.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        receipts = ray.data.from_arrow(blocks).map_batches(
            actor,
            fn_constructor_args=(settings, heartbeat),
            # With GPUs Ray wants a number, and gathers blocks up to it: all but the last have just so many.
            batch_size=together,
            compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=in_flight),
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor or None,
            max_restarts=FOR_EVER,
            max_task_retries=FOR_EVER,
        )
        try:
            for batch in receipts.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                yield from rows_of(batch)
        except ray.exceptions.ActorDiedError as error:  # before its first unit; later ones start again
            raise ActorStartError(f"no actor can start: {last_words(error)}") from error


def last_words(error: Exception) -> str:
    """What an actor's own error said: Ray hands over nothing but the text of its traceback."""
    return str(error).strip().splitlines()[-1].partition(": ")[2]


def rows_of_a_call(rows: int, *, actors: int, rows_together: int, fill: int = 1) -> int:
    """As many as asked for, unless one of several actors would have few turns or Ray too many blocks."""
    turns = TURNS_OF_AN_ACTOR if actors > 1 else 1
    share = max(rows // (turns * actors), min(fill, rows // actors))
    return max(math.ceil(rows / MAX_BLOCKS), min(rows_together, share), 1)


def _set_up_ray_data() -> None:
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file among Ray's logs keeps everything
            handler.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.target_max_block_size = 1  # receipts flow at once instead of filling a block first
    context.execution_no_progress_timeout_s = -1  # the watch says what is stuck, and a long unit is not
