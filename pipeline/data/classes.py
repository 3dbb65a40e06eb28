"""What labels mean: the order in which data number their classes, and the one in which the model does.

Models know their classes by number alone, so a wrong order goes unnoticed: it only makes every prediction wrong.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from pipeline.data.source import DataError, Entry, LabelOrder, Source
from pipeline.locations import location, read

ORDERS = ("sorted", "numeric")
IMAGENET_CLASSES = 1000
ONE_NUMBER = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")
SHOWN_AT_MOST = 10  # of many classes


# Names


def class_order(declared: str) -> str | tuple[str, ...]:
    """The name of an order, or else the lines of the file or URI that is declared instead.

    Raises:
        DataError: there is no such file, or it is not text.
    """
    if declared in ORDERS:
        return declared
    try:
        lines = read(location(declared)).decode("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(
            f"dataset.classes {declared!r} is neither {' nor '.join(ORDERS)}, nor a file with a class name on each line"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{declared} is no text in UTF-8; give dataset.classes a name on each line") from error
    return tuple(line.strip() for line in lines if line.strip())


def by_number(names: Sequence[str]) -> tuple[str, ...] | None:
    """The names in the order of their numbers; None where they differ in more than a number."""
    parts = [ONE_NUMBER.fullmatch(name) for name in names]
    if len({part and (part[1], part[3]) for part in parts}) != 1 or parts[0] is None:
        return None
    numbers = [(int(part[2]), name) for part, name in zip(parts, names, strict=True) if part]
    return tuple(name for _, name in sorted(numbers))


def refuse_open_order(where: str, names: Sequence[str]) -> None:
    """Refuses names that differ by a number alone, and are not in its order: people and programs sort such names
    differently, and nothing tells which order the model has."""
    numeric = by_number(names)
    if numeric is None or numeric == tuple(names):
        return
    name = next(name for name, other in zip(names, numeric, strict=True) if name != other)
    raise DataError(
        f"{where}: the order of its classes is open: as the data have them ({listed(names)}) {name!r} is class "
        f"{names.index(name)}, by number it is class {numeric.index(name)}. Say what the model was trained with: "
        "dataset.classes = 'sorted' (as torchvision's ImageFolder and EDM's dataset_tool.py sort), 'numeric', a list "
        "of the names in the model's order, or a file with a name on each line (--set dataset.classes=..., or "
        "--classes of ndc diagnose)"
    )


def listed(names: Sequence[str], *, most: int = SHOWN_AT_MOST) -> str:
    """`0 = cat, 1 = dog`; of many classes the first ones and the last."""
    if list(names) == [str(label) for label in range(len(names))]:
        return f"0 to {len(names) - 1}, called by their numbers"
    pairs = [f"{label} = {name}" for label, name in enumerate(names)]
    if len(pairs) > most:
        pairs = [*pairs[: most - 2], "...", pairs[-1]]
    return ", ".join(pairs)


# Orders


def arranged(source: Source, *, classes: str | Sequence[str] | None, label_order: LabelOrder | None) -> Source:
    """The data with labels as the model numbers its classes.

    `label_order` says what stored numbers count, `classes` in which order the model has the names. A source whose
    names leave their order open is not refused here: see `refuse_open_order`.

    Raises:
        DataError: names that do not fit the data; entries raise it for labels that are not valid.
    """
    order = label_order or source.label_order
    if order:
        source = in_imagenet_order(source, order)
    return in_model_order(source, classes) if classes else source


def in_imagenet_order(source: Source, order: LabelOrder) -> Source:
    """ImageNet's 1,000 classes as models number them: the place of the wnid among all, sorted, from 0 on."""
    if source.class_names is not None:
        raise DataError(
            f"dataset.label_order is for labels that are bare numbers, and {source.format} names its classes "
            f"({listed(source.class_names)}); leave it out, or give dataset.classes"
        )
    places, first = LABEL_ORDERS[order]()

    def translate(entry: Entry) -> int:
        if not first <= entry.label < first + IMAGENET_CLASSES:
            raise DataError(
                f"image {entry.image_id} has the label {entry.label}; in the order {order!r} ImageNet's are {first} to "
                f"{first + IMAGENET_CLASSES - 1}; declare another dataset.label_order"
            )
        return places[entry.label - first]

    return replace(relabelled(source, translate), class_names=tuple(sorted(devkit_wnids())), label_order=order)


def in_model_order(source: Source, classes: str | Sequence[str]) -> Source:
    names = source.class_names
    if names is None:
        if isinstance(classes, str):
            raise DataError(
                f"dataset.classes = {classes!r} orders names, and the data have none ({source.format}): their labels "
                "count as stored; leave it out, or list the names in the model's order"
            )
        return replace(source, class_names=tuple(classes))
    wanted = ordered(names, classes) if isinstance(classes, str) else tuple(classes)
    if missing := sorted(set(names) - set(wanted)):
        raise DataError(
            f"dataset.classes lacks {len(missing):,} classes of the data: {', '.join(missing[:SHOWN_AT_MOST])}; list "
            "all that the model knows, by the names that the data have"
        )
    if len(set(names)) < len(names):
        raise DataError("the data call two classes alike, so that dataset.classes cannot tell them apart; rename one")
    place_of = {name: place for place, name in enumerate(wanted)}
    places = [place_of[name] for name in names]

    def translate(entry: Entry) -> int:
        if entry.label >= len(places):
            raise DataError(f"image {entry.image_id} has the label {entry.label}, the data name {len(places)} classes")
        return places[entry.label]

    return replace(relabelled(source, translate), class_names=wanted)


def ordered(names: Sequence[str], order: str) -> tuple[str, ...]:
    numeric = by_number(names)
    if order == "numeric" and numeric is None:
        raise DataError(
            f"dataset.classes = 'numeric' is for names that differ by a number alone; there are {listed(names)}"
        )
    return numeric if order == "numeric" and numeric else tuple(sorted(names))


def relabelled(source: Source, translate: Callable[[Entry], int]) -> Source:
    def entries() -> Iterator[Entry]:
        return (replace(entry, label=translate(entry)) for entry in source.entries())

    return replace(source, entries=entries)


# ImageNet


@cache
def devkit_wnids() -> tuple[str, ...]:
    """The wnids in the order of ILSVRC's development kit, which counts from 1: kit fox is first, and tench is 449."""
    return tuple((resources.files("pipeline.data") / "class_orders" / "imagenet-devkit.txt").read_text().split())


def devkit_places() -> tuple[Sequence[int], int]:
    place_of = {wnid: place for place, wnid in enumerate(sorted(devkit_wnids()))}
    return [place_of[wnid] for wnid in devkit_wnids()], 1


def sorted_places() -> tuple[Sequence[int], int]:
    return range(IMAGENET_CLASSES), 0


# The model's number for each stored one, and the first stored number.
LABEL_ORDERS: dict[LabelOrder, Callable[[], tuple[Sequence[int], int]]] = {
    "devkit": devkit_places,
    "sorted": sorted_places,
}
