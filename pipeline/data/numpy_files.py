"""Data sets of pixels in NumPy files (.npy, .npz), read row by row in place."""

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from upath import UPath

from pipeline.data.archives import ZIP_FAILURES, opened_zip
from pipeline.data.source import DataError, Entry, Source, Split, checked_label, listing, reading
from pipeline.file_names import readable

HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
IMAGE_MEMBERS = ("images", "x", "data", "arr_0")
LABEL_MEMBERS = ("labels", "y", "label", "arr_1")
LABELS = "labels.npy"
IMAGENET_TRAIN = tuple(f"train_data_batch_{number}.npz" for number in range(1, 11))

Planes = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class StoredArray:
    """An array in a file or zip member that is open; only its header was read."""

    where: str
    stream: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Rows along the first axis. Ascending ones are read as a stream.

        Raises:
            DataError: the file is damaged.
        """
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with reading(self.where, *ZIP_FAILURES, ValueError):
            self.stream.seek(self.start + first * row_bytes)
            content = self.stream.read((stop - first) * row_bytes)
            return np.frombuffer(content, self.dtype).reshape(stop - first, *self.shape[1:])


def stored_array(stream: IO[bytes], size: int, where: str) -> StoredArray:
    """Reads the header of a .npy stream of `size` bytes.

    Raises:
        DataError: it is not a .npy, holds Python objects, is stored column by column, or is cut short.
    """
    with reading(where, *ZIP_FAILURES, ValueError, KeyError):
        shape, by_column, dtype = HEADERS[npy_format.read_magic(stream)](stream)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which are never loaded; save it as plain numbers")
    if by_column and len(shape) > 1:
        raise DataError(f"{where} is stored column by column; save it with np.ascontiguousarray")
    start = stream.tell()
    if size - start != math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"{where} has {size - start} bytes after its header, which says {dtype} {shape}; fetch it again"
        )
    return StoredArray(where, stream, start, shape, dtype)


def labels_of(stored: StoredArray, images: StoredArray) -> list[int]:
    """All labels, as they are stored.

    Raises:
        DataError: they are not integers, or not one per image.
    """
    if stored.dtype.kind not in "iu" or stored.shape != images.shape[:1]:
        raise DataError(
            f"{stored.where} is {stored.dtype} {stored.shape}; it must have one integer for each image "
            f"of {images.where}, which is {images.dtype} {images.shape}"
        )
    labels: list[int] = stored.rows(0, stored.shape[0]).tolist()
    return labels


def planes_of(images: StoredArray) -> Planes:
    """How a row of a stored array becomes (channels, height, width): see `planes_of_array`."""
    return planes_of_array(images.where, images.dtype, images.shape)


def planes_of_array(where: str, dtype: np.dtype, shape: tuple[int, ...]) -> Planes:
    """How a row becomes (channels, height, width).

    (n, h, w) is grey. Of four axes the last is the channels if it is 1 or 3, or else the second if that is.

    Raises:
        DataError: the array is not uint8, or both axes, or neither, could be the channels.
    """
    if dtype == np.uint8 and len(shape) == 3:
        return lambda row: row[None]
    if dtype == np.uint8 and len(shape) == 4 and (shape[1] in (1, 3)) != (shape[3] in (1, 3)):
        return (lambda row: row.transpose(2, 0, 1)) if shape[3] in (1, 3) else (lambda row: row)
    raise DataError(
        f"{where} is {dtype} {shape}; images must be uint8 of shape (n, h, w), (n, h, w, channels) or "
        "(n, channels, h, w), where exactly one axis can be the 1 or 3 channels"
    )


def array_entries(images: StoredArray, labels: list[int], stem: str, planes: Planes) -> Iterator[Entry]:
    for index, label in enumerate(labels):
        image_id = f"{stem}-{index:08d}"
        yield Entry(image_id, checked_label(label, image_id), partial(pixels, images, index, planes))


def pixels(images: StoredArray, index: int, planes: Planes) -> np.ndarray:
    return planes(images.rows(index, index + 1)[0])


@contextmanager
def opened_npy(path: UPath) -> Iterator[StoredArray]:
    with reading(path), path.fs.open(path.path, "rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        yield stored_array(stream, size, str(path))


@contextmanager
def opened_member(archive: zipfile.ZipFile, names: tuple[str, ...], location: UPath) -> Iterator[StoredArray]:
    """The only member of a .npz that has one of the names.

    Raises:
        DataError: there is none, or there are several.
    """
    members = [name.removesuffix(".npy") for name in archive.namelist()]
    fitting = [name for name in members if name in names]
    if len(fitting) != 1:
        raise DataError(f"{location} holds {', '.join(members)}; exactly one must be called {' or '.join(names)}")
    info = archive.getinfo(f"{fitting[0]}.npy")
    with archive.open(info) as stream:
        yield stored_array(stream, info.file_size, f"{location}: {fitting[0]}")


def npy(location: UPath, split: Split) -> Source:
    """A file of images with labels.npy beside it, or the folder of the two; ids are the file's name and the row.
    Entries hold the labels.

    Raises:
        DataError: a folder with several files that could be the images.
    """
    file = image_file(location) if location.fs.isdir(location.path) else location
    stem = readable(file.stem)

    def entries() -> Iterator[Entry]:
        with opened_npy(file) as images, opened_npy(file.parent / LABELS) as labels:
            yield from array_entries(images, labels_of(labels, images), stem, planes_of(images))

    return Source("npy", entries, None)


def image_file(folder: UPath) -> UPath:
    """images.npy, or else the only .npy that is not the labels."""
    arrays = [name for name in listing(folder).files if name.endswith(".npy") and name != LABELS]
    if "images.npy" in arrays or len(arrays) == 1:
        return folder / ("images.npy" if "images.npy" in arrays else arrays[0])
    present = f"several: {', '.join(arrays)}" if arrays else "none"
    example = f", such as {folder}/{arrays[0]}" if arrays else ""
    raise DataError(
        f"{folder} must hold one .npy of images (uint8), called images.npy if there are others, beside {LABELS}; there "
        f"are {present}. Point at the file of images{example}"
    )


def npz(location: UPath, split: Split) -> Source:
    """A .npz with images and labels under usual names; ids are the file's name and the row. Entries hold the labels."""

    def entries() -> Iterator[Entry]:
        with (
            opened_zip(location) as archive,
            opened_member(archive, IMAGE_MEMBERS, location) as images,
            opened_member(archive, LABEL_MEMBERS, location) as labels,
        ):
            yield from array_entries(images, labels_of(labels, images), readable(location.stem), planes_of(images))

    return Source("npz", entries, None)


# Downsampled ImageNet


def flat_side(images: StoredArray) -> int | None:
    """The side of square images whose three planes lie flat in a row; None for other rows."""
    if images.dtype != np.uint8 or len(images.shape) != 2:
        return None
    side = math.isqrt(images.shape[1] // 3)
    return side if side > 0 and 3 * side * side == images.shape[1] else None


def is_downsampled_imagenet(location: UPath) -> bool:
    with opened_zip(location) as archive:
        if "data.npy" not in archive.namelist():
            return False
        with opened_member(archive, ("data",), location) as images:
            return flat_side(images) is not None


def imagenet64_npz(location: UPath, split: Split) -> Source:
    """Downsampled ImageNet of any side: train_data_batch_1 to _10.npz or val_data.npz in a folder, or one such file.

    Labels are as stored: its authors number classes from 1 to 1000, in the order of ImageNet's development kit. Ids are
    the file's name and the row. Entries hold one file's labels.

    Raises:
        DataError: a file of the split is missing.
    """
    files = [location]
    if location.fs.isdir(location.path):
        names = IMAGENET_TRAIN if split == "train" else ("val_data.npz",)
        missing = sorted(set(names) - set(listing(location).files))
        if missing:
            raise DataError(f"{location} lacks {', '.join(missing)} of the {split} split; fetch it, or name one file")
        files = [location / name for name in names]

    def entries() -> Iterator[Entry]:
        for file in files:
            with (
                opened_zip(file) as archive,
                opened_member(archive, ("data",), file) as images,
                opened_member(archive, ("labels",), file) as labels,
            ):
                yield from array_entries(images, labels_of(labels, images), readable(file.stem), flat_planes(images))

    return Source("imagenet64-npz", entries, None, label_order="devkit")


def flat_planes(images: StoredArray) -> Planes:
    side = flat_side(images)
    if side is None:
        raise DataError(
            f"{images.where} is {images.dtype} {images.shape}; rows must be uint8 of length 3 * side * side"
        )
    return lambda row: row.reshape(3, side, side)
