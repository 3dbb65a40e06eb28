"""The embedded model, trained as by default, on the 500 digits that it never saw."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.scoring import predict
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.smoothing import IntegerNoise, NoNoise
from ndc_core.noise.streams import DrawNoise, draw_noise
from ndc_core.space import bytes_to_pixels, pixels_to_model
from pipeline.data.datasets import DatasetSpec
from pipeline.declaration.toml_files import load_config
from pipeline.model_tools.train import plan_of, train_on
from pipeline.workers.models import build_classifier
from tests.support.small_runs import digits, listing_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4800)]  # training included

VOTES_COMPARED = 20_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All its steps, however slow the machine is: what the default time makes of them says more about the machine."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    data, settings = DatasetSpec("digits", split="train"), {"max_seconds": 3600.0}
    train_on(data, folder, plan_of(data, preset=None, network=None, options={}, settings=settings, heads=False))
    return folder


def test_only_the_training_split_is_trained_on(model: Path) -> None:
    notes = json.loads((model / "denoiser.json").read_text())["notes"]
    assert notes["images"] == 1297
    assert notes["sha256"] == listing_of(digits("train")).digest


def test_dc_classifies_98_percent_of_the_held_out_digits(model: Path) -> None:
    """DC on clean images: one noise for all classes at each of 16 levels from 0.2 to 2, weight edm."""
    torch.set_num_threads(2)
    grid = GridSpec(points=18, sigma_model_max=2.0, spacing="log", sigma_model_min=0.2)
    classifier = DiffusionClassifier(load_denoiser(model), "dc", grid=grid, weight="edm")
    examples = digits("test")
    z = pixels_to_model(np.stack([bytes_to_pixels(example.image) for example in examples]))
    noise = draw_noise(
        seed=0,
        image_id="all",
        phase="selection",
        draws=range(len(examples)),
        input_noise=NoNoise(0.0),
        image_shape=(1, 8, 8),
        refine_steps=grid.steps,
        sift_steps=0,
    )
    winners = predict(classifier, z, tau_model=0.0, noise=noise).winners
    accuracy = np.mean(winners == [example.label for example in examples])
    print(f"\nDC on {len(examples)} held-out digits: {100 * accuracy:.1f} %")
    assert len(examples) == 500
    assert accuracy >= 0.98


def winners_with(classifier: DiffusionClassifier, image: np.ndarray, noise: DrawNoise) -> np.ndarray:
    z = IntegerNoise(0.25).add(image, noise.input)
    return predict(classifier, z, tau_model=0.5, noise=noise).winners


def test_another_number_of_rows_a_pass_flips_at_most_one_vote_in_10000(model: Path) -> None:
    torch.set_num_threads(1)
    classifiers = [
        build_classifier(load_config("demo", [f"model={model}", f"compute.rows_per_pass={rows}"]), device="cpu")
        for rows in (128, 97)
    ]
    examples, flips = digits("test"), 0
    each = 500
    for example in examples[: VOTES_COMPARED // each]:
        spec = classifiers[0]
        assert spec.sift is not None
        noise = draw_noise(
            seed=0,
            image_id=example.image_id,
            phase="estimation",
            draws=range(each),
            input_noise=IntegerNoise(0.25),
            image_shape=(1, 8, 8),
            refine_steps=spec.grid.steps,
            sift_steps=spec.sift.grid.steps,
        )
        one, other = (winners_with(classifier, example.image, noise) for classifier in classifiers)
        flips += int((one != other).sum())
    print(f"\n{flips} of {VOTES_COMPARED:,} votes differ between 128 and 97 rows a pass")
    assert flips <= VOTES_COMPARED // 10_000
