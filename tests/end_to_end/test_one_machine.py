"""A run on a Ray of this machine: only this machine reaches it, Ctrl-C stops it, and it tells nobody a secret."""

import re
import shutil
import signal
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

from pipeline.locations import location
from pipeline.store.run_store import RunStore
from tests.end_to_end.test_security import SECRETS
from tests.support.commands import ndc
from tests.support.drivers import TAG, Driver
from tests.support.in_process import replace_ray
from tests.support.servers import s3_environment

LONGER = ["dataset.limit=7", "votes.estimation=400", "votes.per_unit=100", "compute.actors=2"]  # 35 units of 0.3 s
LISTENING = "0A"
# 127.0.0.1, the same as a kind of IPv6, and ::1, in the words of the kernel.
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def processes_of(tag: str) -> list[Path]:
    """Ray's processes of a driver, and the driver."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone, or not ours to read
            if f"{TAG}={tag}".encode() in (folder / "environ").read_bytes():
                processes.append(folder)
    return processes


def sockets_of(process: Path) -> Iterator[str]:
    """The inodes of a process's sockets."""
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                yield from re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink()))


def listening() -> dict[str, str]:
    """The address, as the kernel writes it, of every socket that listens, by inode."""
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    return {fields[9]: fields[1].partition(":")[0] for fields in lines if fields[3] == LISTENING}


def listeners_of(tag: str) -> set[tuple[str, str]]:
    """Each process of a driver that listens, with the address."""
    sockets = listening()
    return {
        (process.name, sockets[inode])
        for process in processes_of(tag)
        for inode in sockets_of(process)
        if inode in sockets
    }


@dataclass(frozen=True)
class StoppedRun:
    """A run in a bucket, stopped with Ctrl-C after some units; Ray's files are in `rays`."""

    driver: Driver
    folder: str
    workplace: Path
    rays: Path
    variables: dict[str, str]
    listeners: set[tuple[str, str]]


@pytest.fixture(scope="module")
def stopped(
    tiny_model: Path, s3_endpoint: str, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoppedRun]:
    workplace, folder = tmp_path_factory.mktemp("machine"), f"s3://bucket/{uuid.uuid4().hex}/run"
    shutil.copy(mlflow_database, workplace)
    # A path that is short enough for Ray's sockets.
    with (
        tempfile.TemporaryDirectory(prefix="n", dir="/tmp", ignore_cleanup_errors=True) as rays,
        pytest.MonkeyPatch.context() as patch,
    ):
        variables = {**s3_environment(s3_endpoint), **SECRETS, "RAY_TMPDIR": rays}
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(use_listings_cache=False).makedirs("bucket", exist_ok=True)
        driver = Driver(workplace, tiny_model, folder, LONGER, **variables)
        while driver.process.poll() is None and len(RunStore(folder).evidence_files()) < 5:
            time.sleep(0.1)
        assert driver.process.poll() is None, driver.log
        listeners = listeners_of(driver.tag)
        driver.process.send_signal(signal.SIGINT)
        driver.process.wait(60)
        yield StoppedRun(driver, folder, workplace, Path(rays), variables, listeners)


def test_its_processes_listen_on_loopback_only(stopped: StoppedRun) -> None:
    assert len({process for process, _ in stopped.listeners}) >= 4, "the store of names, the raylet and two actors"
    assert [address for _, address in stopped.listeners if address not in LOOPBACK] == []


def test_ctrl_c_leaves_it_to_be_resumed(stopped: StoppedRun) -> None:
    assert stopped.driver.process.returncode == 130, stopped.driver.log
    assert f"Run `ndc certify {stopped.folder}` to go on." in stopped.driver.log
    assert "Traceback" not in stopped.driver.log


def test_no_secret_of_the_environment_is_in_what_it_writes_or_says(
    stopped: StoppedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder in a store, MLflow's database and artifacts, the drivers' words, Ray's logs."""
    monkeypatch.chdir(stopped.workplace)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    replace_ray(monkeypatch)
    done = ndc("certify", stopped.folder, **stopped.variables)
    assert done.returncode == 0, done.stderr
    assert "Certified accuracy" in done.stdout
    assert f"Report: {stopped.folder}/report.html" in done.stdout
    store = location(stopped.folder)
    kept = {name: store.fs.cat_file(name) for name in store.fs.find(store.path)}
    assert len(kept) >= 10
    files = [path for place in (stopped.workplace, stopped.rays) for path in place.rglob("*")]
    kept |= {str(path): path.read_bytes() for path in files if path.is_file() and not path.is_symlink()}
    assert any("worker-" in name for name in kept)
    assert any(name.endswith("mlflow.db") for name in kept)
    database = sqlite3.connect(stopped.workplace / "mlflow.db")
    assert database.execute("select count(*) from runs").fetchone() == (1,)
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert stopped.driver.log_path.name in {Path(name).name for name in kept}
    for secret in SECRETS.values():
        assert [name for name, content in (kept | said).items() if secret.encode() in content] == []
