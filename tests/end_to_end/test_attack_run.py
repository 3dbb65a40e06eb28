"""`ndc attack` on whole runs: incomplete ones, sound ones, and one whose certificates are forged."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ndc_core.checkpoints.image_classifiers import save_small_classifier
from ndc_core.radius_curves import interval_of
from ndc_core.training.image_classifier import ClassifierSpec, train_classifier
from pipeline.certificates.attack_results import CONFIRM_ALPHA, summary_of
from pipeline.certificates.stopping import IncompleteRunError
from pipeline.compare.compare import compare
from pipeline.driver.attack import BrokenCertificateError, attack_run
from pipeline.driver.attack_plan import BudgetError
from pipeline.driver.certify import certify_run
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_settings import AttackSettings, cell_id
from tests.support.small_runs import computed, small_config

pytestmark = pytest.mark.usefixtures("workplace_without_ray")

QUICK = AttackSettings(restarts=2, steps=1, draws=1, votes=8)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, only to be copied."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    computed(small_config(tiny_model, "tracking=none"), folder)
    return folder


@pytest.fixture
def run(whole: Path, workplace_without_ray: Path) -> RunStore:
    shutil.copytree(whole, "run")
    return RunStore(location("run"))


def test_a_forged_certificate_is_broken_loudly_and_its_image_saved(run: RunStore) -> None:
    """All votes are given to a class that never won one: its certificate cannot survive."""
    attack_run(run.folder, QUICK, limit=1, say=lambda line: None)  # with the evidence as drawn nothing breaks
    fingerprint = run.manifest()["fingerprint"]
    evidence = list(run.all_evidence(fingerprint=fingerprint))
    victim = evidence[0].unit.image_id
    items = [item for item in evidence if item.unit.image_id == victim]
    never = next(c for c in range(10) if not any(c in item.votes for item in items))
    for item in items:
        run.publish(replace(item, votes={never: item.unit.draws}), fingerprint=fingerprint)
    settings = replace(QUICK, steps=3)
    with pytest.raises(BrokenCertificateError, match="CERTIFICATES BROKEN: 1 of 4") as caught:
        attack_run(run.folder, settings, limit=None, say=lambda line: None)
    picture = run.folder / "attacks/broken" / f"{cell_id(victim, 0.25)}.png"
    assert f"image {victim}, sigma_pixel 0.25: certified to 0.2500" in str(caught.value)
    assert str(picture) in str(caught.value)
    assert picture.read_bytes().startswith(b"\x89PNG")
    adversarial = np.load(picture.with_suffix(".npy"))
    assert adversarial.dtype == np.uint8
    assert json.loads((run.folder / "attacks.json").read_text())["certificates_broken"] == 1


def test_an_attacked_run_reports_what_is_left_and_still_verifies(tiny_model: Path) -> None:
    certify_run(prepare(small_config(tiny_model), location("run")), say=lambda line: None)
    run = RunStore(Path("run"))
    said: list[str] = []
    report, summary = attack_run(run.folder, QUICK, limit=None, say=said.append)
    assert "none broken" in said[-1]
    assert summary["images"] == 4
    level = report.summary.levels[0]
    assert level.attacked is not None
    for radius, certified_share in level.certified_accuracy.items():
        assert certified_share <= level.attacked.accuracy[radius]
    assert "0.25, under attack" in (run.folder / "table.md").read_text()
    assert "under attack" in report.page.read_text()
    verify_run(run.folder, redraw=0, say=lambda line: None)
    kept = {path: path.stat().st_mtime_ns for path in run.folder.glob("attacks/*/*.json")}
    assert len(kept) == 4
    attack_run(run.folder, QUICK, limit=None, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "attacks that were made are not made again"


def test_attacks_of_several_kinds_add_up_and_each_keeps_within_what_it_said(
    run: RunStore, image_classifier: Path
) -> None:
    kinds = [QUICK, replace(QUICK, method="apgd"), replace(QUICK, source=str(image_classifier))]
    left: list[list[float]] = []
    for kind in kinds:
        said: list[str] = []
        report, summary = attack_run(run.folder, kind, limit=2, say=said.append)
        assert said[0].startswith(str(kind))
        most = int(re.search(r"attacks all 2 images: at most ([\d,]+) evaluations", said[0]).group(1).replace(",", ""))
        assert 0 < summary["evaluations"] <= most
        left.append(list(summary["empirical_accuracy"]["0.25"].values()))
        attacked = report.summary.levels[0].attacked
        assert attacked is not None
        assert attacked.intervals == {float(r): tuple(i) for r, i in summary["interval_95"]["0.25"].items()}
    assert all(after <= before for first, second in pairwise(left) for before, after in zip(first, second, strict=True))
    assert len(list((run.folder / "attacks").glob("*.json"))) == 3
    kept = {path: path.stat().st_mtime_ns for path in run.folder.glob("attacks/*/*.json")}
    assert len(kept) == 6
    _, again = attack_run(run.folder, QUICK, limit=2, say=print)
    assert list(again["empirical_accuracy"]["0.25"].values()) == left[-1], "in whatever order"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    compared = compare(["run"], alpha=None, radii=[0.1], intersect=False, out=location("compared"))
    assert "0.25, under attack (first 2 images)" in {row[1] for row in compared.tables[0].rows}
    level = json.loads(Path("compared/compare.json").read_text())["methods"][0]["levels"][0]
    assert level["under_attack"]["interval"]["0.1"] == list(again["interval_95"]["0.25"]["0.1"])


def test_an_attack_takes_the_images_that_its_budget_is_enough_for_and_a_larger_one_goes_on(run: RunStore) -> None:
    said: list[str] = []
    with pytest.raises(BudgetError, match=r"takes up to [\d,]+ evaluations"):
        attack_run(run.folder, QUICK, limit=None, budget=0.1, say=said.append)
    assert not (run.folder / "attacks").exists()
    attack_run(run.folder, QUICK, limit=1, say=said.append)
    times = float(re.search(r"([\d.]+) times the", said[0]).group(1))
    _, summary = attack_run(run.folder, QUICK, limit=None, budget=2.5 * times, say=said.append)
    images = summary["images"]
    assert images in (2, 3), "they are not alike"
    assert f"0.25, under attack (first {images} images)" in (run.folder / "table.md").read_text()
    assert len(list(run.folder.glob("attacks/*/*.json"))) == images
    _, summary = attack_run(run.folder, QUICK, limit=None, say=said.append)
    assert summary["images"] == 4
    assert any("accuracy left of 4 images [95 % interval of all like them]" in line for line in said)


def test_a_classifier_of_other_images_or_classes_is_not_attacked_through(
    run: RunStore, tiny_model: Path, tmp_path: Path
) -> None:
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    other = train_classifier(
        images, torch.tensor([0, 1, 2, 0]), num_classes=3, spec=ClassifierSpec(steps=1, batch=4, channels=8)
    )
    save_small_classifier(tmp_path / "other", other, arguments={"channels": 8}, notes={})
    for source, message in (
        (tmp_path / "other", r"knows 3 classes of images of shape \(1, 4, 4\)"),
        (tiny_model, "denoiser's"),
    ):
        with pytest.raises(ValueError, match=message):
            attack_run(run.folder, replace(QUICK, source=str(source)), limit=None, say=print)
    assert not (run.folder / "attacks").exists()


def test_an_incomplete_run_is_not_attacked(run: RunStore) -> None:
    run.evidence_files()[0].unlink()
    with pytest.raises(IncompleteRunError, match=r"votes present; run `ndc certify run` to finish"):
        attack_run(run.folder, QUICK, limit=None, say=lambda line: None)
    with pytest.raises(IncompleteRunError):
        reduce_and_report(run, alpha=None, radii=(0.0,), folder=run.folder)


def cell(right: bool, radius: float, fallen: list[float], unconfirmed: tuple[float, ...] = ()) -> dict:
    beyond = [{"radius": r, "attacks": 2, "success": True, "confirmed": True} for r in fallen]
    beyond += [{"radius": r, "attacks": 2, "success": True, "confirmed": False} for r in unconfirmed]
    held = {"attacks": 2, "success": False, "confirmed": False} if radius else None
    return {
        "image_id": f"{right}{radius}{fallen}{unconfirmed}",
        "sigma_pixel": 0.25,
        "label": 1,
        "predicted": 1 if radius else -1,
        "certified_radius": radius,
        "right": right,
        "certificate": held,
        "beyond": beyond,
    }


def test_accuracy_under_attack_counts_images_that_no_attack_of_the_radius_moved() -> None:
    cells = [cell(True, 0.3, []), cell(True, 0.3, [0.5]), cell(True, 0.0, [0.25]), cell(False, 0.0, [])]
    summary = summary_of(cells, radii=(0.0, 0.25, 0.5), fingerprint="f")
    assert summary["empirical_accuracy"] == {"0.25": {"0.0": 0.75, "0.25": 0.5, "0.5": 0.25}}
    assert summary["attacks_on_certificates"] == 4
    assert summary["certificates_attacked"] == 2


def test_an_image_stands_only_if_it_stands_under_all_attacks() -> None:
    names = {"image_id": "a"}
    first = [cell(True, 0.0, [], (0.5,)) | names, cell(True, 0.3, []) | {"image_id": "b"}]
    other = [cell(True, 0.0, [0.25]) | names]
    broken = [
        cell(True, 0.3, []) | {"image_id": "b", "certificate": {"attacks": 2, "success": True, "confirmed": True}}
    ]
    radii = {"radii": (0.0, 0.25, 0.5), "fingerprint": "f"}
    assert summary_of(first, **radii)["empirical_accuracy"]["0.25"] == {"0.0": 1.0, "0.25": 1.0, "0.5": 1.0}
    both = summary_of(first, **radii, earlier=[other])
    assert both["empirical_accuracy"]["0.25"] == {"0.0": 1.0, "0.25": 0.5, "0.5": 0.5}
    assert both["interval_95"]["0.25"]["0.5"] == interval_of(1, 2)
    assert (both["cells"], both["cells_broken_beyond"]) == (2, 0), "of these attacks alone"
    assert summary_of(other, **radii, earlier=[first[:1]])["empirical_accuracy"]["0.25"]["0.5"] == 0.0
    all_three = summary_of(first, **radii, earlier=[other, broken])["empirical_accuracy"]
    assert all_three["0.25"] == {"0.0": 0.5, "0.25": 0.0, "0.5": 0.5}


def test_a_fall_that_fresh_votes_do_not_confirm_leaves_the_image_standing_and_is_counted_apart() -> None:
    cells = [cell(True, 0.0, [], (0.25, 0.5)), cell(True, 0.0, [0.5], (0.25,)), cell(True, 0.0, [0.0])]
    summary = summary_of(cells, radii=(0.0, 0.25, 0.5), fingerprint="f")
    third = 1 / 3
    assert summary["empirical_accuracy"] == {"0.25": {"0.0": 2 * third, "0.25": 2 * third, "0.5": third}}
    assert summary["falls_not_confirmed"] == 3
    assert summary["cells_broken_beyond"] == 1, "an image that is wrong as it is was not attacked"
    assert summary["falls_confirmed_at"] == CONFIRM_ALPHA
