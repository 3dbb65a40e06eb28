"""Image classifiers of other programs are taken in whole, or refused with the reason."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ndc_core.checkpoints.denoisers import CheckpointError
from ndc_core.checkpoints.image_classifiers import classifier_digest, describe_classifier, load_classifier
from ndc_core.models.execution import Execution
from ndc_core.space import pixels_to_model
from pipeline.cli import main
from pipeline.model_tools.convert_classifier import export, take_in
from tests.support.small_runs import digits

SHAPE = (1, 8, 8)


def network(*, training: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*layers).train(training)


def saved(folder: Path, kind: str, *, training: bool = False) -> Path:
    model = network(training=training)
    if kind == "torchscript":
        path = folder / "model.pt"
        torch.jit.script(model).save(path)
        return path
    path = folder / "model.pt2"
    export(model, path, image_shape=SHAPE)
    return path


def taken(source: Path | str, out: Path, image_shape=SHAPE, mean=(0.3,), std=(0.4,)):
    return take_in(str(source), out, image_shape=image_shape, mean=list(mean), std=list(std))


@pytest.mark.parametrize("kind", ["torchscript", "torch.export"])
def test_a_program_scores_as_before_with_the_scale_that_was_given(tmp_path: Path, kind: str) -> None:
    description = taken(saved(tmp_path, kind), tmp_path / "out")
    assert (description.kind, description.num_classes) == (kind, 10)
    pixels = torch.rand(7, *SHAPE)
    with torch.inference_mode():
        scores = load_classifier(tmp_path / "out")(pixels_to_model(pixels))
        assert torch.allclose(scores, network()((pixels - 0.3) / 0.4), atol=1e-5)
        half = load_classifier(tmp_path / "out", execution=Execution("bfloat16"))(pixels_to_model(pixels))
    assert half.dtype == torch.float32
    assert torch.allclose(scores, half, atol=0.1)
    assert not torch.equal(scores, half)


def test_a_program_that_mixes_images_is_taken_out_of_training_mode_or_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"scores an image differently in another batch: .* save it after .eval"):
        taken(saved(tmp_path, "torch.export", training=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    taken(saved(tmp_path, "torchscript", training=True), tmp_path / "out")
    z = torch.randn(2, *SHAPE)
    with torch.inference_mode():
        assert torch.allclose(
            load_classifier(tmp_path / "out")(z)[:1], load_classifier(tmp_path / "out")(z[:1]), atol=1e-5
        )


def test_a_program_for_other_images_or_a_fixed_number_of_them_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, "torchscript")
    with pytest.raises(CheckpointError, match=r"does not take batches of any number of images of shape \(3, 8, 8\)"):
        taken(source, tmp_path / "out", image_shape=(3, 8, 8))
    fixed = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(network(), (torch.zeros(2, *SHAPE),)), fixed)
    with pytest.raises(CheckpointError, match="export with a dynamic first dimension"):
        taken(fixed, tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not say which images it takes; say it, as --image-shape"):
        taken(source, tmp_path / "out", image_shape=None)
    with pytest.raises(CheckpointError, match="2 numbers for 1 channels"):
        taken(source, tmp_path / "out", mean=(0.5, 0.5))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    for name in ("text.pt", "text.pt2"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(CheckpointError, match="is plain text, not a model"):
            taken(tmp_path / name, tmp_path / "out")
    images = tmp_path / "images.pt"
    torch.jit.script(nn.Conv2d(1, 1, 3, padding=1)).save(images)
    with pytest.raises(CheckpointError, match=r"gives outputs of shape \(3, 1, 8, 8\), not a score"):
        taken(images, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is not a file; give a TorchScript"):
        taken(tmp_path / "nothing.pt", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"is no image classifier: .*classifier.json is missing"):
        load_classifier(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_tied_to_its_file_and_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    taken(saved(tmp_path, "torchscript"), out)
    with pytest.raises(CheckpointError, match="holds an image classifier already"):
        taken(tmp_path / "model.pt", out)
    digest, path = classifier_digest(out), out / "classifier.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"notes": {"said": "later"}}))
    assert classifier_digest(out) == digest
    path.write_text(json.dumps(described | {"std": [0.5]}))
    assert classifier_digest(out) != digest
    path.write_text(json.dumps(described | {"file": "../other.pt"}))
    with pytest.raises(CheckpointError, match="is not in its folder"):
        describe_classifier(out)
    path.write_text(json.dumps(described))
    (out / "classifier.pt").write_bytes((out / "classifier.pt").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_classifier(out)


def test_a_model_of_timm_is_exported_with_the_scale_that_timm_says(tmp_path: Path, monkeypatch) -> None:
    model = network()
    model.pretrained_cfg = {"input_size": SHAPE, "mean": (0.2,), "std": (0.3,)}  # type: ignore[assignment]
    timm = ModuleType("timm")
    timm.create_model = lambda name, pretrained: {"small": model}[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    description = take_in("timm:small", tmp_path / "out", image_shape=None, mean=[], std=[])
    assert (description.kind, description.image_shape, description.mean, description.std) == (
        "torch.export",
        SHAPE,
        (0.2,),
        (0.3,),
    )
    assert description.notes["timm"] == "small"
    with pytest.raises(CheckpointError, match=r"timm does not give large with weights \(KeyError: 'large'\)"):
        take_in("timm:large", tmp_path / "none", image_shape=None, mean=[], std=[])
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"timm cannot be used here .* install ndc\[timm\]"):
        take_in("timm:small", tmp_path / "none", image_shape=None, mean=[], std=[])


def test_the_command_trains_a_classifier_that_knows_digits(tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "classifier"
    arguments = ["train", "--dataset", "digits", "--out", str(out), "--steps", "90", "--classifier", "--noise", "0.25"]
    result = run.invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert describe_classifier(out).notes["training"]["noise"] == [0.25]
    examples = digits("test")
    images = torch.stack([torch.tensor(example.image) for example in examples]) / 255
    noisy = images + 0.25 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([example.label for example in examples])
    right = load_classifier(out)(pixels_to_model(noisy)).argmax(dim=1) == labels
    assert float(right.float().mean()) > 0.85
    assert run.invoke(main, arguments).exit_code == 1
    for wrong in (["--noise", "0.25"], ["--classifier", "--heads", "classes"]):
        assert run.invoke(main, ["train", "--dataset", "digits", "--out", str(tmp_path / "x"), *wrong]).exit_code == 2


def test_the_command_takes_a_classifier_in(tmp_path: Path) -> None:
    source, out, run = saved(tmp_path, "torchscript"), tmp_path / "out", CliRunner()
    result = run.invoke(main, ["convert", "--classifier", "--image-shape", "1,8,8", str(source), str(out)])
    assert result.exit_code == 0, result.output
    assert "torchscript, 10 classes, images of (1, 8, 8)" in result.output
    assert describe_classifier(out).mean == (0.5,)
    for wrong in (["--image-shape", "8,8"], ["--mean", "grey"]):
        assert run.invoke(main, ["convert", "--classifier", *wrong, str(source), str(tmp_path / "x")]).exit_code == 2
    assert run.invoke(main, ["convert", "--mean", "0.5", str(source), str(tmp_path / "x")]).exit_code == 2
