"""The one place where Ray is wired: rows of work go to a pool of actors, receipts come back as they are made."""

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from pipeline.config import ComputeConfig
from pipeline.votes import rows_of

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets every other process push in front of the actors
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the driver's terminal is for progress

ACTOR_RESTARTS, TASK_RETRIES = 20, 3
MAX_BLOCKS = 20_000
TURNS_OF_AN_ACTOR = 8  # at the least, so that none is left alone with much of the work at the end
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def stop_on_signals() -> None:
    """Lets SIGTERM stop a run as Ctrl-C does: both leave it to be resumed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _interrupt)


def connect_ray(compute: ComputeConfig) -> int:
    """Joins the cluster of RAY_ADDRESS, or starts a local one on loopback; returns the number of actors."""
    import ray

    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # One CPU more than the actors take: without a free one, Ray Data's own tasks never start.
            cpus = len(os.sched_getaffinity(0))
            actors = compute.actors or max(1, cpus // compute.threads_per_actor)
            ray.init(
                address="local",
                num_cpus=actors * compute.threads_per_actor + 1,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return actors
    if compute.actors:
        return compute.actors
    resources = ray.cluster_resources()
    if compute.gpus_per_actor:
        return max(1, int(resources.get("GPU", 0) / compute.gpus_per_actor))
    return max(1, int((resources.get("CPU", 1) - 1) / compute.threads_per_actor))


def stream(
    rows: Sequence[dict[str, Any]], actor: type, settings: object, *, compute: ComputeConfig, rows_together: int = 1
) -> Iterator[dict[str, Any]]:
    """Maps rows over a pool of `actor(settings)` and yields the rows that they return, as soon as each is there.

    An actor is sent at most `rows_together` rows at a time, and fewer where there are few for each.
    """
    actors = min(connect_ray(compute), len(rows))
    blocks = min(len(rows), MAX_BLOCKS, max(math.ceil(len(rows) / rows_together), TURNS_OF_AN_ACTOR * actors))
    stop_on_signals()  # again: Ray has put handlers of its own in place, which abort
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file among Ray's logs keeps everything
            handler.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.target_max_block_size = 1  # receipts flow at once instead of filling a block first
    context.execution_no_progress_timeout_s = -1  # a long unit is not a stuck one
    with warnings.catch_warnings():
        # Ray deprecates these two without another way to say them, and its defaults would retry a unit that
        # kills its actor for ever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        receipts = ray.data.from_items(list(rows), override_num_blocks=blocks).map_batches(
            actor,
            fn_constructor_args=(settings,),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=compute.threads_per_actor,
            num_gpus=compute.gpus_per_actor or None,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=TASK_RETRIES,
        )
    for batch in receipts.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        yield from rows_of(batch)
