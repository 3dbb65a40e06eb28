"""A pointer, a page or half a download is called what it is, wherever a model is read."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ndc_core.checkpoints.denoisers import CheckpointError, load_denoiser
from ndc_core.checkpoints.image_classifiers import CLASSIFIER_DESCRIPTION, load_classifier, save_small_classifier
from ndc_core.conversion.convert import convert
from ndc_core.models.image_classifier import ImageNetwork
from ndc_core.models.networks.small_classifier import SmallClassifier
from ndc_core.untrusted_files.file_kinds import foreign_kind
from pipeline.locations import location
from pipeline.model_tools.convert_classifier import take_in
from pipeline.workers.models import load_pair, local_checkpoint, local_classifier
from tests.support.edm_pickles import torch_saved

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 120000\n"


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return stream.getvalue()


def zipped() -> bytes:
    return torch_saved({"a": torch.zeros(1000)})


KINDS = {
    "lfs": (LFS, r"a git-lfs pointer to a file \(of 120,000 bytes\), not the file itself: run `git lfs pull`"),
    "lfs, by Windows": (LFS.replace(b"\n", b"\r\n"), "a git-lfs pointer"),
    "html": (b"<html><body>404 Not Found</body></html>", r"an HTML page, not a model \(404 Not Found\)"),
    "html5": (b"\n<!DOCTYPE html>\n<html lang='en'>" + b" " * 9000, "an HTML page, not a model"),
    "html, wide": ("<html>Sign in</html>".encode("utf-16"), r"an HTML page, not a model \(Sign in\)"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", r"an XML answer .*AccessDenied"),
    "json": (json.dumps({"error": "gated"}).encode(), r'JSON text, not a model \({"error": "gated"}\)'),
    "long json": (json.dumps([{"error": "gated"}] * 999).encode(), "JSON text, not a model"),
    "text": (b"Access denied", r"plain text, not a model \(Access denied\)"),
    "nothing": (b"", r"empty \(0 bytes\)"),
    "half a zip": (zipped()[:-300], "a zip archive whose end is missing: a download that was cut off"),
    "tar": (tar(), "a tar archive: unpack it"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "a file compressed with gzip: unpack it"),
}
MODELS = {
    "pickle": pickle.dumps({"a": 1}),
    "text pickle": pickle.dumps({"a": 1}, 0),
    "zip": zipped(),
    "legacy": torch_saved({"a": torch.zeros(3)}, legacy=True),
    "safetensors": save({"a": torch.zeros(3)}),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", ["pkl", "pt", "safetensors", "bin"])
def test_a_file_in_the_place_of_a_model_is_called_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    content, kind = KINDS[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.{suffix}.* is {kind}"):
        convert(path, tmp_path / "out")
    for end in ("pt", "pt2"):
        program = path.rename(tmp_path / f"program.{end}")
        with pytest.raises(CheckpointError, match=f"program.{end} is {kind}"):
            take_in(str(program), tmp_path / "out", image_shape=(1, 8, 8), mean=[], std=[])
        program.rename(path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MODELS)
def test_models_are_not_mistaken_for_other_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(MODELS[name])
    assert foreign_kind(tmp_path / "a") is None


def classifier(folder: Path) -> Path:
    network = SmallClassifier(image_shape=(1, 8, 8), num_classes=10, channels=8)
    made = ImageNetwork(network, image_shape=(1, 8, 8), num_classes=10, mean=(0.5,), std=(0.5,))
    save_small_classifier(folder, made, arguments={"channels": 8}, notes={})
    return folder


@pytest.mark.parametrize("name", ["lfs", "html", "nothing"])
def test_a_clone_without_its_large_files_is_named_by_every_loader(name: str, tmp_path: Path, tiny_model) -> None:
    content, kind = KINDS[name]
    folder, weights = tmp_path / "a", "denoiser.safetensors"
    folder.mkdir()
    (folder / "denoiser.json").write_bytes((tiny_model / "denoiser.json").read_bytes())
    (folder / weights).write_bytes(content)
    classifier_folder = classifier(tmp_path / "b")
    (classifier_folder / "classifier.safetensors").write_bytes(content)
    for load_model in (
        lambda: load_denoiser(folder),
        lambda: local_checkpoint(str(folder)),
        lambda: load_pair(str(tiny_model), str(folder), classifier="apndc", device="cpu"),
    ):
        with pytest.raises(CheckpointError, match=rf"a/{weights} is {kind}"):
            load_model()
    for load in (load_classifier, lambda where: local_classifier(str(where))):
        with pytest.raises(CheckpointError, match=rf"b/classifier\.safetensors is {kind}"):
            load(classifier_folder)
    (folder / "denoiser.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a/denoiser\.json is {kind}"):
        load_denoiser(folder)
    (classifier_folder / CLASSIFIER_DESCRIPTION).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"b/classifier\.json is {kind}"):
        load_classifier(classifier_folder)


def test_a_pointer_in_an_object_store_is_named(
    s3: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = location(f"{s3}/a")
    (place / "denoiser.json").write_bytes((tiny_model / "denoiser.json").read_bytes())
    (place / "denoiser.safetensors").write_bytes(LFS)
    with pytest.raises(CheckpointError, match=r"denoiser\.safetensors is a git-lfs pointer"):
        local_checkpoint(f"{s3}/a")
    (place / "denoiser.json").write_bytes(b"<html>Sign in</html>")
    with pytest.raises(CheckpointError, match=r"denoiser\.json is an HTML page"):
        local_checkpoint(f"{s3}/a")


def test_a_file_where_a_folder_belongs_is_answered_with_the_command_or_its_folder(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "lfs.pkl").write_bytes(LFS)
    for load in (local_checkpoint, local_classifier):
        with pytest.raises(CheckpointError, match=r"lfs\.pkl is a git-lfs pointer"):
            load(str(tmp_path / "lfs.pkl"))
    (tmp_path / "a.pt").write_bytes(MODELS["zip"])
    with pytest.raises(CheckpointError, match=r"run `ndc convert .*a\.pt models/a` and use that folder"):
        local_checkpoint(str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match=r"run `ndc convert --classifier .*a\.pt models/a` and use that folder"):
        local_classifier(str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="is a file of a checkpoint: name its folder"):
        local_checkpoint(str(tiny_model / "denoiser.safetensors"))
    with pytest.raises(CheckpointError, match="is no image classifier; it is a denoiser's folder"):
        local_classifier(str(tiny_model))


@pytest.mark.parametrize("name", ["zip", "pickle", "safetensors"])
def test_weights_without_a_program_are_no_classifier(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(MODELS[name])
    with pytest.raises(CheckpointError, match="holds weights or a pickled module, not a program"):
        take_in(str(tmp_path / "a.pt"), tmp_path / "out", image_shape=(1, 8, 8), mean=[], std=[])


def test_a_program_is_no_denoiser(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt: it is a program \(.*\); for a classifier.s program, use --classifier"
    ):
        convert(tmp_path / "a.pt", tmp_path / "out")
