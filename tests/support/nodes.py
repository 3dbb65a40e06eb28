"""A Ray of one node, for what runs in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pipeline.workers.ray_cluster  # noqa: F401  sets what Ray reads when it is imported: loopback only, no reports

STARTS = 3


@contextmanager
def local_ray(*, cpus: int, gpus: int = 0) -> Iterator[None]:
    """Joined by this process; its workers import what tests define.

    Ray gives a node half a minute to start, too little on a machine that does much else: it may try again.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        for left in reversed(range(STARTS)):
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    object_store_memory=256 * 2**20,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
                break
            except Exception:  # Ray raises no kind of its own
                ray.shutdown()
                if not left:
                    raise
        yield
        ray.shutdown()
