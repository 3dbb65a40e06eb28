"""What every format has in common: the same images come through each, and each is recognised by its files."""

import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from upath import UPath

from pipeline.data.formats import FORMATS, guess_format, open_source
from pipeline.data.source import DataError
from tests.support.stored_images import (
    COUNT,
    ENCODED,
    EXPECTED,
    NAMES,
    PIXELS,
    WRITERS,
    npz_of,
    observed,
    put,
    python_batch,
    samples,
    tar_of,
    write_cifar_100_binary,
    write_cifar_100_python,
    write_cifar_binary,
    write_cifar_python,
    write_edm,
    write_folder,
    write_imagenet,
    write_npy,
    write_npz,
    write_parquet,
    write_tars,
    zip_of,
)


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_images_come_through_every_format(write: Callable[[UPath], UPath], root: UPath) -> None:
    location, (format, class_names) = write(root), WRITERS[write]
    assert guess_format(location) == format
    source = open_source(location, format=None, split="test")
    assert (source.format, source.class_names) == (format, class_names)
    first, again = observed(location), observed(location, format)
    assert first == again
    assert sorted((label, pixels) for _, label, pixels in first) == EXPECTED
    assert len({image_id for image_id, _, _ in first}) == COUNT


def test_every_format_is_written_and_read_by_these_tests() -> None:
    assert {format for format, _ in WRITERS.values()} == set(FORMATS)


def test_passes_over_one_source_do_not_disturb_each_other(here: UPath) -> None:
    for write in WRITERS:
        source = open_source(write(here / write.__name__), format=None, split="test")
        first, second = source.entries(), source.entries()
        for entry, same in zip(first, second, strict=True):
            assert entry.image_id == same.image_id
            assert np.array_equal(entry.read(), same.read())  # type: ignore[arg-type]


def test_ids_are_what_the_data_call_their_images(here: UPath) -> None:
    first = {
        write_folder: "ant/1.PNG",
        write_parquet: "00.png",
        write_tars: "s/00",
        write_npy: "images-00000000",
        write_npz: "set-00000000",
        write_edm: "00000/img00000000.png",
        write_cifar_python: "test_batch-00000",
        write_cifar_100_python: "test-00000",
        write_cifar_binary: "test_batch-00000",
        write_cifar_100_binary: "test-00000",
        write_imagenet: "val_data-00000000",
    }
    assert {write: observed(write(here / write.__name__))[0][0] for write in WRITERS} == first


def test_the_split_picks_the_files(here: UPath) -> None:
    def train(location: UPath) -> list[str]:
        return [entry.image_id for entry in open_source(location, format=None, split="train").entries()]

    assert train(write_cifar_binary(here)) == [f"data_batch_{number}-00000" for number in range(1, 6)]
    assert train(write_parquet(here)) == ["00.png"]
    with pytest.raises(DataError, match=r"lacks data_batch_2, data_batch_3, .* of the train split"):
        train(write_cifar_python(here))
    with pytest.raises(DataError, match=r"lacks train_data_batch_1.npz, .* of the train split"):
        train(write_imagenet(here))
    for number in range(1, 11):
        one = {"data": PIXELS[:1].reshape(1, -1), "labels": np.array([1000])}
        put(here / "in32" / f"train_data_batch_{number}.npz", npz_of(**one))
    assert train(here / "in32") == [f"train_data_batch_{number}-00000000" for number in range(1, 11)]


def test_a_byte_order_mark_does_not_change_what_is_read(here: UPath) -> None:
    bom = b"\xef\xbb\xbf"
    marked = {
        name: bom + content if name.endswith(("cls", "json")) else content
        for name, content in samples(range(COUNT)).items()
    }
    assert observed(put(here / "a.tar", tar_of(marked))) == observed(put(here / "b.tar", tar_of(samples(range(COUNT)))))
    before = observed(write_edm(here))
    with zipfile.ZipFile(io.BytesIO((here / "edm.zip").read_bytes())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert observed(put(here / "m.zip", zip_of(files | {"dataset.json": bom + files["dataset.json"]}))) == before
    folder = write_cifar_100_binary(here)
    put(folder / "fine_label_names.txt", bom + b"ant\r\nbee\r\ncat\r\n")
    assert open_source(folder, format=None, split="test").class_names == NAMES


def test_a_folder_with_cifar_in_it_says_where(root: UPath) -> None:
    archive = {"cifar-10-batches-py/test_batch": python_batch()}
    put(root / "data" / "cifar-10-python.tar.gz", tar_of(archive, "w:gz"))
    with pytest.raises(DataError, match=r"holds CIFAR in cifar-10-python.tar.gz; point at it, such as .*data/cifar-10"):
        observed(root / "data")
    put(root / "data" / "cifar-10-batches-py" / "test_batch", python_batch())
    with pytest.raises(DataError, match=r"in cifar-10-batches-py, cifar-10-python.tar.gz; point at one of them"):
        observed(root / "data")
    assert len(observed(root / "data" / "cifar-10-python.tar.gz")) == COUNT
    renamed = put(root / "c.tar.gz", tar_of(archive, "w:gz"))
    with pytest.raises(DataError, match=r"holds CIFAR's batches \(cifar-10-batches-py/test_batch\)"):
        observed(renamed)
    with pytest.raises(DataError, match="is none of image-folder"):
        observed(put(root / "cifar-10-matlab.tar.gz", tar_of({"a.mat": b""}, "w:gz")))


def test_damaged_archives_say_so(here: UPath) -> None:
    damaged = bytearray(write_edm(here).read_bytes())
    damaged[damaged.index(ENCODED[0][20:40])] ^= 1
    with pytest.raises(DataError, match=r"img00000000.png cannot be read \(Bad CRC"):
        observed(put(here / "damaged.zip", bytes(damaged)))
    misnamed = zip_of({"\xe9.png": ENCODED[0]}).replace("\xe9".encode(), b"\xe9\xe9")
    with pytest.raises(DataError, match=r"misnamed.zip cannot be read \('utf-8' codec"):
        observed(put(here / "misnamed.zip", misnamed))
    for name in ("a.zip", "a.npz", "a.parquet", "a.tar"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            observed(put(here / name, b"none of these"))


def test_a_location_of_no_known_format_says_how_to_name_one(root: UPath) -> None:
    put(root / "notes" / "a.txt", b"")
    put(root / "b.txt", b"")
    for location in (root, root / "notes", root / "b.txt"):
        with pytest.raises(DataError, match=r"is none of image-folder, .*; give dataset.format"):
            observed(location)
    write_npy(root)
    put(root / "arrays" / "a.parquet", b"")
    with pytest.raises(DataError, match=r"could be parquet or npy, as far as its names tell; give dataset.format"):
        observed(root / "arrays")
    assert len(observed(root / "arrays", "npy")) == COUNT
    with pytest.raises(DataError, match=r"dataset.format 'numpy' is unknown; there are: image-folder"):
        observed(root / "arrays", "numpy")


def test_a_location_with_nothing_at_it_is_reported_as_missing(root: UPath) -> None:
    for format in (None, *FORMATS):
        with pytest.raises(DataError, match=r"nowhere.npz does not exist"):
            observed(root / "nowhere.npz", format)
