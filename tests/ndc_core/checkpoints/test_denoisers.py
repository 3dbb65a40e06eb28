import json
import shutil
from pathlib import Path

import pytest
import torch

from ndc_core.checkpoints.denoisers import CheckpointError, denoiser_digest, load_denoiser, write_checkpoint
from ndc_core.models.networks.edm_adm import DhariwalUNet


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "denoiser.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loading_twice_gives_the_same_network_ready_for_inference(checkpoint: Path) -> None:
    first, second = load_denoiser(checkpoint), load_denoiser(checkpoint)
    assert first.image_shape == (1, 8, 8)
    assert first.num_classes == 10
    assert not any(parameter.requires_grad for parameter in first.parameters())
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(model(z, torch.ones(3), torch.eye(10)[:3]) for model in (first, second)))


def test_a_description_may_begin_with_a_byte_order_mark(checkpoint: Path) -> None:
    before = denoiser_digest(checkpoint)
    path = checkpoint / "denoiser.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert denoiser_digest(checkpoint) == before


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    weights = checkpoint / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or replaced"):
        load_denoiser(checkpoint)


def test_a_foreign_file_with_a_matching_hash_is_refused(checkpoint: Path) -> None:
    import hashlib

    weights = checkpoint / "denoiser.safetensors"
    weights.write_bytes(b"\x80\x04not a safetensors file")
    edit(checkpoint, weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_denoiser(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other/1"}, "not a checkpoint of this version"),
        ({"network": "gan"}, "unknown network 'gan'; there are: small"),
        ({"arguments": {"image_channels": 1}}, "does not describe a small network"),
        ({"arguments": {"image_channels": 1, "num_classes": 10, "channels": 16}}, "does not fit the network"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(checkpoint: Path, changes: dict, message: str) -> None:
    edit(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(checkpoint)


def test_a_folder_without_checkpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ndc train"):
        load_denoiser(tmp_path)
    (tmp_path / "denoiser.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_denoiser(tmp_path)


def test_digest_covers_weights_and_use_but_not_notes(checkpoint: Path) -> None:
    digest = denoiser_digest(checkpoint)
    edit(checkpoint, notes={"comment": "seen at the fair"})
    assert denoiser_digest(checkpoint) == digest
    edit(checkpoint, sigma_data=0.6)
    assert denoiser_digest(checkpoint) != digest


def test_weights_with_another_resampling_filter_are_refused(tmp_path: Path) -> None:
    arguments = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 16, "num_blocks": 1}
    weights = DhariwalUNet(**arguments).state_dict()
    name = next(name for name in weights if name.endswith("resample_filter"))
    weights[name] = weights[name] * 2
    write_checkpoint(
        tmp_path / "other",
        weights,
        network="edm-adm",
        arguments=arguments,
        image_shape=(1, 8, 8),
        num_classes=0,
        sigma_data=0.5,
        knows_no_label=True,
        notes={},
    )
    with pytest.raises(CheckpointError, match=r"does not fit the network: a resample_filter of the weights is .*0\.5"):
        load_denoiser(tmp_path / "other")
