"""Runs in an object store: an imitation of S3 in the quick tests, a real S3 server (Ceph) in the slow ones."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
import s3fs

from pipeline.locations import location
from pipeline.store.run_store import RunStore
from tests.end_to_end.test_run import evidence_of
from tests.support.commands import NDC, environment, ndc
from tests.support.in_process import replace_ray, stopped_after
from tests.support.servers import Wire, s3_environment
from tests.support.small_runs import computed, small_arguments, small_config

CEPH = Path(os.environ.get("NDC_CEPH_S3", Path(__file__).parents[3] / "shared/tools/ceph-s3"))
CEPH_PORTS = {"CEPH_S3_PORT": "9113", "CEPH_MON_PORT": "6799"}
# 25 units of about 0.2 s: long enough to be hit.
LONGER = ["dataset.limit=5", "votes.estimation=400", "votes.per_unit=100"]

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not CEPH.is_file():
        pytest.skip(f"needs a real S3 server: {CEPH} is missing; set NDC_CEPH_S3 to the tool that starts one")
    state = str(tmp_path_factory.mktemp("ceph"))
    subprocess.run([CEPH, "up", state], env=os.environ | CEPH_PORTS, check=True, capture_output=True)
    yield f"http://127.0.0.1:{CEPH_PORTS['CEPH_S3_PORT']}"
    subprocess.run([CEPH, "down", state], check=True)


@pytest.fixture(params=["imitation", pytest.param("ceph", marks=pytest.mark.slow)])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A way to the server that can be cut; the environment leads through it, and there is a bucket."""
    endpoint = urlparse(request.getfixturevalue("ceph" if request.param == "ceph" else "s3_endpoint"))
    wire_to_store = Wire(str(endpoint.hostname), int(endpoint.port or 0))
    for name, value in s3_environment(wire_to_store.endpoint).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(use_listings_cache=False).makedirs("bucket", exist_ok=True)
    yield wire_to_store
    wire_to_store.close()


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """What a run on a disk counts."""
    place = tmp_path_factory.mktemp("undisturbed")
    computed(small_config(tiny_model, *LONGER), place / "run")
    return evidence_of(location(place / "run"))


def certify(model: str | Path, run: str, *settings: str, **variables: str) -> subprocess.Popen[str]:
    command = [*NDC, "certify", "demo", "--run", run, *small_arguments(Path(model), *settings, f'model="{model}"')]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(**variables), stdout=pipe, stderr=pipe, text=True)


def wait_for_evidence(run: str, units: int, process: subprocess.Popen[str]) -> None:
    store = RunStore(run)
    while len(store.evidence_files()) < units:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def finished(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def interrupt(model: str, run: str) -> None:
    """A driver of this process meets Ctrl-C."""
    settings = small_arguments(Path(model), *LONGER, f'model="{model}"')
    with pytest.MonkeyPatch.context() as patch, stopped_after(5):
        replace_ray(patch)
        assert ndc("certify", "demo", "--run", run, *settings).returncode == 130


def kill(model: str, run: str) -> None:
    process = certify(model, run, *LONGER)
    wait_for_evidence(run, 5, process)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("stop", [interrupt, pytest.param(kill, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed_with_the_counts_of_an_undisturbed_one(
    stop: Callable[[str, str], None],
    wire: Wire,
    tiny_model: Path,
    undisturbed: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run folder, model and data are all in the object store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = f"s3://bucket/{tmp_path.name}/größe"
    location(place).fs.put(str(tiny_model), f"{place}/model", recursive=True)
    stop(f"{place}/model", f"{place}/run")
    kept = len(RunStore(f"{place}/run").evidence_files())
    replace_ray(monkeypatch)
    resumed = ndc("certify", f"{place}/run")
    assert resumed.returncode == 0, resumed.stderr
    assert 5 <= kept < 25
    assert "going on at" in resumed.stderr
    assert evidence_of(location(f"{place}/run")) == undisturbed
    assert len(list((tmp_path / "cache/ndc/models").iterdir())) == 1


@pytest.mark.slow
def test_a_server_that_vanishes_leaves_a_run_to_be_resumed(
    wire: Wire, tiny_model: Path, undisturbed: dict, tmp_path: Path
) -> None:
    run = f"s3://bucket/{tmp_path.name}/run"
    process = certify(tiny_model, run, *LONGER)
    wait_for_evidence(run, 5, process)
    wire.cut()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"does not answer at {wire.endpoint}" in errors
    assert f"run `ndc certify {run}` to go on" in errors
    assert "Traceback" not in errors
    wire.mend()
    kept = len(RunStore(run).evidence_files())
    assert 5 <= kept < 25
    finished(certify(tiny_model, run, *LONGER))
    assert evidence_of(location(run)) == undisturbed


@pytest.mark.slow
def test_refused_credentials_end_before_any_work_and_right_ones_go_on(
    ceph: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only the real server refuses any."""
    for name, value in s3_environment(ceph).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(use_listings_cache=False).makedirs("bucket", exist_ok=True)
    run = f"s3://bucket/{tmp_path.name}/refused"
    for variables in ({"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}):
        process = certify(tiny_model, run, **variables)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "refused" in errors
        assert "check AWS_ACCESS_KEY_ID" in errors
        assert "testsecret123" not in errors
        assert "wrong" not in errors
    assert not location(run).exists()
    finished(certify(tiny_model, run))
    assert len(RunStore(run).evidence_files()) == 12
