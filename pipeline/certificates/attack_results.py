"""What attacks on a run have left standing."""

import json
from dataclasses import dataclass
from typing import Any

from upath import UPath

from pipeline.locations import exists, read

SUMMARY = "attacks.json"


@dataclass(frozen=True)
class Attacked:
    """Accuracy that attacks of each radius left standing, over the first so many images.

    With `confirmed` falls it is an upper bound on the true robust accuracy, as the certified one is a lower bound;
    otherwise, from an earlier program, an estimate.
    """

    images: int
    accuracy: dict[float, float]
    confirmed: bool = False

    @property
    def label(self) -> str:
        return "under attack" if self.confirmed else "under attack, an estimate"


def empirical_accuracy(folder: UPath, *, fingerprint: str) -> dict[str, Attacked]:
    """What attacks left standing in this run, by level and radius; empty if it was not attacked."""
    path = folder / SUMMARY
    summary: dict[str, Any] = json.loads(read(path)) if exists(path) else {}
    if summary.get("fingerprint") != fingerprint:
        return {}
    return {
        level: Attacked(
            summary["images"],
            {float(radius): share for radius, share in shares.items()},
            confirmed="falls_confirmed_at" in summary,
        )
        for level, shares in summary["empirical_accuracy"].items()
    }
