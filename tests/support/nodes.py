"""A Ray of one node beside this process, which tests join and leave."""

from pathlib import Path

import pytest

import pipeline.workers.ray_pool  # noqa: F401  sets what Ray reads when it is imported: loopback only, no reports

STARTS = 3


class RayNode:
    """Started when it is first joined. A process that was on another Ray since needs a new one: Ray Data does not find
    its way back to an earlier one.
    """

    def __init__(self, *, cpus: int) -> None:
        self.cpus, self.cluster = cpus, None

    def join(self) -> None:
        import ray

        if ray.is_initialized():  # a test that did not join it has left one
            self.stop()
        if self.cluster is None:
            self.cluster = started_cluster(cpus=self.cpus)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def stop(self) -> None:
        import ray

        ray.shutdown()
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None


def started_cluster(*, cpus: int):
    """Ray gives a node half a minute to start, too little on a machine that does much else: it may try again."""
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
                return cluster
            except Exception:  # Ray raises no kind of its own
                if not left:
                    raise
    raise AssertionError
