"""Heads tuned as a classifier's scores: the formula is the run's own, and held-out images judge."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ndc_core.checkpoints.denoisers import denoiser_digest, load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.formulas import CLASSIFIERS
from ndc_core.classifiers.scoring import scores
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import DrawNoise
from ndc_core.training.denoiser import TrainingSpec
from ndc_core.training.distillation import DistillationSpec
from ndc_core.training.image_classifier import ClassifierSpec
from ndc_core.training.tuning import Judgement, TuningSpec, estimate_without_label, sampled_scores, split, tune
from pipeline.cli import main

GRID = GridSpec(points=5, sigma_model_min=0.6, sigma_model_max=2.0, spacing="log")
SHAPE, CLASSES = (1, 8, 8), 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def heads(seed: int = 0) -> HeadsDenoiser:
    torch.manual_seed(seed)
    network = SmallHeadsUNet(image_channels=1, num_classes=CLASSES, channels=8)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)  # zeros at the start would make every class the same
    return HeadsDenoiser(network, image_shape=SHAPE, num_classes=CLASSES).eval().requires_grad_(False)


def linear_heads() -> HeadsDenoiser:
    """On a tiny network of EDM's."""
    arguments = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": CLASSES, "model_channels": 8}
    small = {"channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": []}
    torch.manual_seed(0)
    network = LinearHeadsNetwork(trunk="edm-song", arguments={**arguments, **small}, features=8)
    torch.nn.init.normal_(network.heads, std=0.1)
    return LinearHeadsDenoiser(network, image_shape=SHAPE, num_classes=CLASSES).eval().requires_grad_(False)


KINDS = {"small": heads, "linear": linear_heads}


def classifier_of(denoiser: HeadsDenoiser, name: str = "apndc-ensemble") -> DiffusionClassifier:
    return DiffusionClassifier(denoiser, name, grid=GRID, weight="edm", rows_per_pass=16)


def squares(count: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes: a bright square at one of three places."""
    labels = torch.arange(count) % CLASSES
    images = torch.zeros(count, *SHAPE, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 2 * label : 2 * label + 3, 2:6] = 180
    noise = torch.randint(0, 60, images.shape, generator=torch.Generator().manual_seed(0))
    return images + noise.byte(), labels


@pytest.mark.parametrize(("kind", "name"), [*(("small", name) for name in CLASSIFIERS), ("linear", "epndc")])
def test_sampled_scores_average_to_those_that_vote(kind: str, name: str) -> None:
    """Over noise and levels, at every formula: what is trained is what votes."""
    classifier, tau = classifier_of(KINDS[kind](), name), 0.3
    draws, rounds = (800, 120) if kind == "small" else (200, 30)
    z = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(1)).expand(draws, -1, -1, -1) * 2 - 1
    noise = np.random.default_rng(0).standard_normal((draws, GRID.steps, *SHAPE), dtype=np.float32)
    voting = scores(classifier, z.numpy(), tau_model=tau, noise=DrawNoise(z.numpy(), noise, noise[:, :0]))
    clean = estimate_without_label(classifier.denoiser, z, tau)
    generator = torch.Generator().manual_seed(2)
    drawn = [
        sampled_scores(classifier, z[:50], clean[:50], generator, tau_model=tau, levels=2).mean(dim=0).numpy()
        for _ in range(rounds)
    ]
    standard_error = np.std(drawn, axis=0) / len(drawn) ** 0.5 + voting.std(axis=0) / draws**0.5
    assert (np.abs(np.mean(drawn, axis=0) - voting.mean(axis=0)) < 5 * standard_error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_makes_wrong_votes_right(kind: str) -> None:
    images, labels = squares()
    seen: list[Judgement] = []
    spec = TuningSpec(steps=60, batch=24, max_seconds=None, learning_rate=5e-3, steps_to_judge=20)
    before = KINDS[kind]()
    weights = copy.deepcopy(before.state_dict())
    tuned = tune(classifier_of(before), images, labels, sigma_pixel=(0.1, 0.2), spec=spec, on_judgement=seen.append)
    assert list(tuned.judgements) == seen
    assert [judgement.step for judgement in seen] == [0, 20, 40, 60]
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[0].accuracy < 0.7 < 0.95 < seen[-1].accuracy
    # The parent is unchanged.
    assert all(torch.equal(weight, weights[name]) for name, weight in before.state_dict().items())


def test_the_best_judged_heads_are_kept_and_tuning_ends_when_nothing_gets_better() -> None:
    images, labels = squares()
    wrong = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    spec = TuningSpec(steps=400, batch=24, max_seconds=None, learning_rate=0.02, steps_to_judge=4, patience=2)
    held_out, _ = split(len(images), spec)
    mixed = wrong.clone()
    mixed[held_out] = labels[held_out]
    tuned = tune(classifier_of(heads()), images, mixed, sigma_pixel=(0.2,), spec=spec)
    losses = [judgement.loss for judgement in tuned.judgements]
    assert tuned.judgements[-1].step < 400
    best = int(np.argmin(losses))
    again = tune(
        classifier_of(tuned.denoiser), images, mixed, sigma_pixel=(0.2,), spec=replace(spec, steps=1, patience=100)
    )
    assert best <= len(losses) - 3
    assert again.judgements[0].accuracy == tuned.judgements[best].accuracy


def test_tuning_is_reproducible() -> None:
    images, labels = squares()
    spec = TuningSpec(steps=5, batch=12, max_seconds=None)
    first, second = (tune(classifier_of(heads()), images, labels, sigma_pixel=(0.2,), spec=spec) for _ in range(2))
    assert first.judgements == second.judgements
    for name, weight in first.denoiser.state_dict().items():
        assert torch.equal(weight, second.denoiser.state_dict()[name])


def test_held_out_images_are_not_learned_from() -> None:
    held_out, train = split(100, TuningSpec(held_out_share=0.1))
    assert len(held_out) == 10
    assert sorted([*held_out.tolist(), *train.tolist()]) == list(range(100))
    with pytest.raises(ValueError, match="50 images are too few to tune on"):
        split(50, TuningSpec(batch=48))


def test_a_thousand_images_judge_however_many_there_are() -> None:
    held_out, learned = split(50_000, TuningSpec())
    assert (len(held_out), len(learned)) == (1000, 49_000)
    assert not set(held_out.tolist()) & set(learned.tolist())


def test_an_unknown_augmentation_is_refused_by_every_training() -> None:
    for spec in (TuningSpec, ClassifierSpec, TrainingSpec, DistillationSpec):
        with pytest.raises(ValueError, match="augment 'mirror' is unknown; there are: none, jitter, flip-and-shift"):
            spec(augment="mirror")


def ndc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def digit_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "heads"
    options = ["--heads", "classes", "--steps", "3", "--channels", "8", "--batch", "16", "--limit", "100"]
    done = ndc("train", "digits", "--out", folder, *options, "--tracking", "none")
    assert done.exit_code == 0, done.output
    return folder


def test_heads_are_tuned_for_a_run_from_the_command_line(digit_heads: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    settings = ["--set", "sigma_pixel=[0.2]", "--set", "tracking=none"]
    done = ndc("tune", "fast", out, "--model", digit_heads, "--steps", "2", "--limit", "80", *settings)
    assert done.exit_code == 0, done.output
    assert "held-out images after step 2" in done.output
    assert load_denoiser(out).num_classes == 10
    notes = json.loads((out / "denoiser.json").read_text())["notes"]
    assert notes["parent_sha256"] == denoiser_digest(digit_heads)
    assert notes["tuned_for"]["sigma_pixel"] == [0.2]
    assert notes["split"] == "train"


def test_what_cannot_be_tuned_is_refused_before_any_work(digit_heads: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    np.savez(tmp_path / "other.npz", images=np.zeros((90, 8, 8, 1), dtype=np.uint8), labels=np.arange(90) % 3)
    for arguments, message in [
        (("--model", tiny_model), "has no class heads to tune"),
        (("--model", tmp_path / "nowhere"), "is no checkpoint"),
        (("--model", digit_heads, "--limit", "20"), "fewer than a batch of 48"),
        (("--model", digit_heads, "--data", tmp_path / "other.npz"), "the model takes (1, 8, 8) and knows 10"),
        (("--model", digit_heads, "--set", f"dataset.name='{tmp_path}/other.npz'"), "say with --data what to tune on"),
        (("--model", digit_heads, "--set", "unconditional='label_mean'"), "their own estimate without a label"),
    ]:
        done = ndc("tune", "fast", out, *arguments)
        assert done.exit_code == 1, done.output
        assert message in " ".join(done.output.split()), done.output
        assert not out.exists()
