"""`ndc certify` in processes of its own, on a Ray of its own or on several Ray nodes of this machine."""

import json
import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.store.run_store import RunStore
from tests.support.commands import NDC, environment
from tests.support.small_runs import small_arguments

TAG = "NDC_TEST_TAG"


class Driver:
    """A driver whose processes, Ray's included unless it joins a cluster, inherit its tag."""

    def __init__(
        self,
        workplace: Path,
        model: Path,
        folder: str,
        settings: list[str],
        *flags: str,
        cluster: "Nodes | None" = None,
        **variables: str,
    ) -> None:
        self.tag = cluster.tag if cluster else uuid.uuid4().hex
        self.log_path = workplace / f"{Path(folder).name}.log"
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [*NDC, "certify", "demo", "--run", folder, *flags, *small_arguments(model, *settings)],
                cwd=workplace,
                env=environment(
                    **variables, **{TAG: self.tag}, **({"RAY_ADDRESS": cluster.address} if cluster else {})
                ),
                stdout=log,
                stderr=log,
            )

    def actors(self) -> list[int]:
        return actors_of(self.tag)

    @property
    def log(self) -> str:
        return self.log_path.read_text()


def actors_of(tag: str) -> list[int]:
    """The processes of a tag's vote actors."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:  # gone, or not ours to read
            continue
        if b"VoteActor" in name and f"{TAG}={tag}".encode() in environment:
            processes.append(int(folder.name))
    return processes


class Nodes:
    """Ray nodes: a head that holds no actors, and workers with one CPU each."""

    def __init__(self, workers: int) -> None:
        self.tag = uuid.uuid4().hex
        self.sessions: list[Path] = []
        self.start(workers)

    def start(self, workers: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.add()  # the first is the head
        self.sessions.append(Path(self.cluster.head_node.get_session_dir_path()))
        self.workers = [self.add() for _ in range(workers)]

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self):
        """A node whose processes inherit the tag."""
        os.environ[TAG] = self.tag
        node = self.cluster.add_node(num_cpus=1)
        os.environ.pop(TAG)
        return node

    def replace(self) -> None:
        """A worker vanishes without warning, and another comes."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)
        self.workers.append(self.add())

    def drain(self, *, seconds: int) -> None:
        """A worker is told that it will be preempted, and another comes; the first goes when its time is up."""
        from ray._raylet import GcsClient

        node = self.workers.pop(0)
        deadline_ms = int(1000 * (time.time() + seconds))
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, 2, "preempted", deadline_ms)
        assert accepted, why
        self.workers.append(self.add())
        time.sleep(seconds)
        self.cluster.remove_node(node, allow_graceful=False)

    def restart(self) -> None:
        """All nodes go, the head too, and others come."""
        workers = len(self.workers)
        self.stop()
        self.start(workers)

    def stop(self) -> None:
        for node in self.cluster.list_all_nodes()[::-1]:
            self.cluster.remove_node(node, allow_graceful=False)

    def events(self) -> Iterator[dict]:
        """What the actors logged."""
        for session in self.sessions:
            for path in (session / "logs").glob("worker-*.err"):
                for line in path.read_text(errors="replace").splitlines():
                    if line.startswith('{"time"'):
                        yield json.loads(line)


def published(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in RunStore(folder).evidence_files()}


def begun(nodes: Nodes, folder: Path) -> Counter:
    """How often each unit of a run was begun."""
    return Counter(
        event["unit_id"] for event in nodes.events() if event["event"] == "begin" and event["run"] == str(folder)
    )
