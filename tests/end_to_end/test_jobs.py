"""`ray job submit -- ndc certify ...` against a real head that asks for a token."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.workers.vote_actor import VoteActor
from tests.end_to_end.test_run import evidence_of
from tests.pipeline.workers.test_vote_actor import batch_of, declared, receipts_of, settings_of
from tests.support.drivers import published
from tests.support.ray_head import Head, started_head
from tests.support.servers import s3_environment
from tests.support.small_runs import small_config

LONGER = ["dataset.limit=10", "votes.estimation=400", "votes.per_unit=100"]  # 50 units of 0.3 s
RAY_KILLS_AFTER_SECONDS = 3.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head(cpus=3) as started:
        yield started


def workplace(folder: Path, model: Path, *assignments: str) -> Path:
    """A folder to submit, with a run's description in it: Ray copies it to the node of the driver."""
    folder.mkdir()
    (folder / "small.toml").write_text(small_config(model, *assignments).to_toml())
    return folder


def undisturbed(model: Path, folder: Path) -> dict[str, tuple]:
    """The evidence of a run that one actor computes in this process."""
    run = declared(small_config(model, *LONGER), folder)
    receipts_of(VoteActor(settings_of(run, folder)), batch_of(run, run.units.values()))
    evidence = RunStore(folder).all_evidence(fingerprint=run.fingerprint)
    return {str(item.unit): (item.votes, item.evaluations) for item in evidence}


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_a_run_that_another_job_finishes(
    head: Head, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    work = workplace(tmp_path / "work", tiny_model, *LONGER)
    command = ("ndc", "certify", "small.toml", "--run", str(run))
    head.submit("first", work, *command)
    while len(published(run)) < 10:
        assert head.info("first")["status"] in ("PENDING", "RUNNING"), head.log("first")
        time.sleep(0.1)
    head.ask("/api/jobs/first/stop", method="POST")
    stopped = time.monotonic()
    while (run / "lease.json").exists():  # what a driver lets go of last
        time.sleep(0.02)
        assert time.monotonic() - stopped < RAY_KILLS_AFTER_SECONDS, head.log("first")
    assert head.end_of("first")["status"] == "STOPPED"
    assert f"Run `ndc certify {run}` to go on." in head.log("first")
    kept = published(run)
    assert 10 <= len(kept) < 50

    head.submit("second", work, *command)
    while not (counted := head.metrics("ray_ndc_votes_total")):
        assert head.info("second")["status"] in ("PENDING", "RUNNING"), "it ended, and Prometheus was told nothing"
        time.sleep(0.2)
    assert f'run="{run}"' in counted[0]
    assert float(counted[0].split()[-1]) > 0
    assert head.end_of("second")["driver_exit_code"] == 0, head.log("second")
    assert "going on at" in head.log("second")
    final = published(run)
    assert {path: final[path] for path in kept} == kept, "published evidence was computed again"
    assert evidence_of(run) == undisturbed(tiny_model, tmp_path / "whole")


def test_a_job_that_fails_has_the_exit_code_of_ndc_and_says_why(head: Head, tiny_model: Path, tmp_path: Path) -> None:
    work = workplace(tmp_path / "work", tiny_model)
    head.submit("unknown-key", work, "ndc", "certify", "small.toml", "--set", "votes.many=1")
    head.submit("unknown-option", work, "ndc", "certify", "--nonsense")
    for job, code, message in (
        ("unknown-key", 1, "Error: small.toml: unknown key votes.many"),
        ("unknown-option", 2, "No such option"),
    ):
        end = head.end_of(job)
        assert (end["status"], end["driver_exit_code"]) == ("FAILED", code), head.log(job)
        assert message in head.log(job)


@pytest.mark.slow
def test_a_jobs_environment_reaches_its_driver_and_its_actors(
    head: Head, tiny_model: Path, tmp_path: Path, s3: str, s3_endpoint: str
) -> None:
    """The actors publish to a store that only the environment leads to."""
    database = tmp_path / "tracking.db"
    variables = s3_environment(s3_endpoint) | {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    work = workplace(tmp_path / "work", tiny_model, "compute.actors=2")
    command = ("ndc", "certify", "small.toml", "--run", f"{s3}/run")
    head.submit("in-s3", work, *command, runtime_env={"env_vars": variables})
    assert head.end_of("in-s3")["driver_exit_code"] == 0, head.log("in-s3")
    assert len(RunStore(location(f"{s3}/run")).evidence_files()) == 12
    assert (location(s3) / "run/report.html").exists()
    assert database.is_file()
    for part in ("12 units, 200 votes", "Certified accuracy", f"Report: {s3}/run/report.html"):
        assert part in head.log("in-s3")


@pytest.mark.slow
def test_ray_job_itself_submits_follows_and_reports_with_the_right_token_only(head: Head, tmp_path: Path) -> None:
    arguments = ("submit", "--working-dir", str(tmp_path), "--", "ndc", "--version")
    right, wrong = head.job(*arguments), head.job(*arguments, RAY_AUTH_TOKEN="0" * 64)
    assert right.returncode == 0
    assert "ndc, version" in right.stdout
    assert wrong.returncode == 1
    assert "Invalid authentication token" in wrong.stdout + wrong.stderr
