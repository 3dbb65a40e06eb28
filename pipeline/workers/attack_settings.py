"""What an attack is told, and what that may cost at most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ndc_core.analysis.ascent import AscentName
from pipeline.certificates.attack_results import CONFIRM_ALPHA
from pipeline.certificates.reduce import CertifiedImage
from pipeline.data.datasets import ImageRecord
from pipeline.store.evidence import checksum
from pipeline.workers.vote_actor import VoterSettings

# An attack's votes count only if this many times as many fresh ones confirm them.
CONFIRM_FACTOR = 20
RIVALS = 2
GRADIENT = 3  # evaluations that a differentiated row counts as: a backward pass takes twice as long as a forward pass


@dataclass(frozen=True)
class AttackSettings:
    """`votes` judge each adversarial image; the gradient of each step is a mean over `draws`.

    With a `source`, the folder of an image classifier, the gradient is that one's, and the run's classifier judges as
    always: a transfer attack. `source_digest` says which one it is.
    """

    restarts: int
    steps: int
    draws: int
    votes: int
    method: AscentName = "pgd"
    source: str = ""
    source_digest: str = ""

    def folder(self, fingerprint: str) -> str:
        """Results of other settings, another run or another test of falls are never taken for these."""
        effort: dict[str, Any] = {name: getattr(self, name) for name in ("restarts", "steps", "draws", "votes")}
        if self.method != "pgd":  # which was the only one
            effort["method"] = self.method
        if self.source:
            effort["source"] = self.source_digest
        return checksum([effort, fingerprint, CONFIRM_FACTOR, CONFIRM_ALPHA])[:12]

    def __str__(self) -> str:
        through = f" through {self.source}" if self.source else ""
        return f"{self.method}{through}, {self.restarts} restarts of {self.steps} steps"


@dataclass(frozen=True)
class AttackerSettings:
    """What an actor needs to know, small enough to send to each."""

    voter: VoterSettings
    attack: AttackSettings


@dataclass(frozen=True)
class AttackCosts:
    """Evaluations of an attack; `vote` and `scores` are the most that a draw takes."""

    settings: AttackSettings
    vote: int
    scores: int

    @property
    def ascent(self) -> int:
        """Of all restarts at one radius, without the rivals' votes. The end of each step counts, as the start does."""
        settings = self.settings
        rows = settings.restarts * (settings.steps + 1) * GRADIENT
        return rows if settings.source else (rows + 1) * settings.draws * self.scores

    def most_of_cell(self, row: dict[str, Any]) -> int:
        """The most that a cell takes: no radius is left out, and fresh votes have to confirm a fall at each."""
        settings = self.settings
        radii = [*([row["certified_radius"]] if row["predicted"] >= 0 else []), *row["radii"]]
        around = sum(radius > 0 for radius in radii)
        judging = around * settings.restarts + (len(radii) - around)
        votes = settings.votes * (judging + CONFIRM_FACTOR * len(radii)) + settings.draws * around
        return votes * self.vote + around * self.ascent


def cell_id(image_id: str, sigma_pixel: float) -> str:
    return checksum([image_id, sigma_pixel])[:24]


def cell_row(item: CertifiedImage, record: ImageRecord, radii: Sequence[float]) -> dict[str, Any]:
    """A cell as one row of a Ray dataset: the certificate to break and the radii at which it promises nothing.

    An abstention whose votes favour another class than the label has yet to be shown wrong: by the image itself, at
    radius 0.
    """
    certificate = item.certificate
    right = certificate.predicted in (None, item.label)
    most_voted = item.counts.index(max(item.counts))
    doubted = [0.0] if certificate.predicted is None and most_voted != item.label else []
    return {
        "right": right,
        **record.__dict__,
        "sigma_pixel": certificate.sigma_pixel,
        "predicted": -1 if certificate.predicted is None else certificate.predicted,
        "certified_radius": certificate.radius,
        "radii": [*doubted, *(radius for radius in radii if radius > certificate.radius)] if right else [],
    }


def result_name(row: dict[str, Any]) -> str:
    """The file of a cell's result, by all that was asked about it."""
    question = [row["image_id"], row["sigma_pixel"], row["certified_radius"], list(map(float, row["radii"]))]
    return f"{checksum(question)[:24]}.json"
