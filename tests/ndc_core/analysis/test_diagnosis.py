"""`ndc diagnose`: what each level tells about the class, and the grid that is proposed from it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from ndc_core.analysis.diagnosis import (
    MeasuredLosses,
    candidate_levels,
    credit,
    likeness_of,
    measure,
    noisy_images,
    noisy_images_of_a_draw,
)
from ndc_core.analysis.grid_search import GridSearch
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec, strided
from ndc_core.classifiers.scoring import predict
from ndc_core.classifiers.voter import PathDraws
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import answer
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import DrawNoise
from pipeline.cli import main
from pipeline.data.datasets import DatasetSpec, Example
from pipeline.declaration.toml_files import load_config
from pipeline.model_tools.diagnose import (
    Diagnosis,
    DiagnosisSettings,
    diagnose,
    rows_of_a_pass,
    spread_images,
)
from pipeline.model_tools.diagnosis_report import NOT_TOLD_APART, report
from tests.support.fakes import many_gaussians
from tests.support.linear_heads import linear_heads
from tests.support.small_runs import digits

SIGMAS = (0.125, 0.25)
TAUS = (0.25, 0.5)
BAND = (0.8, 1.5)
IMAGES = 8


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)
    monkeypatch.setattr("pipeline.model_tools.diagnose.usable_cores", lambda: 1)


class Shades:
    """Classes are shades of grey; the network knows the label's shade only where sigma lies within a band."""

    image_shape = (1, 8, 8)
    num_classes = 4

    def __init__(self, band: tuple[float, float]) -> None:
        self.band = band
        self.shades = torch.linspace(-0.6, 0.6, self.num_classes)

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        nearest = self.shades[(z.mean((1, 2, 3))[:, None] - self.shades).abs().argmin(1)]
        told = (sigma_model >= self.band[0]) & (sigma_model <= self.band[1])
        labelled = torch.where(told, label @ self.shades, 0.3)
        shade = torch.where(label.any(1), labelled, nearest)
        return shade[:, None, None, None].expand_as(z)


def shaded(count: int) -> list[Example]:
    shades = np.linspace(-0.6, 0.6, 4)
    images = np.rint((shades + 1) / 2 * 255).astype(np.uint8)
    return [Example(str(n), np.full((1, 8, 8), images[n % 4]), n % 4) for n in range(count)]


def classifier_of(denoiser: Denoiser, name: str = "apndc", levels: tuple[float, ...] = ()) -> DiffusionClassifier:
    grid = GridSpec(levels=levels or candidate_levels(SIGMAS))
    return DiffusionClassifier(denoiser, name, grid, weight="edm", rows_per_pass=32)


def diagnosed(denoiser: Denoiser, *, budget: int = 4) -> Diagnosis:
    settings = DiagnosisSettings(SIGMAS, ("apndc",), "null_label", ("edm",), budget=budget, draws=2, seed=0)
    return diagnose("shades", DatasetSpec("shades"), settings, [classifier_of(denoiser)], shaded(16))


def gaussian_images() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 1, 16)).astype(np.uint8)
    return images, np.arange(IMAGES) % 5


def measured_gaussians(name: str, *, heads: bool = False) -> MeasuredLosses:
    classifier = classifier_of(many_gaussians(5, heads=heads), name)
    (measured,) = measure([classifier], *gaussian_images(), sigma_pixel=SIGMAS, draws=3, seed=7)
    return measured


# Measuring


def test_a_network_that_ignores_its_label_is_reported() -> None:
    diagnosis = diagnosed(Shades(band=(9.0, 9.0)))
    measured = diagnosis.measured
    np.testing.assert_allclose(measured.cosine, 1)
    np.testing.assert_allclose(measured.difference, 0, atol=1e-7)
    np.testing.assert_allclose(measured.one_level_accuracy[measured.counts], 1 / 4)
    assert not measured.told_apart
    said: list[str] = []
    report(diagnosis, Path("out"), said.append)
    assert NOT_TOLD_APART in said


def test_a_level_that_does_not_lie_beyond_the_first_above_tau_has_no_number() -> None:
    measured = measured_gaussians("epndc")
    levels = np.array(measured.levels)
    for tau, tau_model in enumerate(TAUS):
        beyond = levels[1:] > levels[levels > tau_model][0]
        np.testing.assert_array_equal(measured.counts[tau], beyond)
        np.testing.assert_array_equal(np.isnan(measured.one_level_accuracy[tau]), ~beyond)
        np.testing.assert_array_equal(np.isfinite(measured.gaps[:, :, tau]).all(axis=(0, 1)), beyond)


def test_noise_at_a_level_is_that_at_tau_plus_independent_noise() -> None:
    levels = GridSpec(levels=(0.3, 0.6, 1.2))
    image = np.full((1, 16, 16), 128, dtype=np.uint8)
    z, later = noisy_images(levels, image, SIGMAS, name="x", draws=200, seed=1)
    clean = 2 * 128 / 255 - 1
    for noisy, tau in zip(z, TAUS, strict=True):
        assert (noisy - clean).var() == pytest.approx(tau**2, rel=0.03)
        for step, level in enumerate((0.6, 1.2)):
            increment = later[:, step] - noisy
            assert increment.var() == pytest.approx(level**2 - tau**2, rel=0.03)
            assert abs(np.corrcoef(increment.ravel(), noisy.ravel())[0, 1]) < 0.02


def test_likeness_is_the_mean_over_pairs() -> None:
    outputs = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    flat = outputs.flatten(2).double()
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = torch.stack([torch.cosine_similarity(flat[:, a], flat[:, b], dim=-1) for a, b in pairs]).mean(0)
    squared = torch.stack([(flat[:, a] - flat[:, b]).square().sum(-1) for a, b in pairs]).mean(0)
    truth = torch.stack([cosine, squared / flat.square().sum(-1).mean(1)], dim=1)
    torch.testing.assert_close(likeness_of(outputs), truth)


def test_classes_that_tie_share_the_vote() -> None:
    losses = np.array([[1.0, 1.0, 2.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(credit(losses, np.array([0, 0, 0])), [0.5, 1, 0])


@pytest.mark.parametrize("name", ["apndc", "epndc"])
def test_class_heads_are_measured_as_labels_are(name: str) -> None:
    np.testing.assert_allclose(measured_gaussians(name).losses, measured_gaussians(name, heads=True).losses, rtol=1e-5)


def test_passes_of_class_heads_are_as_small_as_the_images_of_many_classes_need() -> None:
    heads = linear_heads()
    assert rows_of_a_pass(heads) == 256
    heads.num_classes, heads.image_shape = 1000, (3, 64, 64)
    assert rows_of_a_pass(heads) == 10
    assert rows_of_a_pass(many_gaussians(1000)) == 256  # one class at a time


# Choosing


@pytest.mark.parametrize("name", ["apndc", "epndc"])
def test_a_grid_is_judged_by_the_votes_that_it_would_give(name: str) -> None:
    measured = measured_gaussians(name)
    denoiser = many_gaussians(5)
    levels = measured.levels[2:30:6]
    search = GridSearch(classifier_of(denoiser, name), measured, TAUS, seed=0)
    winners = search.losses(levels, np.arange(IMAGES)).argmin(axis=-1)
    voting = classifier_of(denoiser, name, levels)
    images, _ = gaussian_images()
    for index, image in enumerate(images):
        z, later = noisy_images(GridSpec(levels=measured.levels), image, SIGMAS, name=str(index), draws=3, seed=7)
        own = [measured.levels[1:].index(level) for level in levels[1:]]
        task = voting.votes(PathDraws(tuple(z), later[:, own], TAUS))
        votes = answer(task, rows_per_pass=32, device=torch.device("cpu"))
        np.testing.assert_array_equal(winners[index].T, [prediction.winners for prediction in votes])


def test_levels_are_proposed_where_classes_are_told_apart_and_no_more_than_help() -> None:
    diagnosis = diagnosed(Shades(BAND))
    proposal = diagnosis.proposal
    assert all(BAND[0] <= level <= BAND[1] for level in proposal.levels[1:])
    assert 1 <= proposal.evaluations <= 4
    assert proposal.accuracy == (1.0, 1.0)
    assert diagnosis.measured.told_apart


def test_every_tau_of_a_proposal_has_a_term_and_the_first_level_none() -> None:
    search = GridSearch(classifier_of(many_gaussians(5)), measured_gaussians("apndc"), TAUS, seed=0)
    grown = search.greedy(6)
    assert [len(levels) for levels in grown] == [2, 3, 4, 5, 6, 7]
    assert all(levels[-2] > max(TAUS) for levels in [*grown, *search.evenly_spaced(6)])
    assert len(search.greedy(1000)) == len(search.measured.levels) - 1
    assert search.judged(grown[2]).evaluations == 3


def test_half_of_the_images_choose_levels_a_quarter_ways_to_vote_and_a_quarter_judges() -> None:
    search = GridSearch(classifier_of(many_gaussians(5)), measured_gaussians("apndc"), TAUS, seed=0)
    assert sorted(np.concatenate(search.parts)) == list(range(IMAGES))
    assert [len(part) for part in search.parts] == [4, 2, 2]


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("gap", [1.2, 2.0])
@pytest.mark.parametrize("name", ["apndc", "epndc"])
def test_a_race_on_measured_losses_is_the_race_that_votes_would_run(name: str, gap: float, heads: bool) -> None:
    measured, denoiser = measured_gaussians(name, heads=heads), many_gaussians(5, heads=heads)
    levels = measured.levels[2:30:4]
    search = GridSearch(classifier_of(denoiser, name), measured, TAUS, seed=0)
    voting = replace(classifier_of(denoiser, name, levels), race=RaceSpec(gap), one_path=True)
    raced = search.raced(levels, np.arange(IMAGES), gap)
    images, labels = gaussian_images()
    for index, image in enumerate(images):
        z, later = noisy_images(GridSpec(levels=measured.levels), image, SIGMAS, name=str(index), draws=3, seed=7)
        for tau, (noisy, tau_model) in enumerate(zip(z, TAUS, strict=True)):
            beyond = [level for level in levels[1:] if level > next(other for other in levels if other > tau_model)]
            own = [measured.levels[1:].index(level) for level in beyond]
            (votes,) = answer(
                voting.votes(PathDraws((noisy,), later[:, own], (tau_model,))),
                rows_per_pass=32,
                device=torch.device("cpu"),
            )
            estimating = 3 * voting.estimator.evaluations if voting.formula.needs_estimate else 0
            assert raced.accuracy[index, tau] == np.mean(votes.winners == labels[index])
            assert 3 * raced.evaluations[index, tau] == pytest.approx(votes.evaluations - estimating)


def test_the_ensemble_is_measured_as_it_votes() -> None:
    denoiser = many_gaussians(5)
    (measured,) = measure(
        [classifier_of(denoiser, "apndc-ensemble")], *gaussian_images(), sigma_pixel=SIGMAS, draws=3, seed=7
    )
    search = GridSearch(classifier_of(denoiser, "apndc-ensemble"), measured, TAUS, seed=0)
    voting = classifier_of(denoiser, "apndc-ensemble", measured.levels)
    winners = search.losses(measured.levels, np.arange(IMAGES)).argmin(axis=-1)
    for index, image in enumerate(gaussian_images()[0]):
        z, later = noisy_images(voting.grid, image, SIGMAS, name=str(index), draws=3, seed=7)
        fresh = np.random.default_rng((7, index)).standard_normal(later.shape, dtype=np.float32)
        for tau, (noisy, tau_model) in enumerate(zip(z, TAUS, strict=True)):
            votes = predict(
                voting,
                noisy,
                tau_model=tau_model,
                noise=DrawNoise(np.zeros((3, 1, 1, 16)), fresh, np.zeros((3, 0, 1, 1, 16), np.float32)),
            )
            np.testing.assert_array_equal(winners[index, :, tau], votes.winners)


def test_classifiers_on_one_path_are_evaluated_once_and_measured_as_each_alone() -> None:
    denoiser, rows = many_gaussians(5), list[int]()

    class Counted:
        image_shape, num_classes = denoiser.image_shape, denoiser.num_classes

        def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
            rows.append(len(z))
            return denoiser(z, sigma_model, label)

    alone = [measured_gaussians(name).losses for name in ("epndc", "apndc")]
    classifiers = [classifier_of(Counted(), name) for name in ("epndc", "apndc")]
    places: list[int] = []
    together = measure(classifiers, *gaussian_images(), sigma_pixel=SIGMAS, draws=3, seed=7, on_places=places.append)
    for losses, measured in zip(alone, together, strict=True):
        np.testing.assert_allclose(losses, measured.losses)
    assert sum(places) == IMAGES * 3 * noisy_images_of_a_draw(classifiers, TAUS)
    both, rows[:] = sum(rows), []
    measure(classifiers[1:], *gaussian_images(), sigma_pixel=SIGMAS, draws=3, seed=7)
    assert both == sum(rows)


@pytest.mark.parametrize(("misleading", "chosen"), [(False, 0.1), (True, None)])
def test_the_cheapest_race_that_is_as_accurate_is_chosen(misleading: bool, chosen: float | None) -> None:
    levels = (0.3, 0.6, 0.9, 1.2, 1.5)
    losses = np.zeros((IMAGES, 1, 1, 4, 2))
    losses[..., 1] = 1.0  # the label's rival
    if misleading:
        losses[..., strided(4)[0], :] = [0.5, 0.0]
    counts, nothing = np.ones((1, 4), dtype=bool), np.zeros(4)
    measured = MeasuredLosses(levels, np.zeros(IMAGES, dtype=int), losses, counts, nothing, nothing)
    search = GridSearch(classifier_of(many_gaussians(2), "apndc", levels), measured, (0.25,), seed=0)
    assert search.raced(levels, search.parts[2], None).accuracy.mean() == 1
    assert search.gap(levels, [0.1]) == chosen
    assert search.gap(levels, [1e6]) is None, "which costs what no race costs"


# The command


def ndc(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)])


def test_the_command_writes_a_run_that_can_be_certified(tiny_model: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "found", ("epndc", "apndc", "apndc-ensemble")
    to_choose_from = [word for name in names for word in ("--classifier", name)]
    done = ndc(tiny_model, "digits", "--limit", 8, "--draws", 1, "--budget", 5, "--out", out, *to_choose_from)
    assert done.exit_code == 0, done.output
    assert "8 images of digits (training split): half chose levels" in done.output
    assert {path.name for path in out.iterdir()} == {"run.toml", "diagnosis.json", "diagnosis.png", "diagnosis.svg"}
    config, written = load_config(str(out / "run.toml"), []), json.loads((out / "diagnosis.json").read_text())
    assert f"ndc certify {out}/run.toml --run runs/" in done.output
    assert (config.dataset.name, config.dataset.split) == ("digits", "test")
    assert config.model == str(tiny_model)
    assert 2 <= len(config.classifier.grid.levels) <= 6
    assert [config.classifier.name, config.classifier.weight] == [written["classifier"], written["weight"]]
    assert config.classifier.name in names
    assert (config.classifier.race.gap if config.classifier.race else None) == written["race"]["gap"]
    assert len(written["candidates"]) == 6
    assert list(config.classifier.grid.levels) == written["proposal"]["levels"]
    assert written["one_level_accuracy"][2][0] is None


def test_a_run_on_ones_own_data_gets_its_images_when_it_is_certified(tiny_model: Path, tmp_path: Path) -> None:
    some = digits("train", limit=16)
    for name in ("learned", "kept"):
        np.savez(
            tmp_path / f"{name}.npz",
            images=np.stack([example.image[0] for example in some]),
            labels=np.array([example.label for example in some]),
        )
    short = ["--draws", 1, "--budget", 2, "--format", "npz"]
    done = ndc(tiny_model, tmp_path / "learned.npz", *short, "--out", tmp_path / "found")
    assert done.exit_code == 0, done.output
    assert f"ndc certify {tmp_path}/found/run.toml --data IMAGES-TO-CERTIFY" in done.output
    config = load_config(str(tmp_path / "found/run.toml"), [f"dataset.name='{tmp_path}/kept.npz'"])
    assert (config.dataset.name, config.dataset.format) == (f"{tmp_path}/kept.npz", "npz")


def test_images_are_of_the_training_split_and_spread_over_it(tiny_model: Path) -> None:
    ids = [example.image_id for example in digits("train")]
    examples = spread_images(DatasetSpec("digits", split="train", limit=10), load_denoiser(tiny_model), say=print)
    places = [ids.index(example.image_id) for example in examples]
    assert len(places) == 10
    assert (places[0], places[-1]) == (0, len(ids) - 1)
    assert max(np.diff(places)) - min(np.diff(places)) <= 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sigma-pixel", 1.6], "leaves no two levels between it and 3"),
        (["--sigma-pixel", 0], "must be positive"),
        (["--sigma-pixel", 0.25, "--sigma-pixel", 0.25], "different levels"),
        (["--weight", "heavy"], "unknown weight 'heavy'"),
        (["--weight", "edm", "--weight", "heavy"], "unknown weight 'heavy'"),
        (["--limit", 7], "7 is not in the range"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tiny_model: Path, tmp_path: Path, arguments: list[object], reason: str
) -> None:
    out = tmp_path / "out"
    refused = ndc(tiny_model, "digits", "--out", out, *arguments)
    assert refused.exit_code != 0
    assert reason in refused.output
    assert not out.exists()


def test_models_and_data_that_cannot_be_used_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no checkpoint" in ndc(tmp_path / "nothing", "digits", "--out", out).output
    assert "dataset 'digit' is unknown" in ndc(tiny_model, "digit", "--out", out).output
    np.savez(tmp_path / "unlabelled.npz", images=np.zeros((5, 8, 8), dtype=np.uint8))
    assert "labels" in ndc(tiny_model, tmp_path / "unlabelled.npz", "--out", out).output
    few = {"images": np.zeros((7, 8, 8), dtype=np.uint8), "labels": np.arange(7)}
    np.savez(tmp_path / "few.npz", **few)
    assert "needs at least 8" in ndc(tiny_model, tmp_path / "few.npz", "--out", out).output
    large = {"images": np.zeros((8, 9, 9), dtype=np.uint8), "labels": np.arange(8)}
    np.savez(tmp_path / "large.npz", **large)
    assert "the model takes (1, 8, 8)" in ndc(tiny_model, tmp_path / "large.npz", "--out", out).output
    assert not out.exists()


def test_apndc_needs_a_model_that_was_trained_without_a_label_or_another_estimate(
    tiny_model: Path, tmp_path: Path
) -> None:
    needy = shutil.copytree(tiny_model, tmp_path / "needy")
    description = json.loads((needy / "denoiser.json").read_text())
    (needy / "denoiser.json").write_text(json.dumps({**description, "knows_no_label": False}))
    short = ["--limit", 8, "--draws", 1, "--budget", 1, "--out", tmp_path / "out"]
    assert "or take epndc" in ndc(needy, "digits", *short).output
    done = ndc(needy, "digits", *short, "--unconditional", "blended_label")
    assert done.exit_code == 0, done.output
    assert load_config(str(tmp_path / "out/run.toml"), []).unconditional == "blended_label"
