"""The watch over a run's actors on Ray: their heartbeats, and the end of those that hang.

Actors and short tasks import this module, so it imports neither torch nor pyarrow.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.side_channel import Say, SideChannel
from pipeline.workers.watchdog import ActorProcess, Heartbeat, Watchdog

SECONDS_BETWEEN_WATCHES = 5.0


class RayHeartbeat(Heartbeat):
    """An actor's heartbeat, told to the watchdog beside the driver."""

    def __init__(self, watchdog: Any) -> None:
        self.watchdog = watchdog

    @property
    def actor(self) -> str | None:
        import ray

        return ray.get_runtime_context().get_actor_id()

    def arrive(self) -> None:
        import ray

        self.watchdog.arrive.remote(self.actor, ActorProcess(ray.get_runtime_context().get_node_id(), os.getpid()))

    def _attempts(self, unit: str) -> int:
        import ray

        attempts: int = ray.get(self.watchdog.begin.remote(self.actor, unit))
        return attempts

    def end(self, unit: str) -> None:
        self.watchdog.end.remote(self.actor, unit)


@contextmanager
def watch_over_actors(*, stuck_seconds: float, say: Say) -> Iterator[RayHeartbeat]:
    """A heartbeat for actors; those that are at a unit and silent for too long are replaced, and the driver says so.

    The journals end with the driver, beside which they are kept.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    watchdog: Any = ray.remote(Watchdog).options(num_cpus=0, scheduling_strategy=_on(here)).remote()
    ended, channel = threading.Event(), SideChannel("the watch over actors that hang", say)

    def watch() -> None:
        while not ended.wait(min(SECONDS_BETWEEN_WATCHES, stuck_seconds / 4)):
            with channel, suppress(ray.exceptions.RayError):  # Ray is going down, or the node is gone with the actor
                for stuck in ray.get(watchdog.stuck.remote(stuck_seconds)):
                    # From outside the process, which may not answer; Ray starts the actor again.
                    kill = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=_on(stuck.place.node))
                    if ray.get(kill.remote(stuck.place.process)):
                        say(f"stuck for {stuck.seconds:,.0f} s at {'; '.join(stuck.units)}: its actor is replaced")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield RayHeartbeat(watchdog)
    finally:
        ended.set()
        thread.join()
        ray.kill(watchdog)


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _kill(process: int) -> bool:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
