"""Data sets of encoded image files: class folders, tar shards (WebDataset) and zips with labels (EDM).

Archives are read in place; nothing is extracted, so that no name in an archive can write anywhere.
"""

import json
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import groupby
from typing import IO, Any

from upath import UPath

from pipeline.data.source import DataError, Entry, Source, Split, checked_label, listing, reading, shards
from pipeline.file_names import IMAGE_EXTENSIONS, NOT_UTF8, Notes, is_image, leftover, no_image, readable

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
TAR_FAILURES = (tarfile.TarError, zlib.error, lzma.LZMAError)
# The last two: the archive is encrypted, or a name claims to be UTF-8 and is not.
ZIP_FAILURES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, UnicodeDecodeError)
CIFAR_BATCHES = frozenset({"batches", "data_batch_1", "test_batch"})
AT_ONCE = 16  # files of an object store
FOLDERS_OF_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


# Class folders


def class_folders(location: UPath) -> dict[str, str]:
    """The subfolders, each of which is a class, in the order of their labels.

    Raises:
        DataError: there are none, they are splits, or images lie beside them.
    """
    listed = listing(location)
    if not listed.folders:
        raise DataError(f"{location} has no subfolders; an image folder has one for each class")
    if set(map(str.lower, listed.folders)) <= FOLDERS_OF_SPLITS:
        first = next(iter(listed.folders))
        raise DataError(f"{location} holds splits, not classes; point at one of them, such as {location}/{first}")
    stray = [name for name in listed.files if is_image(name)]
    if stray:
        raise DataError(readable(f"{location}/{stray[0]} lies outside of the class folders; move it into one, or away"))
    return listed.folders


def image_folder(location: UPath, split: Split) -> Source:
    """Class subfolders in sorted order are the labels from 0 on; ids are relative paths. Other files are passed
    over.

    Entries hold one class's listing. A class without images is an error: a store that has no empty folders would
    number the classes after it differently.
    """
    folders = class_folders(location)
    notes = Notes()
    beside = listing(location)
    notes.of_part("").update(filter(None, map(no_image, [*beside.files, *beside.leftovers])))

    def entries() -> Iterator[Entry]:
        for label, (name, folder) in enumerate(folders.items()):
            counts, paths = notes.of_part(f"{name}/"), images_below(location, folder)
            counts.update(kind for kind in paths.values() if kind)
            if all(paths.values()):
                raise DataError(readable(f"{location}/{name} holds no image; fill the class folder or remove it"))
            for path, kind in paths.items():
                if not kind:
                    image_id = rewritten(name + path, counts)
                    yield Entry(image_id, label, partial(file_content, location, folder + path))

    return Source("image-folder", entries, tuple(map(readable, folders)), notes)


def images_below(location: UPath, folder: str) -> dict[str, str | None]:
    """The paths of all files below a folder, relative to it and sorted, each with why it is not an image."""
    paths = [path[len(folder) :] for path in location.fs.find(folder) if not path.endswith("/")]  # a store's folders
    return {path: no_image(path.removeprefix("/")) for path in paths}


def rewritten(name: str, counts: Counter[str]) -> str:
    """The name as it is in an id; one that is not UTF-8 is counted."""
    text = readable(name)
    if text != name:
        counts[NOT_UTF8] += 1
    return text


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


def tar_files(
    archive_path: UPath, counts: Counter[str] | None = None, **options: Any
) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Names and content of a tar's ordinary files, in its order, in one pass; content is valid until the next file.

    Leftovers are passed over; they and rewritten names are added to `counts`. `options` are those of the file system.

    Raises:
        One of TAR_FAILURES: the archive is damaged.
    """
    counts = Counter() if counts is None else counts
    with (
        archive_path.fs.open(archive_path.path, "rb", **options) as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            if kind := leftover(member.name):
                counts[kind] += 1
            else:
                yield rewritten(member.name.removeprefix("./"), counts), content


def key_and_extension(name: str) -> tuple[str, str]:
    """WebDataset's rule: `a/b.seg.png` has the key `a/b` and the extension `seg.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()


def samples(shard: UPath, counts: Counter[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's key, and its images and labels by extension."""
    for key, members in groupby(tar_files(shard, counts), key=lambda member: key_and_extension(member[0])[0]):
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
    "cls". Its id is that name, the key; or, where keys restart, the shard's name and the key. Entries hold one sample.
    """
    notes = Notes()
    paths = shards(location, TAR_ENDINGS, split, notes)

    @cache
    def restart() -> bool:
        return keys_restart(paths, notes)

    def entries() -> Iterator[Entry]:
        for name, shard in paths.items():
            prefix = f"{readable(without_ending(name))}/" if restart() else ""
            with reading(shard, *TAR_FAILURES):
                for key, parts in samples(shard, notes.of_part(name)):
                    image = next((part for extension, part in parts.items() if extension in IMAGE_EXTENSIONS), None)
                    if image is None:
                        raise DataError(no_image_in(shard, key, parts))
                    image_id = prefix + key
                    yield Entry(
                        image_id, checked_label(sample_label(parts, shard, key), image_id), partial(bytes, image)
                    )

    return Source("webdataset", entries, None, notes)


def keys_restart(paths: dict[str, UPath], notes: Notes) -> bool:
    """Whether two shards begin with the same key, as those of several writers, or of one for each class, do.

    Only the beginning of each shard is read, no matter which images a run takes: ids do not depend on them.
    """
    if len(paths) < 2:
        return False
    with ThreadPoolExecutor(AT_ONCE) as pool:
        first = [key for key in pool.map(first_key, paths.values()) if key is not None]
    if len(set(first)) == len(first):
        return False
    again = next(key for key in first if first.count(key) > 1)
    notes.said["keys"] = f"keys restart in the shards ({again} comes again): ids are the shard's name and the key"
    return True


def first_key(shard: UPath) -> str | None:
    with reading(shard, *TAR_FAILURES), closing(tar_files(shard, cache_type="none")) as members:
        return next((key_and_extension(name)[0] for name, _ in members), None)


def without_ending(name: str) -> str:
    ending = next((ending for ending in TAR_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def no_image_in(shard: UPath, key: str, parts: dict[str, bytes]) -> str:
    if "cifar-10" in key or key.rpartition("/")[2] in CIFAR_BATCHES:
        return f"{shard} holds CIFAR's batches ({key}), no samples; give dataset.format: cifar-python or cifar-binary"
    return f"{shard}: sample {key} has no image; there are: {', '.join(parts) or 'none'}"


def sample_label(parts: dict[str, bytes], shard: UPath, key: str) -> Any:
    try:
        if "cls" in parts:
            return int(parts["cls"].decode("utf-8-sig"))
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
        DataError: it is not a zip, or damaged; also while its content is read.
    """
    with (
        reading(location, *ZIP_FAILURES),
        location.fs.open(location.path, "rb") as stream,
        zipfile.ZipFile(stream) as archive,
    ):
        yield archive


def edm_zip(location: UPath, split: Split) -> Source:
    """A zip of images with `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}.

    Ids are the names in the zip, sorted. EDM's own tools write no names of classes; a list "class_names" is kept.
    Entries hold the zip's directory and the labels.
    """
    notes = Notes()
    with opened_zip(location) as archive:
        class_names = edm_class_names(archive)

    def entries() -> Iterator[Entry]:
        with opened_zip(location) as archive:
            labels = edm_labels(archive, location)
            names = edm_images(archive, location, notes.of_part(""))
            for difference, what in ((set(names) - set(labels), "no label"), (set(labels) - set(names), "no image")):
                if difference:
                    raise DataError(f"{location}: {min(difference)} has {what}; make dataset.json and the images fit")
            for name in names:
                yield Entry(name, checked_label(labels[name], name), partial(zip_content, archive, name, location))

    return Source("edm-zip", entries, class_names, notes)


def edm_class_names(archive: zipfile.ZipFile) -> tuple[str, ...] | None:
    try:
        names = json.loads(archive.read("dataset.json"))["class_names"]
    except (KeyError, TypeError, ValueError):  # what is wrong with the labels is for `edm_labels` to say
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def edm_images(archive: zipfile.ZipFile, location: UPath, counts: Counter[str]) -> list[str]:
    """The sorted names of a zip's images; other files are counted.

    Raises:
        DataError: an image comes twice.
    """
    names: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        if info.is_dir() or name == "dataset.json":
            continue
        if kind := no_image(name):
            counts[kind] += 1
        elif name in names:
            raise DataError(f"{location} holds {name} twice, with one label for both; make the zip again")
        else:
            names.add(name)
    return sorted(names)


def edm_labels(archive: zipfile.ZipFile, location: UPath) -> dict[str, Any]:
    try:
        pairs = json.loads(archive.read("dataset.json"))["labels"]
    except KeyError as error:
        raise DataError(
            f"{location} has no dataset.json with labels; certifying needs labels: make the zip again with them"
        ) from error
    except ValueError as error:
        raise DataError(f"{location}: dataset.json is damaged ({error}); make the zip again") from error
    if pairs is None:
        raise DataError(f"{location}: the labels in dataset.json are null; certifying needs them: make it with labels")
    labels: dict[str, Any] = {}
    try:
        for name, label in pairs:
            if labels.setdefault(str(name), label) != label:
                raise DataError(
                    f"{location}: dataset.json gives {name} two labels, {labels[name]} and {label}; make the zip again"
                )
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{location}: the labels in dataset.json are no list of [file name, integer]") from error
    return {name: label for name, label in labels.items() if not leftover(name)}


def zip_content(archive: zipfile.ZipFile, name: str, location: UPath) -> bytes:
    with reading(f"{location}: {name}", *ZIP_FAILURES):
        return archive.read(name)
