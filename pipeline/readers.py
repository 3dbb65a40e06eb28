"""Formats of data sets, and which one a location has."""

from collections.abc import Callable

from upath import UPath

from pipeline.archives import TAR_ENDINGS, class_folders, edm_zip, image_folder, webdataset
from pipeline.arrays import IMAGENET_TRAIN, imagenet64_npz, is_downsampled_imagenet, npy, npz
from pipeline.cifar import cifar_binary, cifar_python
from pipeline.entries import DataError, Source, Split, is_image, listing
from pipeline.locations import reaching
from pipeline.parquet import parquet


def open_source(location: UPath, *, format: str | None, split: Split) -> Source:
    """A data set's entries, unread; without a format it is guessed.

    Raises:
        DataError: there is nothing at the location, its format cannot be told or is unknown, or it is not as its
            format demands.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"dataset.format {format!r} is unknown; there are: {', '.join(FORMATS)}")
    if "*" not in location.name:
        check_exists(location)
    return FORMATS[format or guess_format(location)](location, split)


def check_exists(location: UPath) -> None:
    """Tells what is missing from what cannot be reached.

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
        found = f"could be {' or '.join(candidates)}" if candidates else f"is none of {', '.join(FORMATS)}"
        raise DataError(f"{location} {found}, as far as its names tell; give dataset.format")
    return candidates[0]


def formats_of_file(location: UPath) -> list[str]:
    name = location.name.lower()
    if name.endswith(TAR_ENDINGS):
        kinds = [kind for kind in ("python", "binary") if name.startswith((f"cifar-10-{kind}", f"cifar-100-{kind}"))]
        return [f"cifar-{kind}" for kind in kinds] or ["webdataset"]
    if name.endswith(".npz"):
        return ["imagenet64-npz" if is_downsampled_imagenet(location) else "npz"]
    return [format for ending, format in ((".parquet", "parquet"), (".zip", "edm-zip")) if name.endswith(ending)]


def formats_of_folder(location: UPath) -> list[str]:
    found = listing(location)
    files = set(found.files)
    signs = {
        "parquet": any(name.lower().endswith(".parquet") for name in files),
        "webdataset": any(name.lower().endswith(TAR_ENDINGS) for name in files),
        "cifar-python": "data_batch_1" in files or {"train", "test"} <= files,
        "cifar-binary": "data_batch_1.bin" in files or {"train.bin", "test.bin"} <= files,
        "npy": "images.npy" in files,
        "imagenet64-npz": bool(files & {*IMAGENET_TRAIN, "val_data.npz"}),
    }
    candidates = [format for format, is_there in signs.items() if is_there]
    if candidates or not found.folders:
        return candidates
    first = next(iter(class_folders(location).values()))
    return ["image-folder"] if any(is_image(path) for path in location.fs.find(first)) else []


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
