"""Where no Ray can be joined or started, an error says so within seconds, with the remedy."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner

import pipeline.driver.attack
import pipeline.sweep.run  # noqa: F401  (with all that takes `prepare` by its name, before a test replaces it)
from pipeline.cli import commands as cli
from pipeline.declaration.config import ComputeConfig
from pipeline.workers import ray_address
from pipeline.workers import ray_cluster as cluster
from pipeline.workers.ray_address import (
    PREFACE,
    RayAddressError,
    check_cluster,
    check_folder,
    check_ray,
    cluster_address,
    lend_token,
    ray_folder,
)

NOBODY = 65534


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """A listener that gives this answer, or none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as link:
                link.recv(len(PREFACE))
                if answer is None:
                    time.sleep(5)
                else:
                    link.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("value", "means"),
    [("", None), ("  ", None), ("local", None), (" local\n", None), (" 10.0.0.1:6379 ", "10.0.0.1:6379")],
)
def test_spaces_around_an_address_mean_nothing(monkeypatch: pytest.MonkeyPatch, value: str, means: str | None) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == means


def test_an_address_with_nothing_behind_it_is_refused_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setenv("RAY_ADDRESS", f" {free_address()} ")
    with pytest.raises(RayAddressError, match=r"RAY_ADDRESS=127.* does not answer \(.*refused\).*unset RAY_ADDRESS"):
        check_ray()
    monkeypatch.setattr(ray_address, "ANSWERING_SECONDS", 0.3)
    with server(None) as silent, pytest.raises(RayAddressError, match="gives no answer in 0 s"):
        check_cluster(silent)
    assert time.monotonic() - began < 10


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(RayAddressError, match=r"does not answer|gives no answer"):
        check_cluster("no-such-host.invalid:6379")


def test_what_answers_must_be_the_head_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with server(settings) as head:
        check_cluster(head)
    for other in (b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b""):
        with server(other) as address, pytest.raises(RayAddressError, match="not as the head of a Ray cluster does"):
            check_cluster(address)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(b"") as encrypted:
        check_cluster(encrypted)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "a Ray Client's address.*submit this one, `ray job submit"),
        ("http://127.0.0.1:8265", "a URL, as `ray job` takes it.*RAY_ADDRESS=auto on a node"),
        ("head", "not of the form HOST:PORT"),
        ("head:http", "not of the form HOST:PORT"),
        (":6379", "not of the form HOST:PORT"),
        ("127.0.0.1:99999", "does not answer"),
    ],
)
def test_an_address_of_another_kind_is_refused_in_one_line(address: str, message: str) -> None:
    with pytest.raises(RayAddressError, match=message) as caught:
        check_cluster(address)
    assert "\n" not in str(caught.value)


def test_auto_asks_the_cluster_that_was_started_here_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_cluster("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"{free_address()}\n")
    with pytest.raises(RayAddressError, match=r"auto means 127.* by .*/ray_current_cluster, and does not answer"):
        check_cluster("auto")


def test_an_error_while_joining_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch:\n    Ray 2.40 and 2.60\n    Python 3.11 and 3.12")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with server(bytes([0, 0, 0, 4])) as head:
        monkeypatch.setenv("RAY_ADDRESS", head)
        with pytest.raises(RayAddressError, match=f"{head} cannot be joined: RuntimeError: Version mismatch:$"):
            cluster.connect_ray(ComputeConfig(), say=print)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(RayAddressError, match=r"cannot be started on this machine: RuntimeError: Version mismatch:$"):
        cluster.connect_ray(ComputeConfig(), say=print)


BLOCKED = """
import ctypes, signal, sys
from pipeline.workers.signals import heard
signal.signal(signal.SIGTERM, signal.default_int_handler)
mutex = ctypes.create_string_buffer(64)
with heard(within_seconds=float(sys.argv[1]), doing="waiting for a lock"):
    print("began", flush=True)
    for _ in range(2):  # the second never ends, and blocks signals
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a lock of glibc")
@pytest.mark.parametrize(("seconds", "number", "code"), [("60", 2, 130), ("60", 15, 130), ("0.2", None, 1)])
def test_a_process_in_a_library_that_blocks_signals_ends_within_seconds(
    seconds: str, number: int | None, code: int
) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", BLOCKED, seconds], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    time.sleep(1)  # until it is blocked
    began = time.monotonic()
    if number:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert time.monotonic() - began < 3
    assert "waiting for a lock" in errors


def test_signals_reach_a_process_that_no_library_blocks() -> None:
    code = (
        "import os\nfrom pipeline.workers.signals import heard\n"
        "try:\n  with heard(within_seconds=60, doing='x'):\n    os.kill(os.getpid(), 2)\n    while True: pass\n"
        "except KeyboardInterrupt: print('heard')\nwith heard(within_seconds=60, doing='x'): pass\nprint('again')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["heard", "again"], "")


def test_a_folder_too_long_for_sockets_is_refused_with_a_length_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "ä" * 30)
    with pytest.raises(RayAddressError, match=r"too long a path .* set RAY_TMPDIR .* at most (\d+) bytes") as caught:
        check_folder()
    safe = int(re.search(r"at most (\d+) bytes", str(caught.value))[1])
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short + "/" + "x" * (safe - len(short) - 1))
        check_folder()
    assert ray_folder().name == "ray"


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", short)
    check_folder()
    assert list(Path(short).iterdir()) == [], "the check leaves nothing behind"
    Path(short, "ray").write_text("")
    with pytest.raises(RayAddressError, match=rf"Ray cannot write to {short}/ray \(Not a directory\).*set RAY_TMPDIR"):
        check_folder()
    Path(short, "ray").unlink()
    Path(short).rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_folder_is_named() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        Path(short).chmod(0o755)
        Path(short, "ray").mkdir(mode=0o755)
        code = (
            "import os; from pipeline.workers.ray_address import check_folder\n"
            f"os.setgid({NOBODY}); os.setuid({NOBODY})\ncheck_folder()"
        )
        environment = os.environ | {"RAY_TMPDIR": short}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert f"RayAddressError: Ray cannot write to {short}/ray (Permission denied)" in done.stderr


def no_home(_: object = None) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_home_that_cannot_be_written_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert "for this run only: it cannot be kept at home" in lend_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert lend_token() == "", "a token that is given is used"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setattr(Path, "home", no_home)
    assert "Could not determine home directory" in lend_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert lend_token() == ""


def test_a_home_that_can_be_written_keeps_rays_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lend_token() == ""
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_run_without_its_cluster_ends_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setattr("pipeline.driver.prepare.prepare", lambda *_, **__: pytest.fail("work was begun"))
    done = CliRunner().invoke(cli.main, ["certify", "demo", "--run", "run"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: RAY_ADDRESS=ray://head:10001 is a Ray Client's address")
    assert done.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_there_is_a_run_promises_no_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.driver.services.check_services", lambda configs: None)
    monkeypatch.setattr("pipeline.driver.prepare.prepare", stop)
    done = CliRunner().invoke(cli.main, ["certify", "demo", "--run", "run"])
    assert done.exit_code == 130
    assert done.output == "\nstopped before any vote was drawn: run holds nothing yet.\n"
    monkeypatch.setattr("pipeline.driver.plan.plan_run", stop)
    done = CliRunner().invoke(cli.main, ["plan", "demo"])
    assert (done.exit_code, done.output) == (130, "\nstopped\n")
