"""Shapes and types of ndc_core are checked at every call while the tests run; what is dear to make is made once."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Tests run beside each other, and threads that meet at every operation wait for each other where cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

with install_import_hook("ndc_core", "tests.support.typechecker.check"):
    pass

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from ndc_core.training.denoiser import TrainingSpec, save_trained, train_denoiser
from tests.support.servers import s3_environment

# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder by its name once for all processes of the tests; those that come later get it as it is."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, half = shared / f"once-{name}", shared / f"half-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                half.mkdir()
                make(half)
                half.rename(folder)
        return folder

    return made


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: Path) -> Path:
    """A folder of its own to run in, in which MLflow's database is made already."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(mlflow_database, tmp_path)
    return tmp_path


@pytest.fixture
def workplace_without_ray(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where a run's actor is in this process."""
    from tests.support.in_process import replace_ray

    replace_ray(monkeypatch)
    return workplace


@pytest.fixture(scope="session")
def mlflow_database(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A new database of MLflow, to be copied: it takes seconds to make."""
    from mlflow import MlflowClient

    def make(folder: Path) -> None:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_once("database", make) / "mlflow.db"


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
def tiny_model(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A barely trained digits checkpoint: its votes are poor, and as deterministic as any."""
    from tests.support.small_runs import digits

    def make(folder: Path) -> None:
        torch.set_num_threads(1)
        examples = digits("train")
        spec = TrainingSpec(steps=60, batch=64, channels=8)
        denoiser = train_denoiser(
            torch.from_numpy(np.stack([example.image for example in examples])),
            torch.tensor([example.label for example in examples]),
            num_classes=10,
            spec=spec,
        )
        save_trained(folder / "tiny", denoiser, spec=spec, notes={})

    return made_once("model", make) / "tiny"


@pytest.fixture(scope="session")
def image_classifier(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A barely trained plain classifier of the same images."""
    from ndc_core.checkpoints.image_classifiers import save_small_classifier
    from ndc_core.training.image_classifier import ClassifierSpec, train_classifier
    from tests.support.small_runs import digits

    def make(folder: Path) -> None:
        torch.set_num_threads(1)
        examples = digits("train")
        classifier = train_classifier(
            torch.from_numpy(np.stack([example.image for example in examples])),
            torch.tensor([example.label for example in examples]),
            num_classes=10,
            spec=ClassifierSpec(steps=40, batch=64, channels=8),
        )
        save_small_classifier(folder / "classifier", classifier, arguments={"channels": 8}, notes={})

    return made_once("classifier", make) / "classifier"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs, servers and browsers come first, so that no long file is left alone at the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
