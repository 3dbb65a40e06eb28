"""The whole pipeline on a Ray that says it has two GPUs, which actors hold and which nobody computes on."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.declaration.config import ComputeConfig
from pipeline.driver.attack import attack_run
from pipeline.driver.certify import certify_run
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_settings import AttackSettings
from pipeline.workers.pools import kinds_of
from pipeline.workers.ray_cluster import connect_ray
from pipeline.workers.ray_pool import map_over_actors, rows_of_a_call
from pipeline.workers.vote_actor import VoteActor
from tests.end_to_end.test_run import evidence_of
from tests.pipeline.workers.test_vote_actor import batch_of, declared, receipts_of, settings_of
from tests.support.in_process import replace_ray, stopped_after
from tests.support.nodes import local_ray
from tests.support.ray_actors import Counting
from tests.support.small_runs import computed, fast_config, small_arguments, small_config

RUN = "größe\n1"  # Ray's metrics take ASCII only
COUNTED = ["compute.device=cpu", "compute.gpus_per_actor=1", "compute.actors=2"]


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Path]:
    """A folder to run in, on one local Ray for all tests."""
    folder = tmp_path_factory.mktemp("gpus")
    shutil.copy(mlflow_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with local_ray(cpus=3, gpus=2):
            yield folder


def ndc(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# How rows come to actors, and receipts back


@pytest.mark.parametrize(("rows", "together", "calls", "gpus"), [(5, 1, [1] * 5, 0.5), (35, 3, [2] * 17 + [1], 1)])
def test_receipts_come_one_by_one_and_no_actor_is_sent_several_blocks(
    workplace: Path, rows: int, together: int, calls: list[int], gpus: float
) -> None:
    pool = connect_ray(ComputeConfig(device="cpu", gpus_per_actor=gpus, actors=2), say=print)
    sent = [{"unit": f"{rows}-{number}"} for number in range(rows)]
    settings = {"pool": pool, "stuck_seconds": 600, "rows_together": together, "say": print}
    received = []
    for receipt in map_over_actors(sent, Counting, str(workplace), **settings):
        (workplace / receipt["unit"]).touch()
        received.append(receipt)
    assert sorted(receipt["unit"] for receipt in received) == sorted(row["unit"] for row in sent)
    assert not any(receipt["late"] for receipt in received), "a receipt waited for the others of its call"
    assert {receipt["gpus"] for receipt in received} == {1}, "whole or a part, an actor sees one"
    sizes = Counter((receipt["task"], receipt["rows"]) for receipt in received)
    assert sorted((size for _, size in sizes), reverse=True) == calls
    assert all(count == size for (_, size), count in sizes.items()), "a task has one call"


def test_a_call_has_the_rows_that_were_asked_for_unless_actors_would_have_few_turns() -> None:
    assert rows_of_a_call(1000, actors=2, rows_together=8) == 8
    assert rows_of_a_call(100, actors=2, rows_together=8) == 6
    assert rows_of_a_call(100, actors=64, rows_together=8) == 1
    assert rows_of_a_call(100, actors=1, rows_together=80) == 80, "one actor leaves no other alone"
    assert rows_of_a_call(1536, actors=8, rows_together=984, fill=246) == 192, "half a GPU idles in fewer"
    assert rows_of_a_call(150_000, actors=8, rows_together=984, fill=246) == 984
    assert rows_of_a_call(50_000, actors=2, rows_together=1) == 3, "of more than 20,000 blocks Ray makes heavy weather"


# Runs


@pytest.fixture(scope="module")
def finished(workplace: Path, tiny_model: Path) -> tuple[RunStore, list[str]]:
    """A run that was stopped on two halves of a GPU, and brought to its end on whole ones; what was said."""
    said: list[str] = []
    halves = small_config(tiny_model, "compute.device=cpu", "compute.gpus_per_actor=0.5", "compute.actors=2")
    with stopped_after(5), pytest.raises(KeyboardInterrupt):
        certify_run(prepare(halves, location(RUN)), say=said.append)
    certify_run(prepare(small_config(tiny_model, *COUNTED), location(RUN)), say=said.append)
    return RunStore(Path(RUN)), said


def test_a_run_on_counted_gpus_is_stopped_goes_on_and_has_the_votes_of_one_without_ray(
    finished: tuple[RunStore, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    store, said = finished
    only_counted = "GPUs are only counted, and votes drawn on CPUs: compute.device is 'cpu'"
    assert said[:3] == ["2 GPUs, 2 actors, 0.5 of a GPU each", only_counted, "1 GPU idle: compute.actors is 2"]
    assert said[3].startswith("going on at ")
    assert said[4:] == ["2 GPUs, 2 actors", only_counted], "nothing failed beside the votes"
    run = declared(small_config(tiny_model), tmp_path / "alone")
    receipts_of(VoteActor(settings_of(run, tmp_path / "alone")), batch_of(run, run.units.values()))
    alone = RunStore(tmp_path / "alone").all_evidence(fingerprint=run.fingerprint)
    assert evidence_of(store.folder) == {str(item.unit): (item.votes, item.evaluations) for item in alone}


def test_a_run_on_counted_gpus_is_attacked_and_verified(finished: tuple[RunStore, list[str]]) -> None:
    store, _ = finished
    said: list[str] = []
    settings = AttackSettings(restarts=2, steps=1, draws=2, votes=8)
    _, summary = attack_run(location(store.folder), settings, limit=2, say=said.append)
    assert summary["images"] == 2
    assert said[1] == "2 GPUs, 2 actors, 0.5 of a GPU each"
    verify_run(location(store.folder), redraw=1, say=print)


def test_two_actors_follow_images_on_one_path_to_the_votes_of_one_without_ray(tiny_model: Path) -> None:
    one_path = ["classifier.name='apndc'", "classifier.one_path=true", "votes.estimation=180"]
    certify_run(prepare(fast_config(tiny_model, *COUNTED, *one_path), location("waves")), say=print)
    assert evidence_of(Path("waves")) == evidence_of(computed(fast_config(tiny_model, *one_path), Path("alone")).folder)


def test_a_plan_measures_in_a_process_that_holds_a_gpu_and_counts_gpus(tiny_model: Path) -> None:
    few = ["--set", "dataset.limit=2", *(argument for key in COUNTED for argument in ("--set", key))]
    result = ndc("plan", "demo", "--run", "planned", *small_arguments(tiny_model), *few, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["device"], plan["gpus_per_actor"], plan["workers"]) == ("cpu", 1, 2)
    assert "2 GPUs, 2 actors" in result.stderr
    assert not Path("planned").exists()


no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")


@no_cuda
@pytest.mark.parametrize("keys", ["compute.device=cuda", "compute.gpus_per_actor=0.5"])
def test_cuda_that_torch_cannot_use_is_one_line_before_any_work(tiny_model: Path, keys: str) -> None:
    result = ndc("certify", "demo", "--run", "nowhere", *small_arguments(tiny_model, keys))
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"Error: {keys.partition('=')[0]} is ")
    assert "sees no CUDA device; install a build of torch for its GPU there, or set it to" in last
    assert not Path("nowhere").exists()


@no_cuda
def test_auto_goes_to_cpus_where_torch_cannot_use_the_gpus_that_ray_sees_and_says_so() -> None:
    pool = connect_ray(ComputeConfig(), say=print)
    assert (pool.device, pool.gpus_per_actor, pool.most) == ("cpu", 0, 2)
    (remark,) = pool.remarks
    assert remark.startswith("2 GPUs idle, the actors take CPUs: torch ")


@no_cuda
def test_a_run_that_began_on_another_device_does_not_go_on_without_a_word(
    finished: tuple[RunStore, list[str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_ray(monkeypatch, gpus=2)
    store, _ = finished
    fingerprint = store.manifest()["fingerprint"]
    first, *others = store.all_evidence(fingerprint=fingerprint)
    for item in others:
        store.publish(replace(item, device="cuda"), fingerprint=fingerprint)
    store.evidence_path(first.unit.unit_id(fingerprint)).unlink()
    with pytest.raises(
        ValueError, match=r"the votes so far were drawn on cuda, and no GPU .* --set compute.device=cpu"
    ):
        certify_run(prepare(small_config(tiny_model), location(RUN)), say=print)
    said: list[str] = []
    certify_run(prepare(small_config(tiny_model, "compute.device=cpu"), location(RUN)), say=said.append)
    assert any("drawn on cuda, the others are drawn on cpu, which may decide near-ties" in line for line in said)
    assert kinds_of(store.all_evidence(fingerprint=fingerprint).devices) == ("cpu", "cuda")
