"""`ndc distill` on networks of EDM's: what was stopped goes on, what fails keeps what was good, what is made votes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from safetensors.torch import load_file

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.training import distillation
from ndc_core.training.fitting import Fitting
from pipeline.cli import main
from pipeline.data.datasets import DatasetSpec
from pipeline.model_tools import training_state
from pipeline.model_tools.distill import distill
from pipeline.model_tools.distillation_settings import OF_PHOTOGRAPHS
from pipeline.model_tools.training_state import TrainingError, TrainingState
from tests.ndc_core.training.test_distillation import song_checkpoint

STEPS = 7


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return song_checkpoint(tmp_path_factory.mktemp("model") / "song", classes=3)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(12) % 3)
    return path


@pytest.fixture(autouse=True)
def short_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distillation of a few steps forgets answers and meets old ones again."""
    monkeypatch.setitem(OF_PHOTOGRAPHS, "kept", 2)
    monkeypatch.setitem(OF_PHOTOGRAPHS, "reuse", 2)


def distil(teacher: Path, data: Path, out: Path, *, seconds_between: float = 1e9, **more: Any) -> None:
    distill(
        str(teacher),
        out,
        data=DatasetSpec(str(data)),
        settings={"steps": STEPS, "batch": 4, **more},
        device="cpu",
        say=lambda line: None,
        seconds_between_checkpoints=seconds_between,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "denoiser.safetensors")


def test_a_distillation_that_is_stopped_goes_on_to_the_bits_of_one_that_is_not(
    teacher: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(teacher, photographs, tmp_path / "whole")

    def watch(state: TrainingState, fitting: Fitting[Any]) -> None:
        state.keep(fitting)
        if fitting.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "watch", watch)
        with pytest.raises(KeyboardInterrupt):
            distil(teacher, photographs, tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["step-00000004"]
    kept = load_denoiser(tmp_path / "cut/step-00000004")
    assert isinstance(kept, LinearHeadsDenoiser)  # a checkpoint like any other
    for other, message in [
        ({"seed": 1}, "another training: its training is"),
        (
            {"teacher": song_checkpoint(tmp_path / "other", classes=3, seed=1)},
            "another training: its teacher_sha256 is",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            distil(**{"teacher": teacher, "data": photographs, "out": tmp_path / "cut", **other})  # type: ignore[arg-type]
    distil(teacher, photographs, tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["denoiser.json", "denoiser.safetensors"]


def test_a_full_disk_ends_a_distillation_with_the_last_checkpoint_kept_and_named(
    teacher: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], torch.save

    def full_at_third(state: Any, path: Path) -> None:
        saved.append(path)
        save(state, path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state.torch, "save", full_at_third)
    with pytest.raises(TrainingError, match=r"No space left on device.*kept: .*step-00000002"):
        distil(teacher, photographs, tmp_path / "m", seconds_between=0.0)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["step-00000002"]
    assert load_denoiser(tmp_path / "m/step-00000002").num_classes == 3


def test_a_loss_that_is_no_number_ends_a_distillation_and_spoils_no_checkpoint(
    teacher: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = distillation.distillation_loss, []

    def breaking(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return honest(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(distillation, "distillation_loss", breaking)
    with pytest.raises(TrainingError, match=r"loss is nan after step 4.*kept: .*step-00000003"):
        distil(teacher, photographs, tmp_path / "m", seconds_between=0.0)
    kept = load_denoiser(tmp_path / "m/step-00000003")
    assert all(bool(weight.isfinite().all()) for weight in kept.parameters())


def ndc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_heads_on_the_teachers_network_are_made_from_the_command_line(
    teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    short = ["--steps", "2", "--batch", "4", "--device", "cpu", "--tracking", "none"]
    done = ndc("distill", teacher, photographs, tmp_path / "heads", *short)
    assert done.exit_code == 0, done.output
    assert "linear-heads for 3 classes on 12 images, CPU, float32" in done.output
    loaded = load_denoiser(tmp_path / "heads")
    assert isinstance(loaded, LinearHeadsDenoiser)
    assert loaded.knows_no_label
    assert loaded.network.label.tolist() == pytest.approx([1 / 3] * 3)  # the teacher knows no images without a label
    notes = json.loads((tmp_path / "heads/denoiser.json").read_text())["notes"]
    assert notes["training"]["augment"] == "flip-and-shift"


def test_a_distillation_and_a_tuning_are_one_mlflow_run_each(
    tiny_model: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.model_tools.training_tracker.LAST_SECONDS", 120.0)
    short = ["--steps", "3", "--limit", "80", "--device", "cpu"]
    assert ndc("distill", tiny_model, "digits", "heads", "--channels", "8", *short).exit_code == 0
    assert ndc("tune", "fast", "tuned", "--model", "heads", *short).exit_code == 0
    client = MlflowClient(f"sqlite:///{workplace}/mlflow.db")
    experiment = client.get_experiment_by_name("ndc-training")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"heads", "tuned"}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert {"training/loss", "training/images_per_s", "training/seconds"} <= set(run.data.metrics)
    assert runs["heads"].data.params["network"] == "small-heads"
    assert runs["tuned"].data.params["parent"] == "heads"
