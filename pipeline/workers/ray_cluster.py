"""The Ray that a run works on: joined where RAY_ADDRESS names one, started on this machine elsewhere."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import FrameType
from typing import Any, NoReturn

from ndc_core.cores import usable_cores
from pipeline.declaration.config import ComputeConfig
from pipeline.side_channel import Say, SideChannel, in_one_line
from pipeline.workers.compute import why_no_cuda
from pipeline.workers.pools import Node, Pool, pool_of
from pipeline.workers.ray_address import RayAddressError, check_ray, cluster_address, lend_token
from pipeline.workers.signals import heard
from pipeline.workers.stderr_filter import without_lines

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's 15, every other process goes before the actors
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the driver's terminal is for progress
RAYS_NOTE = b"logging.cc:"  # Ray notes the level on that terminal

if (cluster_address() or "127.").startswith(("127.", "localhost", "[::1]")):
    # Without a cluster, all processes of Ray bind to loopback only; Ray reads the variable when it is imported.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
SECONDS_TO_A_GPU = 20.0  # after which the driver says that it waits for one
# What leads actors to stores and is no secret: Ray shows a job's environment to all who see its dashboard.
HANDED_ON = (
    *("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    *("HF_ENDPOINT", "HF_HUB_OFFLINE"),
)

JOINING_SECONDS = 60.0  # of a Ray that answers


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def stop_on_signals() -> None:
    """Lets SIGTERM stop a run as Ctrl-C does: both leave it to be resumed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _interrupt)


def connect_ray(compute: ComputeConfig, *, say: Say) -> Pool:
    """Joins the cluster of RAY_ADDRESS, or starts a local one; gives the pool of actors to hold there.

    Raises:
        RayAddressError: no Ray can be joined or started.
        ValueError: GPUs are asked for, and there are none and none will come, or none that torch can use.
    """
    _connect(compute, say=say)
    pool = pool_of(compute, _nodes(), why_no_cuda=lambda gpus: _why_no_cuda(gpus, say))
    open_to_gpus = compute.device == "auto" and compute.gpus_per_actor is None
    if cluster_address() and open_to_gpus and not pool.remarks:
        later = (
            "no GPU on this cluster now, so actors take CPUs; with compute.gpus_per_actor = 1 they wait for GPU nodes"
        )
        return replace(pool, remarks=(later,))
    return pool


def _connect(compute: ComputeConfig, *, say: Say) -> None:
    import ray

    if ray.is_initialized():
        return
    check_ray()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with without_lines(RAYS_NOTE):
        if address := cluster_address():
            _join(address, quiet, say)
        else:
            _start_local(compute, quiet, say)
    _keep_retries_off_the_terminal()
    stop_on_signals()  # again: Ray has put handlers of its own in place


@cache
def _keep_retries_off_the_terminal() -> None:
    """Ray prints that the task of an actor that died, or that a stopped run killed, is tried again; the run says what
    matters of that itself (`watchdog`). Ray has no setting for it."""
    from ray._private import worker

    if shown := getattr(worker, "print_to_stdstream", None):

        def without_retries(data: dict[str, Any], *args: Any, **options: Any) -> None:
            lines = [line for line in data["lines"] if "retries remaining" not in line]
            if lines:
                shown({**data, "lines": lines}, *args, **options)

        worker.print_to_stdstream = without_retries


def _nodes() -> list[Node]:
    import ray

    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


@cache
def _looking_for_cuda(gpus: float, session: str) -> Any:
    import ray

    return ray.remote(why_no_cuda).options(num_cpus=0, num_gpus=gpus).remote()


def _why_no_cuda(gpus: float, say: Say) -> str:
    """Why torch cannot use so much of a GPU where Ray places an actor with it; looked up once in a session of Ray."""
    import ray

    looking = _looking_for_cuda(gpus, ray.get_runtime_context().get_node_id())
    if not ray.wait([looking], timeout=SECONDS_TO_A_GPU)[0]:
        say("waiting for a GPU: all are taken by other jobs, or torch takes long to start there")
    why: str = ray.get(looking)
    return why


def connect_most(computes: Sequence[ComputeConfig], *, say: Say) -> None:
    """Joins or starts a Ray for several runs in turn: it has room for the actors of each.

    Raises:
        ValueError: see `connect_ray`.
    """
    _connect(max(computes, key=lambda compute: _actors(compute) * compute.threads_per_actor), say=say)
    for compute in dict.fromkeys(computes):
        connect_ray(compute, say=say)


def _actors(compute: ComputeConfig) -> int:
    """The most actors, on this machine alone."""
    most = compute.actors[1] if isinstance(compute.actors, tuple) else compute.actors
    return most or max(1, usable_cores() // compute.threads_per_actor)


def _start_local(compute: ComputeConfig, quiet: dict[str, Any], say: Say) -> None:
    import ray

    if done := lend_token():
        say(done)
    with _starting("Ray cannot be started on this machine"):
        # One CPU more than the actors take: without a free one, Ray Data's own tasks never start.
        ray.init(
            address="local",
            num_cpus=_actors(compute) * compute.threads_per_actor + 1,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )


def _join(address: str, quiet: dict[str, Any], say: Say) -> None:
    import ray

    doing = f"joining the Ray cluster at {address}"
    with (
        _starting(f"the Ray cluster at {address} cannot be joined"),
        heard(within_seconds=JOINING_SECONDS, doing=doing),
    ):
        joined = ray.init(address=address, **quiet, **_environment())
    with SideChannel("the dashboard's address", say):
        link = joined.dashboard_url
        say(f"on the Ray cluster whose dashboard is http://{link}" if link else "on a Ray cluster")


@contextmanager
def _starting(failure: str) -> Iterator[None]:
    """Turns what Ray raises, of many kinds and with many lines, into one."""
    stop_on_signals()
    try:
        yield
    except SystemExit:  # Ray's answer to SIGTERM
        raise KeyboardInterrupt from None
    except Exception as error:
        raise RayAddressError(f"{failure}: {in_one_line(error)}") from error


def _environment() -> dict[str, Any]:
    """What a driver outside of a Ray job hands on to its actors; a job has a runtime environment of its own."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    variables = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return {"runtime_env": {"env_vars": variables}} if variables else {}
