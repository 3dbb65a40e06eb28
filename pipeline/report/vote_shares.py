"""How sure votes are: which share of them the top class of an image has, over all images."""

from collections.abc import Mapping, Sequence

from pipeline.certificates.reduce import CertifiedImage
from pipeline.report.curves import Curve


def top_share(item: CertifiedImage) -> float:
    """The share of an image's estimation votes that its certified class has, or where it abstains the leading one."""
    return item.counts[item.most_likely] / sum(item.counts)


def vote_shares(levels: Mapping[str, Sequence[CertifiedImage]], *, right: bool) -> list[Curve]:
    """For each noise level the shares of images whose top class is the label, or of those with another: curves over
    the share of votes instead of a radius, of all images of the level."""
    return [
        Curve(
            images=len(items),
            radii=tuple(sorted(top_share(item) for item in items if (item.most_likely == item.label) is right)),
            abstained=sum(item.certificate.predicted is None for item in items),
            method=items[0].certificate.method,
            level=level,
        )
        for level, items in levels.items()
    ]
