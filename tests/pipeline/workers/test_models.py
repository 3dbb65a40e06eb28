"""Checkpoints by path or URI: fetched once for a node, checked, and never a pickle."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ndc_core.checkpoints.denoisers import (
    WEIGHTS_FILE,
    CheckpointError,
    denoiser_digest,
    load_denoiser,
    write_checkpoint,
)
from ndc_core.models.networks.small import SmallUNet
from pipeline.declaration.toml_files import load_config
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.workers.models import cache_folder, keep_compiled, load_models, local_checkpoint, model_digests
from tests.support.linear_heads import saved
from tests.support.small_runs import small_config


@pytest.fixture
def bucket(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI that holds the tiny model, and a node without anything cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"memory:/{tmp_path}/model"
    for path in tiny_model.iterdir():
        location(f"{uri}/{path.name}").fs.pipe_file(location(f"{uri}/{path.name}").path, path.read_bytes())
    return uri


def checkpoint(folder: Path, *, num_classes: int = 10, side: int = 8, knows_no_label: bool = True) -> Path:
    arguments = {"image_channels": 1, "num_classes": num_classes, "channels": 8}
    weights = SmallUNet(**arguments).state_dict()
    shape = (1, side, side)
    write_checkpoint(
        folder,
        weights,
        network="small",
        arguments=arguments,
        image_shape=shape,
        num_classes=num_classes,
        sigma_data=0.5,
        knows_no_label=knows_no_label,
        notes={},
    )
    return folder


def test_a_checkpoint_is_fetched_once_however_many_ask(
    bucket: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    memory = type(location(bucket).fs)
    fetch = memory.get_file
    monkeypatch.setattr(memory, "get_file", lambda *arguments: (fetched.append(arguments), fetch(*arguments)))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: local_checkpoint(bucket), range(16)))
    assert len(folders) == len(fetched) == 1
    assert denoiser_digest(folders.pop()) == denoiser_digest(tiny_model)


def test_weights_that_are_not_those_described_are_refused_and_not_kept(bucket: str, tiny_model: Path) -> None:
    weights = location(bucket) / WEIGHTS_FILE
    whole = weights.fs.cat_file(weights.path)
    weights.fs.pipe_file(weights.path, whole[:-1])
    with pytest.raises(CheckpointError, match=r"SHA-256 differs.*truncated or replaced"):
        local_checkpoint(bucket)
    assert not list(cache_folder("models").rglob(f"{WEIGHTS_FILE}*"))
    weights.fs.pipe_file(weights.path, whole)
    assert load_denoiser(local_checkpoint(bucket)).image_shape == (1, 8, 8)


def test_a_raw_pickle_is_never_loaded_and_the_command_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    payload = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    (tmp_path / "edm.pkl").write_bytes(payload)
    (tmp_path / "edm.pt").write_bytes(payload)
    for name in ("edm.pkl", "edm.pt"):
        source = tmp_path / name
        with pytest.raises(CheckpointError, match=rf"run `ndc convert {source} models/edm` and use that folder"):
            model_digests(small_config(source))
    assert not marker.exists()
    with pytest.raises(CheckpointError, match="take it in with `ndc convert FILE FOLDER`"):
        local_checkpoint(f"memory:/{tmp_path}/edm.pkl")


def test_a_model_that_needs_labels_names_its_ways_out(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "labels", knows_no_label=False)
    with pytest.raises(CheckpointError, match="never trained without a label, which apndc-ensemble asks for; set unc"):
        load_models(small_config(model), device="cpu")
    load_models(small_config(model, "classifier.name=epndc"), device="cpu")
    other = checkpoint(tmp_path / "none", num_classes=1)
    for choice, evaluations in (("label_mean", 10), ("blended_label", 1), (str(other), 1)):
        _, unconditional = load_models(small_config(model, f"unconditional={choice}"), device="cpu")
        assert unconditional.evaluations == evaluations
    digests = {
        choice: model_digests(small_config(model, f"unconditional={choice}"))["unconditional"]
        for choice in ("label_mean", str(other))
    }
    assert digests == {"label_mean": "label_mean", str(other): denoiser_digest(other)}


def test_a_model_without_classes_classifies_nothing(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "none", num_classes=1)
    with pytest.raises(CheckpointError, match="knows no classes: it can stand as unconditional, not as the model"):
        load_models(small_config(model), device="cpu")


def test_an_unconditional_model_of_other_images_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name, other in (
        ("size", checkpoint(tmp_path / "size", side=16)),
        ("labels", checkpoint(tmp_path / "labels", knows_no_label=False)),
    ):
        with pytest.raises(CheckpointError, match=rf"{name} cannot stand for"):
            load_models(small_config(tiny_model, f"unconditional={other}"), device="cpu")


def test_a_lipschitz_run_refuses_outputs_that_are_not_clipped_before_any_work(tmp_path: Path) -> None:
    config = load_config("lipschitz", [f"model={saved(tmp_path / 'heads')}"])
    with pytest.raises(CheckpointError, match="not clipped, and the lipschitz certificate needs outputs in"):
        prepare(config, location(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_precision_and_layout_are_the_configurations(tiny_model: Path) -> None:
    settings = ["compute.precision=bfloat16", "compute.channels_last=true"]
    denoiser, unconditional = load_models(small_config(tiny_model, *settings), device="cpu")
    assert denoiser.network.conv_in.weight.dtype == denoiser.network_dtype == torch.bfloat16
    assert denoiser.network.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert unconditional.denoiser is denoiser
    assert load_config("demo").compute.precision == "float32"


def test_a_checkpoint_from_before_the_key_knows_no_label(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "old"))
    path = folder / "denoiser.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "knows_no_label"}))
    assert load_denoiser(folder).knows_no_label


def test_compiled_kernels_are_kept_in_the_cache_unless_a_folder_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "to be taken back")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled()
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "ndc" / "inductor")
