"""Data sets of encoded image files: class folders, tar shards (WebDataset) and zips with labels (EDM).

Archives are read in place; nothing is extracted, so that no name in one can write anywhere.
"""

import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import IO, Any

from upath import UPath

from pipeline.entries import (
    IMAGE_EXTENSIONS,
    DataError,
    Entry,
    Source,
    Split,
    checked_label,
    is_image,
    listing,
    reading,
    shards,
)

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
TAR_FAILURES = (tarfile.TarError, zlib.error, lzma.LZMAError)
ZIP_FAILURES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)  # the last one where it is encrypted
FOLDERS_OF_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


# Class folders


def class_folders(location: UPath) -> dict[str, str]:
    """The subfolders, each of which is a class, in the order of their labels.

    Raises:
        DataError: there are none, they are splits, or images lie beside them.
    """
    found = listing(location)
    if not found.folders:
        raise DataError(f"{location} has no subfolders; an image folder has one for each class")
    if set(map(str.lower, found.folders)) <= FOLDERS_OF_SPLITS:
        one = next(iter(found.folders))
        raise DataError(f"{location} holds splits, not classes; point at one of them, such as {location}/{one}")
    stray = [name for name in found.files if is_image(name)]
    if stray:
        raise DataError(f"{location}/{stray[0]} lies outside of the class folders; move it into one, or away")
    return found.folders


def image_folder(location: UPath, split: Split) -> Source:
    """Class subfolders in sorted order are the labels from 0 on; ids are relative paths. Other files are ignored.

    Entries hold one class's listing. A class without images is an error: a store that has no empty folders would
    number the classes after it differently.
    """
    folders = class_folders(location)

    def entries() -> Iterator[Entry]:
        for label, (name, folder) in enumerate(folders.items()):
            paths = [path for path in location.fs.find(folder) if is_image(path)]
            if not paths:
                raise DataError(f"{location}/{name} holds no image; fill the class folder or remove it")
            for path in paths:
                yield Entry(name + path[len(folder) :], label, partial(file_content, location, path))

    return Source("image-folder", entries, tuple(folders))


def file_content(location: UPath, path: str) -> bytes:
    with reading(path):
        content: bytes = location.fs.cat_file(path)
        return content


# Tar shards


class StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the archive's end, and images would be missing without a word."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "StrictTarInfo":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("InvalidHeaderError", "TruncatedHeaderError"):
                raise tarfile.ReadError(f"damaged header: {error}") from error
            raise


def tar_files(archive_path: UPath) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Names and content of a tar's ordinary files, in its order, in one pass; content is there until the next is.

    Raises:
        One of TAR_FAILURES: the archive is damaged.
    """
    with (
        archive_path.fs.open(archive_path.path, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name.removeprefix("./"), content


def key_and_extension(name: str) -> tuple[str, str]:
    """WebDataset's: `a/b.seg.png` is the key `a/b` and the extension `seg.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()


def samples(shard: UPath) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's key, and its images and labels by extension."""
    for key, members in groupby(tar_files(shard), key=lambda member: key_and_extension(member[0])[0]):
        if not key:  # hidden files
            continue
        parts: dict[str, bytes] = {}
        for name, content in members:
            extension = key_and_extension(name)[1]
            if extension in parts:
                raise DataError(f"{shard}: sample {key} has two files .{extension}; give each sample a key of its own")
            if extension in IMAGE_EXTENSIONS or extension in ("cls", "json"):
                parts[extension] = content.read()
        yield key, parts


def webdataset(location: UPath, split: Split) -> Source:
    """Tar shards in the order of their names; consecutive files that are named alike up to the first dot are a sample.

    Its image is the first file whose whole extension is an image's, its label `.cls`, or else `.json` with "label" or
    "cls"; its id is that name. Entries hold one sample.
    """
    paths = shards(location, TAR_ENDINGS, split)

    def entries() -> Iterator[Entry]:
        for shard in paths:
            with reading(shard, *TAR_FAILURES):
                for key, parts in samples(shard):
                    image = next((part for extension, part in parts.items() if extension in IMAGE_EXTENSIONS), None)
                    if image is None:
                        raise DataError(f"{shard}: sample {key} has no image; there are: {', '.join(parts) or 'none'}")
                    yield Entry(key, checked_label(sample_label(parts, shard, key), key), partial(bytes, image))

    return Source("webdataset", entries, None)


def sample_label(parts: dict[str, bytes], shard: UPath, key: str) -> Any:
    try:
        if "cls" in parts:
            return int(parts["cls"].decode("ascii"))
        fields = json.loads(parts["json"])
        return fields["label"] if "label" in fields else fields["cls"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{shard}: sample {key} has no label; add {key}.cls with an integer, or {key}.json with label"
        ) from error


# Zips with labels


@contextmanager
def opened_zip(location: UPath) -> Iterator[zipfile.ZipFile]:
    """A zip's directory; its members are read on demand.

    Raises:
        DataError: it is no zip, or damaged; also for what is read inside.
    """
    with (
        reading(location, *ZIP_FAILURES),
        location.fs.open(location.path, "rb") as stream,
        zipfile.ZipFile(stream) as archive,
    ):
        yield archive


def edm_zip(location: UPath, split: Split) -> Source:
    """A zip of images with `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}.

    Ids are the names in the zip, and sorted. EDM's own tools write no names of classes; a list "class_names" is kept.
    Entries hold the zip's directory and the labels.
    """
    with opened_zip(location) as archive:
        class_names = edm_class_names(archive)

    def entries() -> Iterator[Entry]:
        with opened_zip(location) as archive:
            labels = edm_labels(archive, location)
            names = sorted(name for name in archive.namelist() if is_image(name))
            for difference, what in ((set(names) - set(labels), "no label"), (set(labels) - set(names), "no image")):
                if difference:
                    raise DataError(f"{location}: {min(difference)} has {what}; make dataset.json and the images fit")
            for name in names:
                yield Entry(name, checked_label(labels[name], name), partial(zip_content, archive, name, location))

    return Source("edm-zip", entries, class_names)


def edm_class_names(archive: zipfile.ZipFile) -> tuple[str, ...] | None:
    try:
        names = json.loads(archive.read("dataset.json"))["class_names"]
    except (KeyError, TypeError, ValueError):  # what is wrong with the labels is for `edm_labels` to say
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def edm_labels(archive: zipfile.ZipFile, location: UPath) -> dict[str, Any]:
    try:
        labels = json.loads(archive.read("dataset.json"))["labels"]
    except KeyError as error:
        raise DataError(
            f"{location} has no dataset.json with labels; certifying needs labels: make the zip again with them"
        ) from error
    except ValueError as error:
        raise DataError(f"{location}: dataset.json is damaged ({error}); make the zip again") from error
    if labels is None:
        raise DataError(f"{location}: the labels in dataset.json are null; certifying needs them: make it with labels")
    try:
        return {str(name): label for name, label in labels}
    except (TypeError, ValueError) as error:
        raise DataError(f"{location}: the labels in dataset.json are no list of [file name, integer]") from error


def zip_content(archive: zipfile.ZipFile, name: str, location: UPath) -> bytes:
    with reading(f"{location}: {name}", *ZIP_FAILURES):
        return archive.read(name)
