"""Folders of classes, tars of samples, and EDM's zips."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from upath import UPath

from pipeline.data.formats import open_source
from pipeline.data.source import DataError
from pipeline.locations import LocationError
from pipeline.locations import location as as_location
from tests.support.stored_images import (
    COUNT,
    ENCODED,
    EXPECTED,
    JUNK,
    NAMES,
    PIXELS,
    RNG,
    SHUFFLED,
    notes_of,
    observed,
    peak_of,
    put,
    python_batch,
    samples,
    tar_of,
    write_edm,
    write_folder,
    write_tars,
    zip_of,
)


def test_resharded_tars_are_the_same_set(here: UPath) -> None:
    whole = put(here / "all.tar.gz", tar_of(samples(range(COUNT)), "w:gz"))
    for number in range(3):
        put(here / "three" / f"{number}.tar", tar_of(samples(SHUFFLED[number::3])))
    assert sorted(observed(whole)) == sorted(observed(here / "three"))


def test_system_files_in_class_folders_are_no_images(root: UPath) -> None:
    folder = write_folder(root)
    before = observed(folder)
    for name in JUNK:
        put(folder / name, ENCODED[0])
    assert observed(folder) == before
    assert open_source(folder, format=None, split="test").class_names == NAMES
    # Only the names of the three leftover folders beside the classes are read. Two files come from the writer.
    note = notes_of(folder)
    assert "passed over as no images: 13 (" in note
    assert "2 ._*, 2 .ipynb_checkpoints/, 2 @eaDir/" in note


def test_system_files_in_a_zip_are_no_images(root: UPath) -> None:
    before = observed(write_edm(root))
    with zipfile.ZipFile(io.BytesIO((root / "edm.zip").read_bytes())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    junk = dict.fromkeys([*JUNK, "__MACOSX/00000/._img00000000.png", "readme.txt"], ENCODED[0])
    again = put(root / "again" / "edm.zip", zip_of(files | junk))
    assert observed(again) == before
    assert "passed over as no images: 13 (" in notes_of(again)
    assert "1 *.txt" in notes_of(put(root / "b.zip", zip_of(files | {"readme.txt": b""})))


def test_system_files_in_tars_are_no_samples(root: UPath) -> None:
    before = observed(write_tars(root))
    # macOS's tar writes `._name` before each name, between the parts of a sample too.
    doubled = {
        name: content
        for path, part in samples(range(COUNT)).items()
        for name, content in ((path.replace("s/", "s/._"), b"Mac OS X"), (path, part))
    }
    again = put(root / "again.tar", tar_of({"__MACOSX/s/00.png": b"", "s/@eaDir/00.png/T.png": b""} | doubled))
    assert sorted(observed(again)) == sorted(before)
    assert "passed over as no images: 26 (24 ._*, 1 __MACOSX/, 1 @eaDir/)" in notes_of(again)
    batches = {"cifar-100-python/._test": b"", "cifar-100-python/test": python_batch(), "cifar-100-python/train": b""}
    assert len(observed(put(root / "cifar-100-python.tar", tar_of(batches)))) == COUNT


def test_an_empty_class_folder_is_named_wherever_it_stands_in_the_order(here: UPath) -> None:
    folder = write_folder(here)
    put(folder / "aardvark" / "Thumbs.db", b"")
    for format in (None, "image-folder"):
        with pytest.raises(DataError, match="images/aardvark holds no image; fill the class folder or remove it"):
            observed(folder, format)


def restarting(root: UPath) -> UPath:
    for name, rows in (("a.tar", range(6)), ("b.tgz", range(6, COUNT))):
        files = samples(rows)
        renamed = {f"{int(path[2:4]) % 6:02d}{path[4:]}": content for path, content in files.items()}
        put(root / "restart" / name, tar_of(renamed, "w:gz" if name == "b.tgz" else "w"))
    return root / "restart"


def test_keys_that_restart_in_each_shard_are_told_apart_by_the_shards_names(root: UPath) -> None:
    location = restarting(root)
    whole = observed(location)
    assert [image_id for image_id, _, _ in whole] == [f"{shard}/{key:02d}" for shard in "ab" for key in range(6)]
    assert sorted((label, pixels) for _, label, pixels in whole) == EXPECTED
    assert observed(location / "*.t*", "webdataset") == whole
    first = next(open_source(location, format=None, split="test").entries())
    assert first.image_id == "a/00"  # also in a pass that stays in the first shard
    assert "keys restart in the shards (00 comes again): ids are the shard's name and the key" in notes_of(location)
    assert observed(location / "a.tar")[0][0] == "00"
    assert "restart" not in notes_of(write_tars(root))


def test_only_the_beginning_of_other_shards_is_read_for_ids(here: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / "shards" / "0.tar", tar_of(samples(range(2))))
    put(here / "shards" / "1.tar", tar_of(samples(range(2, 3)) | {"s/99.bin": RNG.bytes(3_000_000)}))
    fetched = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            content = super().read(size)
            fetched.append(len(content) if str(self.name).endswith("1.tar") else 0)
            return content

    def opened(fs: object, path: str, mode: str, **options: str) -> Counting:
        assert path.endswith("0.tar") or options == {"cache_type": "none"}, "a cache would read ahead"
        return Counting(path)

    monkeypatch.setattr(type(here.fs), "open", opened)  # each thread has a file system of its own
    assert next(open_source(here / "shards", format=None, split="test").entries()).image_id == "s/00"
    assert 0 < sum(fetched) < 100_000


def test_shards_in_several_folders_are_told_apart_by_their_folders(root: UPath) -> None:
    for name, row in (("cat", 0), ("dog", 1)):
        put(root / "by-class" / name / "0.tar", tar_of({"000.png": ENCODED[row], "000.cls": b"%d" % row}))
    assert [image_id for image_id, _, _ in observed(root / "by-class" / "*" / "*.tar", "webdataset")] == [
        "cat/0/000",
        "dog/0/000",
    ]


def test_a_zip_that_says_something_twice_is_refused(here: UPath) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 1]]}))
        archive.writestr("a.png", ENCODED[0])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", ENCODED[1])
    with pytest.raises(DataError, match=r"a.zip holds a.png twice"):
        observed(put(here / "a.zip", stream.getvalue()))
    labels = json.dumps({"labels": [["a.png", 1], ["a.png", 2]]}).encode()
    with pytest.raises(DataError, match=r"dataset.json gives a.png two labels, 1 and 2"):
        observed(put(here / "b.zip", zip_of({"dataset.json": labels, "a.png": ENCODED[0]})))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_name_that_is_no_utf_8_has_an_id_that_is(here: UPath, kind: str) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    if kind == "tar":
        location = put(here / "a.tar", tar_of({f"{name}/0.png": ENCODED[0], f"{name}/0.cls": b"0"}))
    else:
        location = put(here / "set" / name / "0.png", ENCODED[0]).parent.parent
    [(image_id, label, pixels)] = observed(location)
    assert (image_id.removesuffix(".png"), label, pixels) == (r"caf\xe9/0", 0, PIXELS[0].tobytes())
    assert pa.array([image_id]).to_pylist() == [image_id]
    assert r"not UTF-8" in notes_of(location)
    names = open_source(location, format=None, split="test").class_names
    assert names == (None if kind == "tar" else (r"caf\xe9",))


def test_an_image_with_a_name_that_is_no_utf_8_is_named_where_it_is_at_fault(here: UPath) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    put(write_folder(here) / name, ENCODED[0])
    with pytest.raises(DataError, match=r"caf\\xe9\.png lies outside of the class folders"):
        observed(here / "images")
    with pytest.raises(LocationError, match=r"images/caf\\xe9\.png is no UTF-8, .*; rename it"):
        as_location(f"{here}/images/{name}")


def test_a_long_tar_is_not_held_in_memory(here: UPath) -> None:
    files = {
        f"{row:05d}.{kind}": content for row in range(3000) for kind, content in (("png", bytes(2000)), ("cls", b"1"))
    }
    count, peak = peak_of(put(here / "long.tar", tar_of(files)))
    assert count == 3000
    assert peak < 2e6


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.png": ENCODED[0]}, "sample a has no label; add a.cls"),
        ({"a.cls": b"1"}, "sample a has no image; there are: cls"),
        ({"a.seg.png": ENCODED[0], "a.cls": b"1"}, "sample a has no image"),
        ({"a.png": ENCODED[0], "a.cls": b"one"}, "sample a has no label"),
        ({"a.png": ENCODED[0], "a.json": b"[]"}, "sample a has no label"),
        ({"a.png": ENCODED[0], "a.json": b'{"label": 1.5}'}, r"image a has the label 1.5; labels must be integers"),
        ({"a.png": ENCODED[0], "a.json": b'{"label": true}'}, "image a has the label True"),
        ({"a.png": ENCODED[0], "a.cls": b"-1"}, "image a has the label -1"),
        ({"a.png": ENCODED[0], "b.cls": b"1"}, "sample a has no label"),
    ],
)
def test_a_sample_without_an_image_or_a_label_is_named(here: UPath, files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        observed(put(here / "a.tar", tar_of(files)))


def test_two_samples_with_one_key_are_not_merged(here: UPath) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for content in ENCODED[:2]:
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"sample a has two files .png"):
        observed(put(here / "a.tar", stream.getvalue()))


def test_names_and_links_in_a_tar_that_lead_out_of_it_write_nothing(
    here: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "work").mkdir()
    monkeypatch.chdir((here / "work").path)
    stream = io.BytesIO(tar_of({"../../out/a.png": ENCODED[0], "../../out/a.cls": b"1"}))
    with tarfile.open(fileobj=stream, mode="a") as archive:
        link = tarfile.TarInfo("../../out/a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    location = put(here / "data" / "a.tar", stream.getvalue())
    assert [(image_id, label) for image_id, label, _ in observed(location)] == [("../../out/a", 1)]
    assert {path.name for path in Path(here.path).rglob("*")} == {"work", "data", "a.tar"}


def test_hidden_files_are_no_samples(here: UPath) -> None:
    files = {"./._a.png": b"", "./.DS_Store": b"", "./b/.DS_Store": b"", "./a.png": ENCODED[0], "./a.cls": b"1"}
    assert [image_id for image_id, _, _ in observed(put(here / "a.tar", tar_of(files)))] == ["a"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_cut_short_is_refused(here: UPath, mode: str) -> None:
    content = tar_of(samples(range(COUNT)), mode)
    for share in (0.3, 0.7):
        with pytest.raises(DataError, match=r"a.tar cannot be read \(.+\); restore it"):
            observed(put(here / "a.tar", content[: int(share * len(content))]), "webdataset")


def test_a_damaged_header_within_a_tar_is_not_taken_for_its_end(here: UPath) -> None:
    content = bytearray(tar_of(samples(range(COUNT))))
    content[content.index(b"s/06.json")] = 0xFF
    with pytest.raises(DataError, match=r"cannot be read \(damaged header"):
        observed(put(here / "a.tar", bytes(content)))


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        (None, "has no dataset.json with labels; certifying needs labels"),
        ({"labels": None}, "the labels in dataset.json are null"),
        ({}, "has no dataset.json with labels"),
        ({"labels": [["a.png", 1]]}, "b.png has no label"),
        ({"labels": [["a.png", 1], ["b.png", 1], ["c.png", 1]]}, "c.png has no image"),
        ({"labels": [["a.png", 1], ["b.png", -1]]}, "image b.png has the label -1"),
        ({"labels": [["a.png", 1], ["b.png", [0, 1]]]}, r"image b.png has the label \[0, 1\]"),
        ({"labels": [1, 2]}, r"are no list of \[file name, integer\]"),
    ],
)
def test_a_zip_without_fitting_labels_is_refused(here: UPath, described: object, reason: str) -> None:
    files = {"a.png": ENCODED[0], "b.png": ENCODED[1]}
    if described is not None:
        files["dataset.json"] = json.dumps(described).encode()
    with pytest.raises(DataError, match=reason):
        observed(put(here / "a.zip", zip_of(files)))


def test_class_folders_hold_the_images_and_nothing_lies_beside_them(here: UPath) -> None:
    folder = write_folder(here)
    stray = put(folder / "stray.png", ENCODED[0])
    with pytest.raises(DataError, match=r"stray.png lies outside of the class folders"):
        observed(folder)
    stray.unlink()
    put(folder / "bear" / "notes.txt", b"")
    with pytest.raises(DataError, match="images/bear holds no image; fill the class folder or remove it"):
        observed(folder)


def test_images_below_a_class_folder_and_linked_ones_belong_to_it(here: UPath) -> None:
    put(here / "store" / "deep" / "1.png", ENCODED[0])
    put(here / "set" / "ant" / "0.png", ENCODED[1])
    Path(here.path, "set", "bee").symlink_to(Path(here.path, "store"))
    put(here / "set" / ".hidden" / "0.png", ENCODED[2])
    assert [(image_id, label) for image_id, label, _ in observed(here / "set")] == [
        ("ant/0.png", 0),
        ("bee/deep/1.png", 1),
    ]


def test_a_folder_may_be_named_relative_to_the_working_folder(here: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observed(write_folder(here))
    monkeypatch.chdir(here.path)
    assert observed(UPath("images")) == whole
    assert observed(UPath("./images/../images/")) == whole


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "test"), ("validation",)])
def test_a_folder_of_splits_is_not_taken_for_one_of_classes(root: UPath, names: tuple[str, ...]) -> None:
    for name in names:
        put(root / name / "ant" / "0.png", ENCODED[0])
    for format in (None, "image-folder"):
        with pytest.raises(DataError, match=f"holds splits, not classes; point at one of them, such as .*{names[0]}"):
            observed(root, format)
