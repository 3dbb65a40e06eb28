"""Shapes and types of ndc_core are checked at every call while the tests run."""

import os
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

with install_import_hook("ndc_core", "tests.typechecker.check"):
    pass

import numpy as np
import pytest
import torch

from ndc_core.training import TrainingSpec, save_trained, train_denoiser


@pytest.fixture
def ray_workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own to run in, on a local Ray that ends with the test."""
    import ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory):
    """A barely trained digits checkpoint: its votes are poor, and as deterministic as any."""
    from pipeline.datasets import digits

    torch.set_num_threads(1)
    examples = digits("train")
    spec = TrainingSpec(steps=60, batch=64, channels=8)
    denoiser = train_denoiser(
        torch.from_numpy(np.stack([example.image for example in examples])),
        torch.tensor([example.label for example in examples]),
        num_classes=10,
        spec=spec,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_trained(folder, denoiser, spec=spec, notes={})
    return folder
