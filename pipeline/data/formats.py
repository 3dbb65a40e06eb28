"""Formats of data sets, and which one a location has."""

import re
from collections.abc import Callable

from upath import UPath

from pipeline.data.archives import TAR_ENDINGS, class_folders, edm_zip, image_folder, images_below, webdataset
from pipeline.data.cifar import cifar_binary, cifar_python
from pipeline.data.numpy_files import IMAGENET_TRAIN, imagenet64_npz, is_downsampled_imagenet, npy, npz
from pipeline.data.parquet import parquet
from pipeline.data.source import DataError, Source, Split, is_pattern, listing
from pipeline.locations import reaching


def open_source(location: UPath, *, format: str | None, split: Split) -> Source:
    """A data set's entries, unread; without a format it is guessed.

    Raises:
        DataError: there is nothing at the location, its format cannot be told or is unknown, or it is not as its
            format demands.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"dataset.format {format!r} is unknown; there are: {', '.join(FORMATS)}")
    if not is_pattern(location):
        check_exists(location)
    return FORMATS[format or guess_format(location)](location, split)


def check_exists(location: UPath) -> None:
    """Tells a missing location from one that cannot be reached.

    Raises:
        DataError: there is nothing at the location.
        LocationError: it cannot be reached.
    """
    try:
        with reaching(location):
            location.fs.info(location.path)
    except FileNotFoundError as error:
        raise DataError(f"{location} does not exist; check the path of the data set") from error


def guess_format(location: UPath) -> str:
    """The format by the name of a file, and what lies in a folder.

    Raises:
        DataError: none fits, or several do.
    """
    candidates = formats_of_folder(location) if location.fs.isdir(location.path) else formats_of_file(location)
    if len(candidates) != 1:
        problem = f"could be {' or '.join(candidates)}" if candidates else f"is none of {', '.join(FORMATS)}"
        raise DataError(f"{location} {problem}, as far as its names tell; give dataset.format")
    return candidates[0]


def formats_of_file(location: UPath) -> list[str]:
    name = location.name.lower()
    if cifar := CIFAR_ARCHIVE.fullmatch(name):
        return [f"cifar-{cifar[1]}"] if cifar[1] != "matlab" else []
    if name.endswith(".npz"):
        return ["imagenet64-npz" if is_downsampled_imagenet(location) else "npz"]
    return [format for ending, format in ENDINGS.items() if name.endswith(ending)]


def formats_of_folder(location: UPath) -> list[str]:
    """The formats whose signs are among the names in a folder.

    Raises:
        DataError: the data lie in a folder or archive that is in this folder.
    """
    listed = listing(location)
    files = set(listed.files)
    archives = {name for name in files if CIFAR_ARCHIVE.fullmatch(name.lower())}
    cifar = sorted(archives | {name for name in listed.folders if CIFAR_FOLDER.fullmatch(name)})
    arrays = {name for name in files if name.endswith(".npy")}
    signs = {
        "parquet": any(name.lower().endswith(".parquet") for name in files),
        "webdataset": any(name.lower().endswith(TAR_ENDINGS) for name in files - archives),
        "cifar-python": "data_batch_1" in files or {"train", "test"} <= files,
        "cifar-binary": "data_batch_1.bin" in files or {"train.bin", "test.bin"} <= files,
        "npy": "images.npy" in arrays or ("labels.npy" in arrays and len(arrays) > 1),
        "imagenet64-npz": bool(files & {*IMAGENET_TRAIN, "val_data.npz"}),
    }
    candidates = [format for format, is_there in signs.items() if is_there]
    if candidates:
        return candidates
    if cifar:
        raise DataError(
            f"{location} holds CIFAR in {', '.join(cifar)}; point at "
            f"{'it' if len(cifar) == 1 else 'one of them'}, such as {location / cifar[0]}"
        )
    if not listed.folders:
        return []
    folders = class_folders(location).values()
    return ["image-folder"] if any(not all(images_below(location, folder).values()) for folder in folders) else []


# The names that its authors give its folders and archives, and that torchvision keeps.
CIFAR_ARCHIVE = re.compile(r"cifar-100?-(python|binary|matlab)[^-]*\.(?:tar|tar\.gz|tgz)")
CIFAR_FOLDER = re.compile(r"cifar-100?-(python|binary|batches-py|batches-bin)")
ENDINGS = {
    **dict.fromkeys(TAR_ENDINGS, "webdataset"),
    ".parquet": "parquet",
    ".zip": "edm-zip",
    ".npy": "npy",
}
FORMATS: dict[str, Callable[[UPath, Split], Source]] = {
    "image-folder": image_folder,
    "parquet": parquet,
    "webdataset": webdataset,
    "npy": npy,
    "npz": npz,
    "edm-zip": edm_zip,
    "cifar-python": cifar_python,
    "cifar-binary": cifar_binary,
    "imagenet64-npz": imagenet64_npz,
}
