"""clusters/slurm.sbatch, with stand-ins for Slurm's commands: what it runs, and what it does when it is to stop."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.commands import certify
from tests.end_to_end.test_run import evidence_of
from tests.support.small_runs import computed, small_arguments, small_config

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
    "ray": 'echo "ray $*" >> "$CALLS"; [ "$1" = get-auth-token ] || { shift 6; "$@"; exit 1; }',
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

    assert started(slurm | {"SLURM_JOB_NUM_NODES": "2"}, "fast", "--run", "a b").wait() == 0, "the driver's own code"
    token, on_all_nodes, on_the_first = [call for call in calls(slurm) if not call.startswith("scontrol")]
    assert token == "ray get-auth-token --generate"
    options, separator, command = on_all_nodes.partition(" -- ")
    assert options == "ray symmetric-run --address node7:6379 --min-nodes 2"
    assert separator
    assert command.startswith("bash -c ")
    assert set(re.findall(r"--[a-z-]+", options)) <= {name for option in symmetric_run.params for name in option.opts}
    assert on_the_first == "ndc certify fast --run a b"


def test_of_several_nodes_the_job_ends_as_its_driver_does(slurm) -> None:
    (Path(slurm["VENV"]) / "bin" / "ndc").write_text("#!/usr/bin/env bash\nexit 3\n")
    assert started(slurm | {"SLURM_JOB_NUM_NODES": "2"}, "fast").wait() == 3


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


# A node each: a network, processes and a /tmp/ray of its own. Ends as the first node does, which it waits for last.
ON_EACH_HOST = """#!/usr/bin/env bash
on() {
    ip netns exec "$1" unshare --pid --fork --mount-proc --uts --mount bash -c '
        mount -t tmpfs none /dev/shm && mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && hostname "$0" && "$@"
        exit "$?"' "$@"
}
on ndc-b "$@" & on ndc-a "$@" && first=0 || first=$?
wait
exit "$first"
"""
NETWORK = """
ip netns add ndc-a && ip netns add ndc-b
ip link add ndc-a netns ndc-a type veth peer name ndc-b netns ndc-b
for host in a b; do
    ip -n ndc-$host addr add 10.99.0.$([ $host = a ] && echo 1 || echo 2)/24 dev ndc-$host
    ip -n ndc-$host link set lo up && ip -n ndc-$host link set ndc-$host up
done
"""


@pytest.fixture
def two_hosts() -> Iterator[None]:
    """Two networks, ndc-a at 10.99.0.1 and ndc-b, each seen by the other."""
    if subprocess.run(["bash", "-ec", NETWORK], check=False).returncode:
        subprocess.run(["ip", "netns", "del", "ndc-a"], check=False)
        pytest.skip("this machine makes no networks: it takes root, iproute2 and a kernel with namespaces")
    yield
    for host in ("ndc-a", "ndc-b"):
        subprocess.run(["ip", "netns", "del", host], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("two_hosts")
def test_two_hosts_are_one_ray_cluster_whose_actors_do_the_run(slurm, tiny_model: Path, tmp_path: Path) -> None:
    for name, lines in {"srun": ON_EACH_HOST, "scontrol": "#!/usr/bin/env bash\necho 10.99.0.1"}.items():
        (tmp_path / "bin" / name).write_text(lines)
    for name in ("ray", "ndc"):
        (tmp_path / "bin" / name).unlink()
        (tmp_path / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    settings = ["dataset.limit=8", "compute.actors=2", "tracking='none'"]
    arguments = small_arguments(tiny_model, *settings)
    home = {"HOME": str(tmp_path), "SLURM_JOB_NUM_NODES": "2"}
    job = started(slurm | home, "demo", "--run", str(tmp_path / "run"), *arguments)
    assert job.wait(timeout=500) == 0
    assert (tmp_path / "run/report.html").is_file()
    logged = [json.loads(line) for path in (tmp_path / "run/logs").iterdir() for line in path.read_text().splitlines()]
    hosts = {event["host"] for event in logged if event["event"] == "unit"}
    assert hosts == {"ndc-a", "ndc-b"}
    computed(small_config(tiny_model, *settings), tmp_path / "whole")
    assert evidence_of(tmp_path / "run") == evidence_of(tmp_path / "whole")
