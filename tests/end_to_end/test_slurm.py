"""clusters/slurm.sbatch, with stand-ins for Slurm's commands: what it runs, and what it does when it is to stop."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.cli.commands import certify

SCRIPT = Path(__file__).parents[2] / "clusters" / "slurm.sbatch"
# Of `man sbatch`.
OPTIONS = {
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "time": r"\d+:\d\d:\d\d",
    "signal": r"[BR]:USR[12]@\d+",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"[\w%.-]+",
}
STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": '[ "$1" = show ] && { echo node7; echo node8; }; echo "scontrol $*" >> "$CALLS"',
    "ray": 'echo "ray $*" >> "$CALLS"',
    "ndc": 'trap "exit 130" TERM; echo "ndc $*" >> "$CALLS"; for _ in $(seq "${LASTS:-0}"); do sleep 0.05; done',
}
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_COUNT": "8",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose commands only write down that they were called."""
    (tmp_path / "bin").mkdir()
    for name, lines in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "calls").touch()
    own = {
        "VENV": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "71",
        "SLURM_JOB_NODELIST": "n[7-8]",
    }
    return {"PATH": os.environ["PATH"], **own}


def calls(environment: dict[str, str]) -> list[str]:
    return Path(environment["CALLS"]).read_text().splitlines()


def started(environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=environment)


def test_bash_reads_it_and_sbatch_knows_its_options() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    options = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE)
    assert len(options) == len(OPTIONS)
    for name, value in options:
        assert re.fullmatch(OPTIONS[name], value), name


def test_one_node_runs_the_command_alone_and_an_array_a_shard_in_each_task(slurm) -> None:
    assert started(slurm, "fast", "--run", "runs/a b").wait() == 0
    assert started(slurm | ARRAY, "fast", "--run", "runs/a").wait() == 0
    assert calls(slurm) == ["ndc certify fast --run runs/a b", "ndc certify fast --run runs/a --shard 3/8"]
    assert "--shard" in {name for option in certify.params for name in option.opts}


def test_several_nodes_start_ray_on_all_of_them_and_the_command_on_the_first(slurm) -> None:
    from ray.scripts.symmetric_run import symmetric_run

    assert started(slurm | {"SLURM_JOB_NUM_NODES": "2"}, "fast").wait() == 0
    *_, called = calls(slurm)
    assert called == "ray symmetric-run --address node7:6379 --min-nodes 2 -- ndc certify fast"
    known = {name for option in symmetric_run.params for name in option.opts}
    assert set(re.findall(r"--[a-z-]+", called.partition(" -- ")[0])) <= known


@pytest.mark.parametrize(("array", "task"), [({}, "71"), (ARRAY, "70_5")])
def test_before_its_time_is_over_the_driver_stops_and_the_job_is_queued_again(slurm, array, task) -> None:
    job = started(slurm | array | {"LASTS": "400"}, "fast")
    _send(job, slurm, signal.SIGUSR1)
    assert job.wait(timeout=10) == 130
    assert calls(slurm)[1:] == [f"scontrol requeue {task}"]


def test_a_job_that_is_cancelled_stops_and_is_not_queued_again(slurm) -> None:
    job = started(slurm | {"LASTS": "400"}, "fast")
    _send(job, slurm, signal.SIGTERM)
    assert job.wait(timeout=10) == 130
    assert len(calls(slurm)) == 1


def test_a_run_that_ends_before_it_can_stop_is_not_queued_again(slurm) -> None:
    ending = 'trap "" TERM; echo "ndc $*" >> "$CALLS"; sleep 1'
    (Path(slurm["VENV"]) / "bin" / "ndc").write_text(f"#!/usr/bin/env bash\n{ending}\n")
    job = started(slurm, "fast")
    _send(job, slurm, signal.SIGUSR1)
    assert job.wait(timeout=10) == 0
    assert len(calls(slurm)) == 1


def _send(job: subprocess.Popen, environment: dict[str, str], number: signal.Signals) -> None:
    """To the script alone, as Slurm does, once its command is at work."""
    until = time.monotonic() + 10
    while not calls(environment):
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(number)
