"""`ndc train`: any images, any network; a training that was stopped goes on, one that fails keeps what was good."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.models.networks.edm_song import SongUNet
from ndc_core.training.denoiser import TrainingSpec
from ndc_core.training.fitting import Fitting, Machine
from pipeline.cli import main
from pipeline.data.datasets import DatasetSpec
from pipeline.model_tools import training_state
from pipeline.model_tools.train import machine_for, plan_of, train_on
from pipeline.model_tools.training_state import TrainingError, TrainingState

TINY_SONG = ["--network", "edm-song", "--channels", "8", "--channel-mult", "1,1", "--blocks", "1", "--batch", "4"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait for each other where cores are busy."""
    monkeypatch.setattr("pipeline.model_tools.train.usable_cores", lambda: 1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(12) % 3)
    return path


def ndc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def train(data: Path, out: Path, *more: str) -> Result:
    return ndc("train", data, "--out", out, *TINY_SONG, "--tracking", "none", *more)


def digits_training(out: Path, *, seconds_between: float, steps: int = 12) -> None:
    data = DatasetSpec("digits", split="train", limit=200)
    settings = {"steps": steps, "batch": 16, "channels": 8, "max_seconds": None}
    plan = plan_of(data, preset=None, network=None, options={}, settings=settings, heads=False)
    train_on(data, out, plan, seconds_between_checkpoints=seconds_between, say=lambda line: None)


def test_a_network_of_edm_is_trained_on_files_and_taken_as_a_model(photographs: Path, tmp_path: Path) -> None:
    done = train(photographs, tmp_path / "m", "--steps", "2", "--augment", "flip-and-shift")
    assert done.exit_code == 0, done.output
    assert "CPU, float32" in done.output
    denoiser = load_denoiser(tmp_path / "m")
    assert isinstance(denoiser.network, SongUNet)
    assert denoiser.image_shape, denoiser.num_classes == ((3, 8, 8), 3)
    assert denoiser.knows_no_label
    notes = json.loads((tmp_path / "m/denoiser.json").read_text())["notes"]
    assert notes["dataset"] == str(photographs)
    assert notes["images"] == 12
    assert notes["training"]["augment"] == "flip-and-shift"
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["denoiser.json", "denoiser.safetensors"]
    assert "holds a checkpoint already" in train(photographs, tmp_path / "m", "--steps", "2").output


def test_a_training_that_is_killed_goes_on_to_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    digits_training(tmp_path / "whole", seconds_between=1e9)
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "import pipeline.model_tools.train, tests.pipeline.model_tools.test_train as t\n"
        "pipeline.model_tools.train.usable_cores = lambda: 1\n"
        f"t.digits_training(Path({str(tmp_path / 'cut')!r}), seconds_between=0.0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while not any(step_of(path) >= 3 for path in (tmp_path / "cut").glob("step-*")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/denoiser.safetensors").exists()
    kept = TrainingState(tmp_path / "cut", {}, write=write_nothing).latest()
    assert kept is not None
    assert load_denoiser(kept).num_classes == 10  # a checkpoint like any other
    digits_training(tmp_path / "cut", seconds_between=1e9)
    whole, cut = (load_file(tmp_path / name / "denoiser.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not list((tmp_path / "cut").glob("step-*"))


def write_nothing(folder: Path, denoiser: Any, notes: dict[str, object]) -> None: ...


def step_of(path: Path) -> int:
    return 0 if path.suffix else int(path.name.removeprefix("step-"))


def test_another_training_does_not_go_on_with_what_was_begun(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(photographs, tmp_path / "m", monkeypatch)
    other = train(photographs, tmp_path / "m", "--steps", "5", "--seed", "1")
    assert other.exit_code == 1
    assert "holds the beginning of another training: its training is" in other.output
    same = train(photographs, tmp_path / "m", "--steps", "5")
    assert same.exit_code == 0, same.output
    assert "going on after step 2" in same.output


def interrupted(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after two steps, each of which kept a checkpoint."""

    def watch(state: TrainingState, fitting: Fitting[Any]) -> None:
        state.keep(fitting)
        if fitting.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "watch", watch)
        stopped = train(data, out, "--steps", "5")
    assert stopped.exit_code == 130, stopped.output


def test_a_full_disk_ends_a_training_with_the_last_checkpoint_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], torch.save

    def full_at_third(state: Any, path: Path) -> None:
        saved.append(path)
        save(state, path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state.torch, "save", full_at_third)
    with pytest.raises(TrainingError, match=r"No space left on device.*kept: .*step-00000002"):
        digits_training(tmp_path / "m", seconds_between=0.0)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["step-00000002"]
    assert load_denoiser(tmp_path / "m/step-00000002").num_classes == 10


def test_a_loss_that_is_no_number_ends_a_training_and_spoils_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ndc_core.training import denoiser as training

    honest, calls = training.edm_loss, []

    def breaking(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return honest(*arguments, **named) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(training, "edm_loss", breaking)
    with pytest.raises(TrainingError, match=r"loss is nan after step 4.*kept: .*step-00000003"):
        digits_training(tmp_path / "m", seconds_between=0.0)
    kept = load_denoiser(tmp_path / "m/step-00000003")
    assert all(bool(weight.isfinite().all()) for weight in kept.parameters())


def test_a_weight_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    fitting = Fitting(network, spec=TrainingSpec(), generator=torch.Generator())
    state = TrainingState(tmp_path, {}, write=write_nothing)
    state.keep(fitting)
    with torch.no_grad():
        network.weight[0, 0] = float("inf")
    fitting.step = 1
    with pytest.raises(RuntimeError, match="a weight is not finite after step 1"):
        state.keep(fitting)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]


def test_what_cannot_be_trained_is_refused_before_any_work(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    images = np.zeros((12, 8, 8, 3), dtype=np.uint8)
    labels = {"negative": np.arange(12) - 1, "one": np.zeros(12, dtype=int)}
    for name, wrong in labels.items():
        np.savez(tmp_path / f"{name}.npz", images=images, labels=wrong)
    for arguments, message in [
        (["nowhere.npz", *TINY_SONG, "--steps", "1"], "nowhere.npz"),
        ([photographs], "say what to train on"),
        ([photographs, "--preset", "cifar11"], "preset 'cifar11' is unknown; there are: small, cifar10-small, cifar10"),
        ([photographs, "--network", "unet", "--steps", "1"], "network 'unet' is not trained here"),
        ([photographs, "--network", "edm-song"], "say how long to train edm-song"),
        ([photographs, *TINY_SONG, "--steps", "1", "--batch", "13"], "has 12 images, fewer than a batch of 13"),
        ([photographs, *TINY_SONG, "--steps", "1", "--channels", "12"], "takes a multiple of 8 channels, not 12"),
        ([photographs, *TINY_SONG, "--steps", "1", "--channel-mult", "1,1,1,1,1"], "sides must be multiples of 16"),
        ([photographs, *TINY_SONG, "--steps", "1", "--augment", "mixup"], "augment 'mixup' is unknown"),
        ([photographs, *TINY_SONG, "--steps", "1", "--heads", "classes"], "class heads are of the small network only"),
        ([photographs, "--preset", "small", "--blocks", "2", "--batch", "4"], "the network small has no num_blocks"),
        ([tmp_path / "negative.npz", *TINY_SONG, "--steps", "1"], "has the label -1; labels must be integers from 0"),
        ([tmp_path / "one.npz", *TINY_SONG, "--steps", "1"], "images of one class only"),
        ([photographs, *TINY_SONG, "--steps", "1", "--device", "cuda"], "sees no CUDA device"),
    ]:
        done = ndc("train", *arguments, "--out", out)
        assert done.exit_code == 1, done.output
        assert message in " ".join(done.output.split()), done.output
        assert not out.exists()
    for usage in ([], ["digits", "--dataset", "digits"], ["digits", "--preset", "small", "--network", "small"]):
        assert ndc("train", *usage, "--out", out).exit_code == 2


def test_mlflow_may_fail_and_the_training_does_not(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/nowhere")
    done = ndc("train", photographs, "--out", tmp_path / "m", *TINY_SONG, "--steps", "2")
    assert done.exit_code == 0, done.output
    assert "MLflow failed, and the run goes on without" in done.output
    assert (tmp_path / "m/denoiser.safetensors").exists()


def test_metrics_go_to_one_run_of_mlflow_also_when_the_training_goes_on(
    photographs: Path, tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    database = shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setattr("pipeline.model_tools.training_tracker.LAST_SECONDS", 120.0)
    interrupted_with_mlflow = ["train", photographs, "--out", tmp_path / "m", *TINY_SONG, "--steps", "4"]

    def watch(state: TrainingState, fitting: Fitting[Any]) -> None:
        state.keep(fitting)
        if fitting.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "watch", watch)
        assert ndc(*interrupted_with_mlflow).exit_code == 130
    assert ndc(*interrupted_with_mlflow).exit_code == 0
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("ndc-training")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "training/loss")
    assert [point.step for point in history] == [2, 4]
    assert run.data.params["network"] == "edm-song"


def test_only_long_trainings_on_a_gpu_are_compiled_unasked() -> None:
    long, short = TrainingSpec(steps=20_000, batch=512, max_seconds=None), TrainingSpec()
    assert machine_for(long, device="cuda", compiled=None).compile
    assert not machine_for(long, device="cpu", compiled=None).compile
    assert not machine_for(short, device="cuda", compiled=None).compile
    assert machine_for(short, device="cpu", compiled=True) == Machine("cpu", compile=True)
