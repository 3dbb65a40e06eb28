"""Evidence to certificates: plain numpy in the driver."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ndc_core.certificates.certificate import Certificate
from pipeline.certificates.stopping import Cell, cells_of
from pipeline.declaration.declaration import Declaration, refuse_unsound_votes
from pipeline.store.evidence import Evidence, EvidenceTable
from pipeline.store.run_store import StoredImage

LARGEST = "largest per image"


@dataclass(frozen=True)
class CertifiedImage:
    """A certificate with what it was made from and what it cost."""

    image_id: str
    label: int
    certificate: Certificate
    counts: Sequence[int]  # estimation votes per class
    evaluations: int
    seconds: float

    @property
    def most_likely(self) -> int:
        """The certificate's class, or, where it abstains, the one with the most estimation votes."""
        predicted = self.certificate.predicted
        return self.counts.index(max(self.counts)) if predicted is None else predicted

    def holds(self, radius: float) -> bool:
        return self.certificate.holds(label=self.label, radius=radius)


def certify_images(
    evidence: EvidenceTable | Iterable[Evidence],
    images: Sequence[StoredImage],
    *,
    declaration: Declaration,
    num_classes: int,
    alpha: float | None,
    resume_with: str,
    on_cell: Callable[[], None] = lambda: None,
) -> list[CertifiedImage]:
    """A certificate for every image and noise level of a run, in the order of the data; alpha None is the declared one.

    Raises:
        IncompleteRunError: votes are missing or a draw was counted twice; names the image, and says how to go on.
        UnsoundVotesError: the votes of an earlier version certify nothing.
    """
    certify = _certifier(declaration, images, alpha=alpha, resume_with=resume_with)
    certified = []
    for cell in cells_of(declaration, images, evidence, num_classes=num_classes).values():
        certified.append(certify(cell))
        on_cell()
    return certified


def certify_complete_images(
    evidence: EvidenceTable | Iterable[Evidence],
    images: Sequence[StoredImage],
    *,
    declaration: Declaration,
    num_classes: int,
    alpha: float | None,
    resume_with: str,
    on_cell: Callable[[], None] = lambda: None,
) -> list[CertifiedImage]:
    """The same for the images that are decided at every noise level; empty if the run has no such image yet.

    Each certificate is the one that the image will have when the run is complete: its votes are all there (rule S4).
    """
    certify = _certifier(declaration, images, alpha=alpha, resume_with=resume_with)
    undecided, certified = set[str](), []
    for cell in cells_of(declaration, images, evidence, num_classes=num_classes).values():
        on_cell()
        if cell.image_id in undecided:
            continue
        if cell.state().decided:
            certified.append(certify(cell))
        else:
            undecided.add(cell.image_id)
    return [item for item in certified if item.image_id not in undecided]


def _certifier(
    declaration: Declaration, images: Sequence[StoredImage], *, alpha: float | None, resume_with: str
) -> Callable[[Cell], CertifiedImage]:
    refuse_unsound_votes(declaration)
    labels = {image.image_id: image.label for image in images}
    methods = {sigma_pixel: declaration.procedure(sigma_pixel, alpha=alpha) for sigma_pixel in declaration.sigma_pixel}

    def certify(cell: Cell) -> CertifiedImage:
        tally = cell.finished(resume_with=resume_with)
        items = [item for phase in cell.evidence.values() for item in phase.values()]
        counts = np.asarray(tally.looks[-1], np.uint32)  # four bytes each: 150,000 certificates of 1,000 classes fit
        return CertifiedImage(
            cell.image_id,
            labels[cell.image_id],
            methods[cell.sigma_pixel].certificate(tally),
            array("I", counts.tobytes()),
            sum(item.evaluations for item in items),
            sum(item.seconds for item in items),
        )

    return certify


def largest_of_each_image(certified: Sequence[CertifiedImage]) -> list[CertifiedImage]:
    """Each image's certificate with the largest radius, chosen without the label; its cost is that of all levels.

    It holds with the alpha that all noise levels together were declared with, if they share it (rule S5), and for the
    classifier of the level it names.
    """
    of_image = defaultdict(list)
    for item in certified:
        of_image[item.image_id].append(item)
    largest = []
    for items in of_image.values():
        best = max(items, key=lambda item: item.certificate.radius)
        evaluations, seconds = sum(item.evaluations for item in items), sum(item.seconds for item in items)
        largest.append(replace(best, evaluations=evaluations, seconds=seconds))
    return largest


def by_level(certified: Sequence[CertifiedImage], *, maximum_over_sigmas: bool) -> dict[str, list[CertifiedImage]]:
    """The certificates of each noise level, and last those of LARGEST, if the run declared a maximum."""
    levels = defaultdict(list)
    for item in certified:
        levels[f"{item.certificate.sigma_pixel:g}"].append(item)
    return {**levels, **({LARGEST: largest_of_each_image(certified)} if maximum_over_sigmas else {})}
