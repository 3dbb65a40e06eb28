"""What readers of data sets share: entries that are listed before they are read, listings of folders, and errors."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from upath import UPath

from pipeline.file_names import Notes, leftover, no_shard, readable

Split = Literal["train", "test"]
LabelOrder = Literal["devkit", "sorted"]

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
    """A data set; each call of `entries` is a fresh pass over it, in the same order, which keeps little in memory.

    Ids are unique, except in data that name an image twice, and depend only on the data's content and the names in
    it. `class_names`, by label, are there where the format has them. `notes` say, after a pass, what it decided by
    rule. `label_order` is what ImageNet's stored labels count, where the format knows: see pipeline/data/classes.py.
    """

    format: str
    entries: Callable[[], Iterator[Entry]]
    class_names: tuple[str, ...] | None
    notes: Notes = field(default_factory=Notes)
    label_order: LabelOrder | None = None


@contextmanager
def reading(where: object, *failures: type[Exception]) -> Iterator[None]:
    """Turns the given failures, and those of the file system, into a DataError that names the place."""
    kinds: tuple[type[Exception], ...] = (OSError, EOFError, *failures)
    try:
        yield
    except kinds as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(readable(f"{where} cannot be read ({reason}); restore it or fetch it again")) from error


def checked_label(label: Any, image_id: str) -> int:
    """The label as an int.

    Raises:
        DataError: it is not an integer of at least 0.
    """
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
        raise DataError(f"image {image_id} has the label {label!r}; labels must be integers from 0 on")
    return int(label)


@dataclass(frozen=True)
class Listing:
    """What lies directly in a folder, sorted; `folders` maps names to the system's paths, `leftovers` are not data."""

    files: list[str]
    folders: dict[str, str]
    leftovers: list[str]


def listing(folder: UPath) -> Listing:
    files, folders, leftovers = [], {}, []
    for info in sorted(folder.fs.ls(folder.path, detail=True), key=lambda info: info["name"]):
        name = PurePosixPath(info["name"]).name
        # An object store may list the folder itself; a local link does not say what it leads to.
        if PurePosixPath(info["name"]) == PurePosixPath(folder.path):
            continue
        is_folder = info["type"] == "directory" or (info.get("islink") and folder.fs.isdir(info["name"]))
        if leftover(name):
            leftovers.append(f"{name}/" if is_folder else name)
        elif is_folder:
            folders[name] = info["name"]
        else:
            files.append(name)
    return Listing(files, folders, leftovers)


def is_pattern(location: UPath) -> bool:
    return "*" in location.path


def shards(location: UPath, endings: tuple[str, ...], split: Split, notes: Notes) -> dict[str, UPath]:
    """The files of a data set in the order of their names: one file, a folder's, or those of a pattern (`*.tar`,
    `*/*.tar`). The names are unique, and the same wherever the data lie.

    Where the names in a folder tell splits apart (`train-00000.parquet`), only those of `split` are taken.

    Raises:
        DataError: there are none, or the names leave it open which ones belong to the split.
    """
    if not is_pattern(location) and not location.fs.isdir(location.path):
        return {location.name: location}
    if is_pattern(location):
        root = next(parent for parent in location.parents if not is_pattern(parent))
        top = location.fs._strip_protocol(root.path)
        listed = [str(PurePosixPath(path).relative_to(top)) for path in sorted(location.fs.glob(location.path))]
    else:
        root, inside = location, listing(location)
        listed = inside.files + inside.leftovers
        if "_delta_log/" in inside.leftovers:
            notes.said["delta"] = "a Delta table: all its Parquet files are read, also those that its log has replaced"
    counts, names = notes.of_part(""), []
    for name in listed:
        if kind := no_shard(name, ("",) if is_pattern(location) else endings):
            counts[kind] += 1
        else:
            names.append(name)
    if not is_pattern(location):
        names = of_split(names, split, location)
    if not names:
        raise DataError(f"{location} holds no file {' or '.join(f'*{ending}' for ending in endings)}; check the path")
    return {name: root / name for name in names}


def of_split(names: list[str], split: Split, location: object) -> list[str]:
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
