"""A finished run, tampered with in every way that keeps its files well-formed: `ndc verify` names what differs."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ndc_core.analysis.exactness import Exactness
from ndc_core.checkpoints.denoisers import load_denoiser, save_denoiser
from ndc_core.models.precision import Precision
from ndc_core.voting import VoteCounts
from pipeline.declaration.declaration import fingerprint_of
from pipeline.declaration.units import WorkUnit
from pipeline.driver.redraw import bits_can_be_equal, flipped, judged
from pipeline.driver.status import status_lines, status_of
from pipeline.driver.verify import VerificationError, verify_run
from pipeline.report.report import reduce_and_report
from pipeline.store.devices import DeviceRecord
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore
from tests.support.small_runs import computed, small_config


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image, 50 votes, with a model of its own beside it."""
    place = tmp_path_factory.mktemp("verify")
    shutil.copytree(tiny_model, place / "model")
    computed(small_config(place / "model", "dataset.limit=2"), place / "run")
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunStore:
    """A copy that may be tampered with; its model is the shared one."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return RunStore(tmp_path / "run")


def problems_of(run: RunStore, *, redraw: int = 0) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_run(run.folder, redraw=redraw, say=lambda line: None)
    return str(caught.value)


def evidence_of(run: RunStore) -> list[Evidence]:
    return list(run.all_evidence(fingerprint=run.manifest()["fingerprint"]))


def forge(run: RunStore, item: Evidence) -> None:
    """Publishes evidence as an actor would: name, fingerprint and checksum fit."""
    run.publish(item, fingerprint=run.manifest()["fingerprint"])


def another_count(item: Evidence) -> Evidence:
    """The same number of votes, one of them moved to another class."""
    (first, *_) = item.votes
    votes = dict(item.votes)
    votes[first] -= 1
    votes[(first + 1) % 10] = votes.get((first + 1) % 10, 0) + 1
    return replace(item, votes={c: n for c, n in votes.items() if n})


def test_an_untouched_run_passes_and_says_what_was_checked(run: RunStore) -> None:
    said: list[str] = []
    verify_run(run.folder, redraw=3, say=said.append)
    assert len(said) == 8
    assert all(line.startswith("ok ") for line in said)
    assert any("evidence of 6 units" in line for line in said)
    assert any("100 votes of 2 images and levels: no gap, no overlap" in line for line in said)
    assert any("3 of 6 units drawn again from the model: equal bit for bit" in line for line in said)


def test_a_count_changed_in_its_file_is_found(run: RunStore) -> None:
    item = evidence_of(run)[2]
    path = run.evidence_path(item.unit.unit_id(run.manifest()["fingerprint"]))
    table = pq.read_table(path)
    row = table.to_pylist()[0]
    changed = another_count(replace(item))
    row |= {"class_id": sorted(changed.votes), "votes": [changed.votes[c] for c in sorted(changed.votes)]}
    pq.write_table(type(table).from_pylist([row], schema=table.schema), path)
    problems = problems_of(run)
    assert f"{path}: its checksum does not fit its content: it was changed after it was written" in problems


def test_a_count_forged_with_its_checksum_does_not_fit_the_certificates(run: RunStore) -> None:
    item = next(item for item in evidence_of(run) if item.unit.phase == "estimation")
    forge(run, another_count(item))
    problems = problems_of(run)
    assert "certificates.parquet: the evidence is not the one that it was made from" in problems


def test_a_forgery_that_was_reported_anew_is_found_by_drawing_again(run: RunStore) -> None:
    item = next(item for item in evidence_of(run) if item.unit.phase == "estimation")
    forge(run, another_count(item))
    reduce_and_report(run, alpha=None, radii=(0.0, 0.1), folder=run.folder)
    verify_run(run.folder, redraw=0, say=lambda line: None)
    problems = problems_of(run, redraw=99)
    assert f"{item.unit}: votes" in problems
    assert "the model gives" in problems


def test_a_dropped_range_is_found(run: RunStore) -> None:
    item = next(item for item in evidence_of(run) if item.unit.draw_start == 20)
    run.evidence_path(item.unit.unit_id(run.manifest()["fingerprint"])).unlink()
    assert f"image {item.unit.image_id}, sigma_pixel 0.25: 20 of 40 estimation votes present" in problems_of(run)


def test_a_doubled_range_is_found_under_any_name(run: RunStore) -> None:
    path = run.evidence_files()[0]
    copy = path.with_name("0" * 32 + ".parquet")
    shutil.copy(path, copy)
    assert f"{copy}: its name is not that of the unit inside" in problems_of(run)
    copy.unlink()
    item = next(item for item in evidence_of(run) if item.unit.draw_start == 20)
    forge(run, replace(item, unit=replace(item.unit, draw_start=30, draw_stop=50)))
    assert "draws 30 to 49: no unit of this run's plan" in problems_of(run)


def test_a_torn_file_is_found(run: RunStore) -> None:
    path = run.evidence_files()[1]
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path}: not a readable Parquet file" in problems_of(run)


def test_a_changed_certificate_is_named_with_its_column(run: RunStore) -> None:
    path = run.folder / "certificates.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["radius"] += 0.1
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    problems = problems_of(run)
    assert f"image {rows[0]['image_id']}, sigma_pixel 0.25: radius: {rows[0]['radius']} -> " in problems


def test_a_changed_table_is_found(run: RunStore) -> None:
    path = run.folder / "table.md"
    path.write_text(path.read_text().replace("0.0 %", "9.0 %"))
    assert f"{path} does not follow from the evidence" in problems_of(run)


def test_a_changed_law_is_found(run: RunStore) -> None:
    path = run.folder / "run.json"
    manifest = json.loads(path.read_text())
    manifest["law"]["certificate"]["alpha"] = 0.0001
    path.write_text(json.dumps(manifest))
    assert "the declaration was changed after the run was declared" in problems_of(run)
    manifest["fingerprint"] = fingerprint_of(manifest["law"])
    path.write_text(json.dumps(manifest))
    problems = problems_of(run)
    assert "certificate.alpha: 0.0001 -> 0.001" in problems
    assert "evidence of another run" in problems


def test_a_swapped_model_is_found(run: RunStore, finished: Path, tmp_path: Path) -> None:
    denoiser = load_denoiser(finished / "model")
    arguments = json.loads((finished / "model/denoiser.json").read_text())["arguments"]
    denoiser.network.conv_out.bias.add_(0.5)
    save_denoiser(tmp_path / "other", denoiser, network="small", arguments=arguments, notes={})
    config = run.folder / "run.toml"
    config.write_text(config.read_text().replace(str(finished / "model"), str(tmp_path / "other")))
    assert "declared -> found: model_sha256: " in problems_of(run)


def test_a_swapped_label_is_found(run: RunStore) -> None:
    path = run.folder / "images.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["label"] = (rows[1]["label"] + 1) % 10
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    assert "images.parquet: ids, labels or hashes are not those that the run was declared with" in problems_of(run)


def test_swapped_pixels_are_found(run: RunStore) -> None:
    path = run.folder / "images" / "00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["pixels"] = bytes(reversed(rows[1]["pixels"]))
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    assert f"image {rows[1]['image_id']} is not the one that the run was declared with" in problems_of(run)


# Evidence of another device

H100 = DeviceRecord("cuda", "NVIDIA H100", "2.11.0", "12.8", "91002", Exactness(0.0, 9e-4, 0.0))


def made_on(run: RunStore, device: DeviceRecord, change: Callable[[Evidence], Evidence] = lambda item: item) -> None:
    """The run as if another device had made it, with some counts changed; its report follows."""
    for item in evidence_of(run):
        forge(run, replace(change(item), device=device.text()))
    reduce_and_report(run, alpha=None, radii=(0.0, 0.1), folder=run.folder)


def test_evidence_says_what_computed_it(run: RunStore) -> None:
    ((record, units),) = run.all_evidence(fingerprint=run.manifest()["fingerprint"]).devices
    assert units == 6
    assert (record.kind, record.torch) == ("cpu", torch.__version__)
    assert record.exactness.exact  # on this CPU


def test_a_near_tie_that_flipped_on_another_device_is_stated_and_passes(run: RunStore) -> None:
    moved = next(item for item in evidence_of(run) if item.unit.phase == "estimation").unit
    made_on(run, H100, lambda item: another_count(item) if item.unit == moved else item)
    said: list[str] = []
    verify_run(run.folder, redraw=99, say=said.append)
    (line,) = [line for line in said if "drawn again" in line]
    assert line.startswith("ok ")
    assert "made on NVIDIA H100, torch 2.11.0, CUDA 12.8, cuDNN 91002, drawn again on " in line
    assert "1 of 100 votes differ" in line
    assert any(
        line.startswith("note ") and "NVIDIA H100" in line and "certificates hold up to near-ties" in line
        for line in said
    )


def test_counts_that_another_device_cannot_explain_are_found(run: RunStore) -> None:
    def shuffled(item: Evidence) -> Evidence:
        return replace(item, votes={(class_id + 1) % 10: votes for class_id, votes in item.votes.items()})

    made_on(run, H100, shuffled)
    verify_run(run.folder, redraw=0, say=lambda line: None)
    problems = problems_of(run, redraw=99)
    assert "votes that were drawn again differ, more than near-ties explain" in problems
    assert "the model gives" in problems


def test_one_unit_whose_counts_are_wrong_is_found_among_many(run: RunStore) -> None:
    wrong = next(item for item in evidence_of(run) if item.unit.phase == "estimation").unit

    def all_for_another_class(item: Evidence) -> Evidence:
        return replace(item, votes={9: item.unit.draws}) if item.unit == wrong else item

    made_on(run, H100, all_for_another_class)
    assert f"{wrong}: votes" in problems_of(run, redraw=99)


def test_bits_are_compared_on_the_same_kind_of_device_only() -> None:
    exact = replace(H100, exactness=Exactness(0.0, 0.0, 0.0))
    assert bits_can_be_equal(exact, exact)
    assert not bits_can_be_equal(H100, exact)
    assert not bits_can_be_equal(exact, H100)
    for change in ({"name": "NVIDIA H200"}, {"torch": "2.12.0"}, {"cuda": "13.0"}, {"cudnn": "9"}):
        assert not bits_can_be_equal(replace(exact, **change), exact)
    assert not bits_can_be_equal(DeviceRecord("cpu"), DeviceRecord("cpu"))  # evidence without versions


def test_several_devices_are_named_with_their_units(run: RunStore) -> None:
    item = evidence_of(run)[0]
    forge(run, replace(item, device=H100.text()))
    status = status_of(run.folder)
    assert any(
        "NVIDIA H100, torch 2.11.0, CUDA 12.8, cuDNN 91002 (1 units): not exact" in line for line in status.devices
    )
    assert any("(5 units): exact" in line for line in status.devices)
    assert set(status.devices) <= set(status_lines(status))
    report = reduce_and_report(run, alpha=None, radii=(0.0, 0.1), folder=run.folder)
    assert report.provenance.devices == status.devices
    page = (run.folder / "report.html").read_text()
    assert "Computed on NVIDIA H100, torch 2.11.0, CUDA 12.8, cuDNN 91002 (1 units): not exact" in page


def test_old_evidence_without_a_record_still_reads(run: RunStore) -> None:
    for item in evidence_of(run):
        forge(run, replace(item, device="cpu"))
    ((record, units),) = run.all_evidence(fingerprint=run.manifest()["fingerprint"]).devices
    assert (record, units) == (DeviceRecord("cpu"), 6)
    reduce_and_report(run, alpha=None, radii=(0.0, 0.1), folder=run.folder)
    said: list[str] = []
    verify_run(run.folder, redraw=2, say=said.append)
    assert any("made on cpu, drawn again on" in line and line.startswith("ok ") for line in said)


def test_scores_are_compared_too(tiny_model: Path, tmp_path: Path) -> None:
    from pipeline.declaration.toml_files import load_config

    small = ["dataset.limit=1", "votes.selection=10", "votes.estimation=100", "certificate.radii=[0.0]"]
    small += ["votes.per_unit=50", "compute.rows_per_pass=32"]
    config = load_config("lipschitz", [f"model={tiny_model}", *small, "classifier.grid.points=4"])
    run = computed(config, tmp_path / "run")
    verify_run(run.folder, redraw=9, say=lambda line: None)
    item = next(item for item in evidence_of(run) if item.unit.phase == "estimation")
    assert item.scores is not None
    forge(run, replace(item, scores=item.scores + np.eye(1, 10) * 1e-9))
    reduce_and_report(run, alpha=None, radii=(0.0,), folder=run.folder)
    assert f"{item.unit}: the scores are not those that the model gives" in problems_of(run, redraw=9)


def drawn_again(counts: Mapping[int, int], *, draws: int = 1000, scores: np.ndarray | None = None) -> VoteCounts:
    votes = np.zeros(10, np.int64)
    for class_id, count in counts.items():
        votes[class_id] = count
    assert votes.sum() == draws
    return VoteCounts(votes, 1, scores)


def unit_of(counts: Mapping[int, int], scores: np.ndarray | None = None) -> Evidence:
    unit = WorkUnit("img", 1, 0.25, "estimation", 0, sum(counts.values()))
    return Evidence(unit, dict(counts), 1, 1.0, 1.0, H100.text(), scores)


def problems_among(pairs: Sequence[tuple[Evidence, VoteCounts]], precision: Precision = "float32") -> list[str]:
    return judged(pairs, precision, str, of=len(pairs), why="on another device").problems


def test_flips_that_near_ties_explain_pass_and_more_fail() -> None:
    evidence, few, many = unit_of({1: 900, 2: 100}), {1: 899, 2: 100, 3: 1}, {1: 880, 2: 120}
    assert flipped(evidence.votes, few) == 1
    assert flipped(evidence.votes, many) == 20
    assert not problems_among([(evidence, drawn_again(few))])
    assert len(problems_among([(evidence, drawn_again(many))])) == 2  # of the unit, and of all units together
    assert not problems_among([(evidence, drawn_again(many))], "bfloat16")
    assert problems_among([(evidence, drawn_again({1: 100, 2: 900}))], "bfloat16")


def test_a_few_votes_too_many_in_every_unit_are_found_in_the_sum() -> None:
    pair = unit_of({1: 900, 2: 100}), drawn_again({1: 896, 2: 104})
    assert not problems_among([pair])
    assert problems_among([pair] * 20) == [
        "80 of 20,000 votes that were drawn again differ, more than near-ties explain"
    ]


def test_scores_may_differ_by_rounding_only() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 10))
    for change, precision, refused in (
        (1e-6, "float32", False),
        (1e-3, "float32", True),
        (1e-3, "tf32", False),
        (1e-1, "bfloat16", True),
    ):
        pair = unit_of({1: 4}, scores), drawn_again({1: 4}, draws=4, scores=scores * (1 + change))
        assert bool(problems_among([pair], precision)) == refused
    assert problems_among([(unit_of({1: 4}, scores), drawn_again({1: 4}, draws=4))])
