"""Who reads and writes the store for an actor: threads where a GPU would wait for it, the actor itself elsewhere."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
THREADS = 16  # an object store takes a twentieth of a second for what takes a GPU a hundredth


class AtOnce(Executor):
    """Does what it is given before it returns: a receipt then waits for nothing but its own unit."""

    def submit(self, work: Callable[..., Result], /, *arguments: Any, **named: Any) -> "Future[Result]":
        future: Future[Result] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def store_work(device: str) -> tuple[Executor, int]:
    """Who does it, and how many pieces of work to look ahead."""
    return (ThreadPoolExecutor(THREADS), 2 * THREADS) if device.startswith("cuda") else (AtOnce(), 1)
