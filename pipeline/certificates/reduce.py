"""Evidence to certificates: plain numpy in the driver."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
    counts: tuple[int, ...]  # estimation votes per class
    evaluations: int
    seconds: float

    @property
    def most_likely(self) -> int:
        """The certificate's class, or where it abstains the one with the most votes of estimation."""
        predicted = self.certificate.predicted
        return max(range(len(self.counts)), key=self.counts.__getitem__) if predicted is None else predicted

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
) -> list[CertifiedImage]:
    """A certificate for every image and noise level of a run, in the order of the data; alpha None is the declared one.

    Raises:
        IncompleteRunError: votes are missing or a draw was counted twice; says of which image, and how to go on.
        UnsoundVotesError: the votes of an earlier version certify nothing.
    """
    cells = cells_of(declaration, images, evidence, num_classes=num_classes)
    return _certified(cells.values(), images, declaration, alpha, resume_with)


def certify_complete_images(
    evidence: EvidenceTable | Iterable[Evidence],
    images: Sequence[StoredImage],
    *,
    declaration: Declaration,
    num_classes: int,
    alpha: float | None,
    resume_with: str,
) -> list[CertifiedImage]:
    """The same of the images that are decided at every noise level; none of a run that has no such image yet.

    Each certificate is the one that the image will have when the run is complete: its votes are all there (rule S4).
    """
    cells = cells_of(declaration, images, evidence, num_classes=num_classes)
    undecided = {cell.image_id for cell in cells.values() if not cell.state().decided}
    complete = (cells[key] for key in cells if key[1] not in undecided)
    return _certified(complete, images, declaration, alpha, resume_with)


def _certified(
    cells: Iterable[Cell],
    images: Sequence[StoredImage],
    declaration: Declaration,
    alpha: float | None,
    resume_with: str,
) -> list[CertifiedImage]:
    refuse_unsound_votes(declaration)
    labels = {image.image_id: image.label for image in images}
    methods = {sigma_pixel: declaration.procedure(sigma_pixel, alpha=alpha) for sigma_pixel in declaration.sigma_pixel}
    certified = []
    for cell in cells:
        tally = cell.finished(resume_with=resume_with)
        items = [item for phase in cell.evidence.values() for item in phase.values()]
        certified.append(
            CertifiedImage(
                cell.image_id,
                labels[cell.image_id],
                methods[cell.sigma_pixel].certificate(tally),
                tuple(tally.looks[-1]),
                sum(item.evaluations for item in items),
                sum(item.seconds for item in items),
            )
        )
    return certified


def largest_of_each_image(certified: Sequence[CertifiedImage]) -> list[CertifiedImage]:
    """Each image's certificate with the largest radius, chosen without a look at the label; its cost is that of all.

    It holds with the alpha that all noise levels together were declared with, if they share it (rule S5), and for the
    classifier of the level it names.
    """
    of_image = defaultdict(list)
    for item in certified:
        of_image[item.image_id].append(item)
    found = []
    for items in of_image.values():
        best = max(items, key=lambda item: item.certificate.radius)
        evaluations, seconds = sum(item.evaluations for item in items), sum(item.seconds for item in items)
        found.append(replace(best, evaluations=evaluations, seconds=seconds))
    return found


def by_level(certified: Sequence[CertifiedImage], *, maximum_over_sigmas: bool) -> dict[str, list[CertifiedImage]]:
    """The certificates of each noise level, and last those of LARGEST, if the run declared a maximum."""
    levels = defaultdict(list)
    for item in certified:
        levels[f"{item.certificate.sigma_pixel:g}"].append(item)
    return {**levels, **({LARGEST: largest_of_each_image(certified)} if maximum_over_sigmas else {})}
