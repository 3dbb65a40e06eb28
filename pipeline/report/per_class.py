"""What each class's images were certified as, and which classes their votes went to."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.certificates.reduce import CertifiedImage
from pipeline.report.tables import Table, percent

MOST_CLASSES = 50  # in a table; of more, those that are certified least
MOST_IN_A_MATRIX = 20
MOST_PAIRS = 30


@dataclass(frozen=True)
class Cell:
    """The share of a label's votes that a class got, the mean over the label's images."""

    share: float
    own: bool

    @property
    def text(self) -> str:
        return "" if not self.share else "< 1" if self.share < 0.01 else f"{100 * self.share:.0f}"


@dataclass(frozen=True)
class Confusion:
    """A row of cells for each label, a column for each class; for very many classes there is no matrix, but the
    largest shares of votes for another class as (label, class, share)."""

    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    pairs: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class LevelByClass:
    level: str
    accuracy: Table
    votes: Confusion


def by_class(
    levels: Mapping[str, Sequence[CertifiedImage]], *, radii: Sequence[float], class_names: Sequence[str]
) -> list[LevelByClass]:
    """For each noise level, certified accuracy and votes of each label that images have."""
    described = []
    for level, items in levels.items():
        of_label = defaultdict(list)
        for item in items:
            of_label[item.label].append(item)
        labelled, names = dict(sorted(of_label.items())), called(len(items[0].counts), class_names)
        described.append(LevelByClass(level, accuracy_table(labelled, radii, names), confusion(labelled, names)))
    return described


def called(classes: int, class_names: Sequence[str]) -> list[str]:
    """Each class's name, with its number where two share one; or its number."""
    if len(class_names) < classes:
        return [str(label) for label in range(classes)]
    return [name if class_names.count(name) == 1 else f"{name} ({label})" for label, name in enumerate(class_names)]


def accuracy_table(
    of_label: Mapping[int, Sequence[CertifiedImage]], radii: Sequence[float], names: Sequence[str]
) -> Table:
    """In the order of the classes; of very many only those that are certified least, the lowest first."""

    def shares(label: int) -> list[float]:
        items = of_label[label]
        return [sum(item.holds(radius) for item in items) / len(items) for radius in radii]

    labels, caption = list(of_label), "Certified accuracy of each class"
    if len(labels) > MOST_CLASSES:
        labels = sorted(labels, key=shares)[:MOST_CLASSES]
        caption += f": the {MOST_CLASSES} of {len(of_label):,} classes that are certified least"
    rows = [
        [
            names[label],
            f"{len(of_label[label]):,}",
            *map(percent, shares(label)),
            f"{sum(item.certificate.predicted is None for item in of_label[label]):,}",
        ]
        for label in labels
    ]
    return Table(caption, ["class", "images", *(f"r = {radius:g}" for radius in radii), "abstained"], rows)


def confusion(of_label: Mapping[int, Sequence[CertifiedImage]], names: Sequence[str]) -> Confusion:
    shares = {label: mean_shares(items) for label, items in of_label.items()}
    if len(names) <= MOST_IN_A_MATRIX:
        rows = tuple(
            (names[label], tuple(Cell(float(share), c == label) for c, share in enumerate(row)))
            for label, row in shares.items()
        )
        return Confusion(tuple(names), rows, ())
    pairs = [
        (float(row[c]), label, int(c))
        for label, row in shares.items()
        for c in np.argsort(-row, kind="stable")[:MOST_PAIRS]
        if c != label and row[c]
    ]
    largest = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:MOST_PAIRS]
    return Confusion((), (), tuple((names[label], names[c], percent(share)) for share, label, c in largest))


def mean_shares(items: Sequence[CertifiedImage]) -> np.ndarray:
    """Each class's share of an image's estimation votes, the mean over images: those with many votes count no more."""
    counts = np.array([item.counts for item in items], float)
    means: np.ndarray = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    return means
