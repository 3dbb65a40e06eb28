"""What is left of a run's accuracy after attacks on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from upath import UPath

from ndc_core.radius_curves import interval_of
from pipeline.locations import exists, read

SUMMARY = "attacks.json"
CONFIRM_ALPHA = 1e-4  # how often fresh votes may confirm a fall wrongly

Result = dict[str, Any]  # of one cell: what its attacks found


@dataclass(frozen=True)
class Attacked:
    """Accuracy that is left after attacks of each radius, over the first `images` images.

    With `confirmed` falls it is an upper bound on the true robust accuracy, as the certified one is a lower bound;
    otherwise, from an earlier program, it is an estimate.
    """

    images: int
    accuracy: dict[float, float]
    confirmed: bool = False

    @property
    def intervals(self) -> dict[float, tuple[float, float]]:
        """At each radius, the 95 % interval of the accuracy that such attacks leave on all images like these."""
        return {r: interval_of(round(share * self.images), self.images) for r, share in self.accuracy.items()}

    @property
    def label(self) -> str:
        return "under attack" if self.confirmed else "under attack, an estimate"


def empirical_accuracy(folder: UPath, *, fingerprint: str) -> dict[str, Attacked]:
    """The accuracy left after attacks on this run, by level and radius; empty if it was not attacked."""
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


def summary_of(
    results: Sequence[Result], *, radii: Sequence[float], fingerprint: str, earlier: Sequence[Sequence[Result]] = ()
) -> dict[str, Any]:
    """What the attacks of all cells found, by noise level: the accuracy that is left, and broken certificates.

    The accuracy is what these attacks and `earlier` ones on the same cells left together, with the 95 % interval for
    all images like these. Only confirmed falls count; `falls_confirmed_at` says so, and summaries of earlier programs
    lack it.
    """
    accuracy: dict[str, dict[str, float]] = {}
    interval: dict[str, dict[str, tuple[float, float]]] = {}
    together = _together([results, *earlier])
    for sigma_pixel in dict.fromkeys(result["sigma_pixel"] for result in results):
        cells = [result for result in together if result["sigma_pixel"] == sigma_pixel]
        still_right = {str(r): sum(_is_still_right(cell, r) for cell in cells) for r in radii}
        accuracy[f"{sigma_pixel:g}"] = {r: number / len(cells) for r, number in still_right.items()}
        interval[f"{sigma_pixel:g}"] = {r: interval_of(number, len(cells)) for r, number in still_right.items()}
    certificates = [result["certificate"] for result in results if result["certificate"]]
    beyond = [verdict for result in results for verdict in result["beyond"] if verdict["radius"] > 0]
    return {
        "fingerprint": fingerprint,
        "images": len({result["image_id"] for result in results}),
        "empirical_accuracy": accuracy,
        "interval_95": interval,
        "falls_confirmed_at": CONFIRM_ALPHA,
        "evaluations": sum(result.get("evaluations", 0) for result in results),
        "attacks_on_certificates": sum(verdict["attacks"] for verdict in certificates),
        "certificates_attacked": len(certificates),
        "certificates_where_an_attack_won_the_vote": sum(verdict["success"] for verdict in certificates),
        "certificates_broken": sum(verdict["confirmed"] for verdict in certificates),
        "attacks_beyond": sum(verdict["attacks"] for verdict in beyond),
        "cells": len(results),
        "cells_broken_beyond": sum(verdict["confirmed"] for verdict in beyond),
        "falls_not_confirmed": sum(verdict["success"] and not verdict["confirmed"] for verdict in beyond),
    }


def _together(attacks: Sequence[Sequence[Result]]) -> list[Result]:
    """The cells of the first attacks, each with what all attacks found about it."""
    cells = {(result["image_id"], result["sigma_pixel"]): result for result in attacks[0]}
    for result in chain.from_iterable(attacks[1:]):
        cell = cells[result["image_id"], result["sigma_pixel"]]
        verdicts = [verdict for verdict in (cell["certificate"], result["certificate"]) if verdict]
        worst = max(verdicts, key=lambda verdict: verdict["confirmed"], default=None)
        merged = {**cell, "certificate": worst, "beyond": [*cell["beyond"], *result["beyond"]]}
        cells[result["image_id"], result["sigma_pixel"]] = merged
    return list(cells.values())


def _is_still_right(cell: Result, radius: float) -> bool:
    """Whether the cell was shown to be wrong neither on the image itself nor after any attack of at most the radius."""
    certificate = cell["certificate"]
    if cell["predicted"] == cell["label"] and radius <= cell["certified_radius"]:
        return not (certificate and certificate["confirmed"])
    fallen = [verdict["radius"] for verdict in cell["beyond"] if verdict["confirmed"]]
    return cell["right"] and not any(fallen_at <= radius for fallen_at in fallen)
