"""A Ray head in processes of its own, which takes jobs with a token, and `ray job` against it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
FINAL = {"SUCCEEDED", "FAILED", "STOPPED"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Head:
    """Where a head is, and what it takes to speak to it."""

    port: int
    metrics_port: int
    token: str
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, *, method: str = "GET", token: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        request = Request(self.url + path, headers=headers, method=method)
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def metrics(self, name: str) -> list[str]:
        """The lines of a metric that the head's node exports for Prometheus."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            return [line for line in answer.read().decode().splitlines() if line.startswith(name)]

    def job(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """`ray job ...`, to its end."""
        return subprocess.run(
            [str(BIN / "ray"), "job", *arguments],
            env=self.environment | {"RAY_ADDRESS": self.url} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def submit(self, job: str, working_dir: Path, *command: str, runtime_env: dict[str, Any] | None = None) -> None:
        """Submits a job and does not wait for it."""
        extra = ["--runtime-env-json", json.dumps(runtime_env)] if runtime_env else []
        where = ["--working-dir", str(working_dir), "--submission-id", job, "--no-wait"]
        done = self.job("submit", *where, *extra, "--", *command)
        assert done.returncode == 0, done.stdout + done.stderr

    def info(self, job: str) -> dict[str, Any]:
        return self.ask(f"/api/jobs/{job}")

    def log(self, job: str) -> str:
        return self.ask(f"/api/jobs/{job}/logs")["logs"]

    def end_of(self, job: str, *, within_seconds: float = 240) -> dict[str, Any]:
        deadline = time.monotonic() + within_seconds
        while (info := self.info(job))["status"] not in FINAL:
            assert time.monotonic() < deadline, f"{job} is {info['status']}: {self.log(job)}"
            time.sleep(0.2)
        return info


@contextmanager
def started_head(*, cpus: int) -> Iterator[Head]:
    """A head on loopback that asks for a token; its processes, and nothing else, end with it."""
    token, port, metrics_port = secrets.token_hex(32), free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = {"port": free_port(), "dashboard-port": port, "dashboard-agent-listen-port": free_port()}
    ports |= {"metrics-export-port": metrics_port}
    options = [f"--{name}={value}" for name, value in ports.items()]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as scratch:
        log = Path(scratch) / "head.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [
                    *(str(BIN / "ray"), "start", "--head", "--block", "--include-dashboard=true"),
                    *(f"--num-cpus={cpus}", "--object-store-memory=200000000", f"--temp-dir={scratch}/s"),
                    *("--min-worker-port=0", "--max-worker-port=0", *options),
                ],
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        head = Head(port, metrics_port, token, environment)
        try:
            _wait(head, process, log)
            yield head
        finally:
            _end(process)


def _wait(head: Head, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            head.ask("/api/jobs/")
            return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"the head did not start: {log.read_text()}")


def _end(process: subprocess.Popen) -> None:
    """Kills the head's group; workers, in groups of their own, end when their raylet does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
