"""Whole runs by one actor in this process: what a driver does around its votes."""

import json
import shutil
from pathlib import Path

import pytest

from ndc_core.checkpoints.denoisers import load_denoiser, save_denoiser
from ndc_core.voting import count_votes
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.driver.certify import UnitsFailedError, certify_run
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from pipeline.workers.models import build_classifier
from tests.support.small_runs import computed, digits, small_config

pytestmark = pytest.mark.usefixtures("workplace_without_ray")


def evidence_of(folder: Path) -> dict[str, tuple]:
    """All that must be equal between two runs of the same declaration."""
    store = RunStore(folder)
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    return {str(item.unit): (item.votes, item.evaluations) for item in evidence}


def certify(model: Path, folder: str, *assignments: str) -> list[str]:
    said: list[str] = []
    certify_run(prepare(small_config(model, *assignments), location(folder)), say=said.append)
    return said


def test_votes_are_the_same_for_one_actor_and_for_none(tiny_model: Path) -> None:
    certify(tiny_model, "one")
    run = prepare(small_config(tiny_model), location("none"))
    classifier = build_classifier(run.config, device="cpu")
    for unit in run.units.values():
        image = next(example.image for example in digits("test") if example.image_id == unit.image_id)
        counts = count_votes(
            classifier,
            image,
            sigma_pixel=unit.sigma_pixel,
            noise="integer",
            seed=0,
            image_id=unit.image_id,
            phase=unit.phase,
            draws=range(unit.draw_start, unit.draw_stop),
        )
        votes, evaluations = evidence_of(Path("one"))[str(unit)]
        assert {c: v for c, v in enumerate(counts.votes.tolist()) if v} == votes
        assert counts.evaluations == evaluations


def test_a_run_goes_on_where_it_stopped_and_mends_its_evidence(tiny_model: Path) -> None:
    certify(tiny_model, "whole")
    whole = evidence_of(Path("whole"))
    files = RunStore(Path("whole")).evidence_files()
    kept = {path: path.stat().st_mtime_ns for path in files[3:]}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    said = certify(tiny_model, "whole")
    assert evidence_of(Path("whole")) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "published evidence was computed again"
    assert any("set aside" in line and files[1].name in line for line in said)
    assert any("going on at" in line for line in said)
    assert certify(tiny_model, "whole") == ["all 200 votes are there already"]


def test_a_changed_run_is_refused_with_the_difference_named(tiny_model: Path) -> None:
    certify(tiny_model, "run", "dataset.limit=1")
    for change, message in (("seed=5", "seed: 0 -> 5"), ("votes.estimation=60", "votes.estimation: 40 -> 60")):
        with pytest.raises(DeclarationChangedError, match=message):
            prepare(small_config(tiny_model, "dataset.limit=1", change), location("run"))


def test_a_checkpoint_that_changed_between_start_and_resume_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    certify(model, "run", "dataset.limit=1")
    denoiser = load_denoiser(model)
    denoiser.network.conv_out.bias += 0.01
    arguments = json.loads((model / "denoiser.json").read_text())["arguments"]
    save_denoiser(model, denoiser, network="small", arguments=arguments, notes={})
    with pytest.raises(DeclarationChangedError, match=r"model_sha256: .* -> .*; go back"):
        prepare(small_config(model, "dataset.limit=1"), location("run"))


def test_a_driver_that_prepared_before_another_declared_is_refused_too(tiny_model: Path) -> None:
    late = prepare(small_config(tiny_model, "dataset.limit=1", "seed=5"), location("run"))
    certify(tiny_model, "run", "dataset.limit=1")
    before = evidence_of(location("run"))
    with pytest.raises(DeclarationChangedError, match="seed: 0 -> 5"):
        certify_run(late, say=lambda line: None)
    assert evidence_of(Path("run")) == before


def test_failed_units_are_listed_and_the_others_are_done(tiny_model: Path) -> None:
    run = prepare(small_config(tiny_model), location("run"))
    store = RunStore(run.folder)
    blocked_id, blocked = list(run.units.items())[4]
    obstacle = store.evidence_path(blocked_id).parent
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder should be")
    with pytest.raises(UnitsFailedError, match=r"run `ndc certify run` to finish") as caught:
        certify_run(run, say=lambda line: None)
    assert str(blocked) in str(caught.value)
    in_the_way = sum(store.evidence_path(unit_id).parent == obstacle for unit_id in run.units)
    obstacle.unlink()
    assert len(store.evidence_files()) == len(run.units) - in_the_way
    certify(tiny_model, "run")
    assert len(store.evidence_files()) == len(run.units)
    assert not list(store.failures())


def test_another_alpha_needs_neither_model_nor_votes(tiny_model: Path) -> None:
    store = computed(small_config(tiny_model), Path("run"))
    (strict,), (loose,) = (
        reduce_and_report(store, alpha=alpha, radii=(0.0,), folder=location("other")).levels.values()
        for alpha in (1e-6, 0.1)
    )
    assert all(a.counts == b.counts for a, b in zip(strict, loose, strict=True))
    assert all(a.certificate.p_lower < b.certificate.p_lower for a, b in zip(strict, loose, strict=True))
