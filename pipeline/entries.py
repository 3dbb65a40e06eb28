"""What readers of data sets share: entries that are listed before they are read, listings of folders, and errors."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from upath import UPath

Split = Literal["train", "test"]
LabelOrder = Literal["devkit", "sorted"]

IMAGE_EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"})
FILES_OF_SPLIT = {"train": {"train"}, "test": {"test", "val", "valid", "validation"}}
SPLIT_WORD = re.compile(r"(?<![a-z])(train|test|val|valid|validation)(?![a-z])")


class DataError(ValueError):
    """Data that cannot be used as asked: what, where, remedy."""


@dataclass(frozen=True)
class Entry:
    """One labelled image of a data set, not read yet.

    `read` gives the content of an encoded file, or uint8 pixels (channels, height, width). It is valid until the next
    entry is asked for, and raises a DataError where the data are damaged.
    """

    image_id: str
    label: int
    read: Callable[[], bytes | np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set; each call of `entries` is a fresh pass over it, in the same order, which holds no more than it must.

    `class_names`, by label, are there where the format has them. `label_order` is what ImageNet's stored labels count,
    where the format knows: see pipeline/classes.py.
    """

    format: str
    entries: Callable[[], Iterator[Entry]]
    class_names: tuple[str, ...] | None
    label_order: LabelOrder | None = None


@contextmanager
def reading(where: object, *failures: type[Exception]) -> Iterator[None]:
    """Turns the given failures, and those of the file system, into a DataError that names the place."""
    kinds: tuple[type[Exception], ...] = (OSError, EOFError, *failures)
    try:
        yield
    except kinds as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{where} cannot be read ({reason}); restore it or fetch it again") from error


def checked_label(label: Any, image_id: str) -> int:
    """The label as an int.

    Raises:
        DataError: it is no integer from 0 on.
    """
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
        raise DataError(f"image {image_id} has the label {label!r}; labels must be integers from 0 on")
    return int(label)


def is_image(path: str) -> bool:
    """By its extension; hidden files are none."""
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Listing:
    """What lies directly in a folder, sorted and without hidden names; `folders` maps names to the system's paths."""

    files: list[str]
    folders: dict[str, str]


def listing(folder: UPath) -> Listing:
    files, folders = [], {}
    for info in sorted(folder.fs.ls(folder.path, detail=True), key=lambda info: info["name"]):
        name = PurePosixPath(info["name"]).name
        # An object store may list the folder itself; a local link does not say what it leads to.
        if name.startswith(".") or PurePosixPath(info["name"]) == PurePosixPath(folder.path):
            continue
        if info["type"] == "directory" or (info.get("islink") and folder.fs.isdir(info["name"])):
            folders[name] = info["name"]
        else:
            files.append(name)
    return Listing(files, folders)


def shards(location: UPath, endings: tuple[str, ...], split: Split) -> list[UPath]:
    """The files of a data set in the order of their names: one file, a folder's, or those of a pattern (`*.tar`).

    Where the names in a folder tell splits apart (`train-00000.parquet`), only those of `split` are taken.

    Raises:
        DataError: there are none, or the names leave it open which ones belong to the split.
    """
    fs = location.fs
    if "*" in location.name:
        found = [location.parent / PurePosixPath(path).name for path in sorted(fs.glob(location.path))]
    elif fs.isdir(location.path):
        names = [name for name in listing(location).files if name.lower().endswith(endings)]
        found = [location / name for name in of_split(names, split, location)]
    else:
        found = [location]
    if not found:
        raise DataError(f"{location} holds no file {' or '.join(f'*{ending}' for ending in endings)}; check the path")
    return found


def of_split(names: list[str], split: Split, location: UPath) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        word = SPLIT_WORD.search(name.lower())
        groups.setdefault(word[1] if word else "", []).append(name)
    if set(groups) <= {""}:
        return names
    wanted = FILES_OF_SPLIT[split] & set(groups)
    if len(wanted) != 1 or "" in groups:
        example = next(name for group in sorted(groups) for name in groups[group])
        raise DataError(
            f"{location} leaves open which files are the {split} split (such as {example}); "
            f"point at them with a pattern, such as {location}/*{split}*"
        )
    return groups[wanted.pop()]
