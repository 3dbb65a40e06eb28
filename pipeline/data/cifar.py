"""CIFAR-10 and CIFAR-100 as their authors publish them: Python or binary batches, in a folder or a .tar.gz."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
from upath import UPath

from pipeline.data.archives import TAR_FAILURES, tar_files
from pipeline.data.source import DataError, Entry, Source, Split, checked_label, listing, reading

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


def file_names(location: UPath) -> list[str]:
    if location.fs.isdir(location.path):
        return listing(location).files
    with reading(location, *TAR_FAILURES):
        return [PurePosixPath(name).name for name, _ in tar_files(location)]


@contextmanager
def opened_file(location: UPath, name: str) -> Iterator[IO[bytes]]:
    """A file of the folder, or of the archive, in any folder there.

    Raises:
        DataError: it cannot be read; also while its content is read.
    """
    if location.fs.isdir(location.path):
        with reading(location / name), location.fs.open((location / name).path, "rb") as stream:
            yield stream
    else:
        with reading(f"{location}: {name}", *TAR_FAILURES), closing(tar_files(location)) as members:
            yield next(content for path, content in members if PurePosixPath(path).name == name)


def batches(present: list[str], split: Split, ending: str, location: UPath) -> list[str]:
    """The split's files, of CIFAR-100 (train, test) or of CIFAR-10.

    Raises:
        DataError: one is missing.
    """
    if f"{split}{ending}" in present:
        return [f"{split}{ending}"]
    stems = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    missing = [f"{stem}{ending}" for stem in stems if f"{stem}{ending}" not in present]
    if missing:
        raise DataError(f"{location} lacks {', '.join(missing)} of the {split} split; fetch the archive again")
    return [f"{stem}{ending}" for stem in stems]


def cifar_binary(location: UPath, split: Split) -> Source:
    """Batches of one label byte (CIFAR-100: a coarse one, and the fine one that counts) and 3072 pixels per image.

    Ids are the batch and the row. Entries hold one image.
    """
    present = file_names(location)
    files = batches(present, split, ".bin", location)

    def entries() -> Iterator[Entry]:
        for name in files:
            label_bytes = 2 if name == f"{split}.bin" else 1
            with opened_file(location, name) as stream:
                index = 0
                while record := stream.read(label_bytes + PIXELS):
                    if len(record) != label_bytes + PIXELS:
                        raise DataError(f"{location}: {name} ends within image {index}; fetch it again")
                    image = np.frombuffer(record, np.uint8, offset=label_bytes).reshape(SHAPE)
                    image_id = f"{name.removesuffix('.bin')}-{index:05d}"
                    yield Entry(image_id, record[label_bytes - 1], partial(np.asarray, image))
                    index += 1

    return Source("cifar-binary", entries, names_in_text(location, present))


def names_in_text(location: UPath, present: list[str]) -> tuple[str, ...] | None:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if name in present:
            with opened_file(location, name) as stream:
                return tuple(stream.read().decode("utf-8-sig", "replace").split())
    return None


def cifar_python(location: UPath, split: Split) -> Source:
    """Pickled batches, read without running anything in them. Ids are the batch and the row. Entries hold one batch."""
    present = file_names(location)
    files = batches(present, split, "", location)

    def entries() -> Iterator[Entry]:
        for name in files:
            batch = unpickled(location, name)
            images: Any = batch.get("data")
            labels: Any = batch.get("fine_labels", batch.get("labels"))
            if not is_batch(images, labels):
                raise DataError(f"{location}: {name} is no CIFAR batch with uint8 data and labels; fetch it again")
            for index, label in enumerate(labels):
                image_id = f"{name}-{index:05d}"
                yield Entry(image_id, checked_label(label, image_id), partial(images[index].reshape, SHAPE))

    return Source("cifar-python", entries, names_in_pickle(location, present))


def is_batch(images: Any, labels: Any) -> bool:
    return (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and isinstance(labels, list | np.ndarray)
        and images.shape == (len(labels), PIXELS)
    )


def unpickled(location: UPath, name: str) -> dict[str, Any]:
    from ndc_core.untrusted_files.pickle_reader import load_numeric_pickle  # ndc_core imports torch

    with opened_file(location, name) as stream:
        content = stream.read()
    try:
        fields = load_numeric_pickle(content)
    except ValueError as error:
        raise DataError(f"{location}: {name} is refused: {error}") from error
    return {text(key): value for key, value in fields.items()}


def names_in_pickle(location: UPath, present: list[str]) -> tuple[str, ...] | None:
    for file, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if file in present:
            names = unpickled(location, file).get(key)
            return tuple(map(text, names)) if names else None
    return None


def text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
