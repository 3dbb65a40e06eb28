"""What computed a unit's votes: kind and name of the device, library versions, and how exact its self-test was."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ndc_core.analysis.exactness import Exactness


@dataclass(frozen=True)
class DeviceRecord:
    """Evidence carries it as text. Evidence from before it was kept says `cpu` or `cuda`, and no more is known then."""

    kind: str
    name: str = ""
    torch: str = ""
    cuda: str = ""
    cudnn: str = ""
    exactness: Exactness = field(default_factory=Exactness)

    @classmethod
    def parse(cls, text: str) -> "DeviceRecord":
        """Raises ValueError if the text is not a record of a device."""
        if not text.startswith("{"):
            return cls(text)
        try:
            content = json.loads(text)
            return cls(**{**content, "exactness": Exactness(**content["exactness"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{text!r} is no record of a device: {error}") from error

    def text(self) -> str:
        content = asdict(self)
        tried = {name: value for name, value in content.pop("exactness").items() if value is not None}
        return json.dumps({name: value for name, value in content.items() if value} | {"exactness": tried})

    def same_as(self, other: "DeviceRecord") -> bool:
        """Whether both are known to be of one kind, with the same libraries."""
        ours, theirs = ((record.kind, record.name, record.torch, record.cuda, record.cudnn) for record in (self, other))
        return ours == theirs and bool(self.name and self.torch)

    def __str__(self) -> str:
        """Name and versions, as a reader knows them."""
        versions = ("torch", self.torch), ("CUDA", self.cuda), ("cuDNN", self.cudnn)
        return ", ".join([self.name or self.kind, *(f"{what} {version}" for what, version in versions if version)])


def exactness_line(record: DeviceRecord) -> str:
    """What the self-test says of a device, for people; the promise that goes with it is in docs/soundness.md."""
    exactness = record.exactness
    if exactness == Exactness():
        return "no self-test is known"
    if exactness.exact:
        return "exact: a row's results are the same bits wherever it stands in a pass"
    moving = [
        f"{what} by {difference:.1g}"
        for what, difference in (
            ("when the pass is repeated", exactness.repeated),
            ("with a row's place in the pass", exactness.moved),
            ("with the other rows of the pass", exactness.company),
            ("when the label's gradient is repeated", exactness.gradient_repeated),
            ("with a row's place in the gradient's pass", exactness.gradient_moved),
        )
        if difference
    ]
    if not moving:
        return "exact as far as it was tried; passes are slow here"
    return f"not exact: results move {', '.join(moving)} of the largest; certificates hold up to near-ties"


def device_lines(counts: Sequence[tuple[DeviceRecord, int]]) -> list[str]:
    """Which devices made a run's units, for people, where they are several or one of them is not exact."""
    if len(counts) == 1 and not _moves(counts[0][0]):
        return []
    return [f"computed on {record} ({units:,} units): {exactness_line(record)}" for record, units in counts]


def _moves(record: DeviceRecord) -> bool:
    return any(asdict(record.exactness).values())
