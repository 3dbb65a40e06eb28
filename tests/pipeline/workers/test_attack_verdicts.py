"""When an attack counts: fresh votes must show that a class has lost. Without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import GridSpec
from pipeline.certificates.reduce import CertifiedImage
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import declare
from pipeline.declaration.toml_files import load_config
from pipeline.locations import location
from pipeline.workers.attack_actor import AttackActor
from pipeline.workers.attack_settings import CONFIRM_FACTOR, AttackerSettings, AttackSettings, cell_row
from pipeline.workers.vote_actor import VoterSettings
from tests.pipeline.workers.test_noise_levels import BySum
from tests.support.fakes import ConstantDenoiser
from tests.support.small_runs import digits, listing_of

EXAMPLE = digits("test", limit=1)[0]
LEVELS = GridSpec(levels=(0.55, 0.7, 0.9, 1.1))
SETTINGS = AttackSettings(restarts=1, steps=1, draws=2, votes=20)


def actor_of(config: RunConfig, classifier: DiffusionClassifier, folder: Path) -> AttackActor:
    law = declare(config, listing_of([EXAMPLE]), models={})
    actor = AttackActor.__new__(AttackActor)
    actor.settings = AttackerSettings(VoterSettings(config, str(folder), law, "f", num_classes=10), SETTINGS)
    actor.config, actor.classifier, actor.folder = config, classifier, location(folder)
    return actor


def smoothed(share: float, folder: Path) -> AttackActor:
    """Class 0 has this share of the votes on the image, class 1 the others."""
    z = EXAMPLE.image / 127.5 - 1
    edge = float(z.sum()) - 8 * 0.5 * float(ndtri(share))
    classifier = DiffusionClassifier(BySum(edge), "apndc", grid=LEVELS, rows_per_pass=64)
    return actor_of(load_config("demo", ["noise=integer"]), classifier, folder)


def row(index: int, **changes: Any) -> dict[str, Any]:
    named = {"image_id": f"image {index}", "label": 0, "predicted": -1, "certified_radius": 0.0, "sigma_pixel": 0.25}
    return {**named, **changes}


def test_a_plurality_of_a_few_votes_is_no_fall_until_fresh_ones_confirm_it(tmp_path: Path) -> None:
    """A tie goes to another class in half of the attacks; fresh votes do not show that it has lost."""
    tied, lost = smoothed(0.5, tmp_path), smoothed(0.35, tmp_path)
    verdicts = [tied.strike(row(index), EXAMPLE.image, target=0, radius=0.0) for index in range(8)]
    assert 0 < sum(verdict.success for verdict in verdicts) < 8
    assert not any(verdict.confirmed for verdict in verdicts)
    verdict = lost.strike(row(0), EXAMPLE.image, target=0, radius=0.0)
    assert verdict.success
    assert verdict.confirmed
    assert not (tmp_path / "broken").exists(), "an image beyond the radius breaks no certificate"


def test_fresh_votes_are_not_those_of_the_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []
    actor = smoothed(0.35, tmp_path)
    draw = actor._draw

    def noted(row: dict[str, Any], image: np.ndarray, name: str, votes: int) -> Any:
        drawn.append((name, votes))
        return draw(row, image, name, votes)

    monkeypatch.setattr(actor, "_draw", noted)
    actor.strike(row(0), EXAMPLE.image, target=0, radius=0.0)
    assert drawn == [("attack 0 at 0.0", 20), ("confirmation at 0.0", 20 * CONFIRM_FACTOR)]


def test_within_the_radius_a_class_without_half_of_the_votes_is_broken(tmp_path: Path) -> None:
    claims = {"predicted": 0, "certified_radius": 0.1}
    verdict = smoothed(0.35, tmp_path).strike(row(0, **claims), EXAMPLE.image, target=0, radius=0.0)
    assert verdict.confirmed
    assert len(list((tmp_path / "broken").iterdir())) == 2


def test_scores_confirm_a_fall_by_a_bound_that_holds(tmp_path: Path) -> None:
    config = load_config("lipschitz")
    z = torch.from_numpy(EXAMPLE.image / 127.5 - 1).float()
    images = torch.stack([z, z] + [(z + 1).clamp(-1, 1)] * 8)
    classifier = DiffusionClassifier(
        ConstantDenoiser(images), "dc", grid=config.classifier.grid, weight="edm", loss_cap=0.2, rows_per_pass=64
    )
    actor = actor_of(config, classifier, tmp_path)
    tied = actor.strike(row(0, sigma_pixel=0.0), EXAMPLE.image, target=1, radius=0.0)
    assert tied.success
    assert not tied.confirmed
    lost = actor.strike(row(0, sigma_pixel=0.0), EXAMPLE.image, target=5, radius=0.0)
    assert lost.success
    assert lost.confirmed


@pytest.mark.parametrize(
    ("predicted", "counts", "radii"),
    [
        (None, (9, 1), [0.1]),
        (None, (4, 6), [0.0, 0.1]),  # yet to be shown wrong
        (0, (10, 0), [0.1]),
        (1, (0, 10), []),  # wrong with confidence
    ],
)
def test_an_abstention_is_shown_wrong_before_it_counts_as_such(
    predicted: int | None, counts: tuple[int, ...], radii: list[float]
) -> None:
    from ndc_core.certificates.certificate import Certificate

    certificate = Certificate("cohen", 0.25, 0.001, predicted, 0.0 if predicted is None else 0.05, 0.6, 1, 10, "all")
    item = CertifiedImage("digits", 0, certificate, counts, 1, 1.0)
    cell = cell_row(item, EXAMPLE.record(0), (0.0, 0.1))
    assert cell["radii"] == radii
    assert cell["right"] == (predicted in (None, 0))
