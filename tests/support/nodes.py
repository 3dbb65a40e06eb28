"""A Ray of one node beside this process, which tests join and leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pipeline.workers.ray_pool  # noqa: F401  sets what Ray reads when it is imported: loopback only, no reports

STARTS = 3


@contextmanager
def started_node(*, cpus: int) -> Iterator[str]:
    """Its address. Ray gives a node half a minute to start, too little on a machine that does much else: it may try
    again.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # workers import what tests define
        for left in reversed(range(STARTS)):
            cluster = Cluster()
            try:
                cluster.add_node(
                    num_cpus=cpus, object_store_memory=256 * 2**20, include_dashboard=False, include_log_monitor=False
                )
                break
            except Exception:  # Ray raises no kind of its own
                if not left:
                    raise
    yield cluster.address
    cluster.shutdown()
