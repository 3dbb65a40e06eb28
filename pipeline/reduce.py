"""Evidence to certificates: plain numpy in the driver."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from ndc_core.certificates import CERTIFICATES, Certificate
from pipeline.store import Evidence, StoredImage


class IncompleteRunError(ValueError):
    """Votes are missing: nothing is certified from fewer than were declared (rule S4)."""


@dataclass(frozen=True)
class CertifiedImage:
    """A certificate with what it was made from and what it cost."""

    image_id: str
    label: int
    certificate: Certificate
    counts: tuple[int, ...]  # estimation votes per class
    evaluations: int
    seconds: float

    def holds(self, radius: float) -> bool:
        return self.certificate.holds(label=self.label, radius=radius)


@dataclass
class _Tally:
    """What is known of one image at one noise level."""

    votes: dict[str, list[int]]
    ranges: dict[str, list[tuple[int, int]]]
    evaluations: int = 0
    seconds: float = 0.0


def certify_images(
    evidence: Iterable[Evidence],
    images: Sequence[StoredImage],
    *,
    law: dict[str, Any],
    num_classes: int,
    alpha: float,
    resume_with: str,
) -> list[CertifiedImage]:
    """A certificate for every image and noise level of a run, in the order of the data.

    Raises:
        IncompleteRunError: votes are missing or a draw was counted twice; says of which image, and how to go on.
    """
    tallies: dict[tuple[str, float], _Tally] = defaultdict(
        lambda: _Tally({phase: [0] * num_classes for phase in law["votes"]}, defaultdict(list))
    )
    for item in evidence:
        tally = tallies[item.unit.image_id, item.unit.sigma_pixel]
        for class_id, votes in item.votes.items():
            tally.votes[item.unit.phase][class_id] += votes
        tally.ranges[item.unit.phase].append((item.unit.draw_start, item.unit.draw_stop))
        tally.evaluations += item.evaluations
        tally.seconds += item.seconds
    certified = []
    for sigma_pixel in law["sigma_pixel"]:
        for image in images:
            tally = tallies[image.image_id, sigma_pixel]
            _refuse_incomplete(image, sigma_pixel, tally, law, resume_with)
            certificate = CERTIFICATES[law["certificate"]["method"]](
                tally.votes["selection"], tally.votes["estimation"], sigma_pixel=sigma_pixel, alpha=alpha
            )
            certified.append(
                CertifiedImage(
                    image.image_id,
                    image.label,
                    certificate,
                    tuple(tally.votes["estimation"]),
                    tally.evaluations,
                    tally.seconds,
                )
            )
    return certified


def _refuse_incomplete(
    image: StoredImage, sigma_pixel: float, tally: _Tally, law: dict[str, Any], resume_with: str
) -> None:
    for phase in ("selection", "estimation"):
        declared, present, reached = law["votes"][phase], 0, 0
        for start, stop in sorted(tally.ranges[phase]):
            if start < reached:
                raise IncompleteRunError(
                    f"image {image.image_id}, sigma_pixel {sigma_pixel:g}: {phase} draw {start} was counted twice"
                )
            present, reached = present + stop - start, stop
        if present != declared or reached != declared:
            raise IncompleteRunError(
                f"image {image.image_id}, sigma_pixel {sigma_pixel:g}: {present:,} of {declared:,} "
                f"{phase} votes present; run `{resume_with}` to finish"
            )


def certificate_rows(certified: Sequence[CertifiedImage]) -> list[dict[str, Any]]:
    """Rows of certificates.parquet, by column name."""
    return [
        {
            "image_id": item.image_id,
            "label": item.label,
            "correct": item.holds(0.0),
            **asdict(item.certificate),
            "evaluations": item.evaluations,
            "seconds": item.seconds,
        }
        for item in certified
    ]


def certificate_tsv(certified: Sequence[CertifiedImage]) -> str:
    """The log that this field's scripts read (predict is -1 for an abstention), with sigma_pixel as a last column.

    The radius is cut, not rounded, to six digits, so that it never exceeds the certified one (rule S7).
    """
    index_of = {image_id: index for index, image_id in enumerate(dict.fromkeys(item.image_id for item in certified))}
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime\tsigma_pixel"]
    for item in certified:
        certificate = item.certificate
        predict = -1 if certificate.predicted is None else certificate.predicted
        radius = math.floor(certificate.radius * 1e6) / 1e6
        lines.append(
            f"{index_of[item.image_id]}\t{item.label}\t{predict}\t{radius:.6f}\t{int(item.holds(0.0))}\t"
            f"{timedelta(seconds=item.seconds)}\t{certificate.sigma_pixel:g}"
        )
    return "\n".join(lines) + "\n"
