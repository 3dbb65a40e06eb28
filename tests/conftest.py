"""Shapes and types of ndc_core are checked at every call while the tests run."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

with install_import_hook("ndc_core", "tests.support.typechecker.check"):
    pass

import numpy as np
import pytest
import torch
from hypothesis import settings

from ndc_core.training.denoiser import TrainingSpec, save_trained, train_denoiser
from tests.support.servers import s3_environment

# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


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
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database of MLflow, to be copied: it takes ten seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An imitation of S3 on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bucket in the imitation, to which the environment leads."""
    import s3fs

    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(use_listings_cache=False).makedirs("bucket", exist_ok=True)
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory):
    """A barely trained digits checkpoint: its votes are poor, and as deterministic as any."""
    from tests.support.small_runs import digits

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
