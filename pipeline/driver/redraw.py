"""Votes drawn again from the model: compared bit for bit where bits can be equal, and judged where they cannot.

On another kind of device, with other libraries, or where a row's result depends on its place in a pass, rounding may
flip a near-tie. The number of flipped votes then tells a sound run from an unsound one: see docs/soundness.md.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from upath import UPath

from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.classifiers.voter import Voter
from ndc_core.models.precision import Precision
from ndc_core.voting import VoteCounts
from pipeline.data.datasets import ImageRecord
from pipeline.declaration.config import RunConfig
from pipeline.store.devices import DeviceRecord, exactness_line
from pipeline.store.evidence import Evidence
from pipeline.workers.compute import set_up_process
from pipeline.workers.device_record import device_record
from pipeline.workers.models import build_classifier
from pipeline.workers.vote_actor import votes_of_unit

FALSE_ALARM = 1e-3  # the largest probability that a sound run is refused
# The share of votes that may flip, and how far a score may be off, as a share of the largest one: see
# docs/soundness.md.
TOLERATED_SHARE: dict[Precision, float] = {"float32": 1e-3, "tf32": 1e-3, "bfloat16": 1e-2, "float16": 1e-3}
TOLERATED_SCORE: dict[Precision, float] = {"float32": 1e-4, "tf32": 2e-3, "bfloat16": 2e-2, "float16": 2e-3}

Redrawn = tuple[Evidence, VoteCounts]
Name = Callable[[Evidence], str]


@dataclass(frozen=True)
class Comparison:
    """One line of what was compared, and what is wrong with it."""

    what: str
    problems: list[str]


def device_for(evidence: Sequence[Evidence]) -> str:
    """A GPU, if one made any of the evidence and one is here; otherwise a CPU, also for a GPU's votes."""
    kinds = {DeviceRecord.parse(item.device).kind for item in evidence}
    return "cuda" if "cuda" in kinds and torch.cuda.is_available() else "cpu"


def load_for_redraw(config: RunConfig, *, device: str) -> Voter:
    """The run's classifier, in a process that does nothing else; that the model is the run's was checked before."""
    set_up_process(threads=config.compute.threads_per_actor)
    return build_classifier(config, device=device)


def redrawn(
    chosen: Sequence[Evidence],
    *,
    config: RunConfig,
    pixels: Callable[[str], tuple[ImageRecord, np.ndarray]],
    candidate: Callable[[Evidence], int | None],
    path: Callable[[Evidence], UPath],
    of: int,
) -> Iterator[Comparison]:
    """Draws units again and compares: those whose bits can be equal here, then the others."""
    classifier = load_for_redraw(config, device=device_for(chosen))
    here = device_record(classifier)

    def again(item: Evidence) -> Redrawn:
        record, image = pixels(item.unit.image_id)
        return item, votes_of_unit(classifier, config, item.unit, record, image, candidate=candidate(item))

    def name(item: Evidence) -> str:
        return f"{path(item)}: {item.unit}"

    comparable = [bits_can_be_equal(DeviceRecord.parse(item.device), here) for item in chosen]
    if equal := [item for item, exact in zip(chosen, comparable, strict=True) if exact]:
        what = f"{len(equal):,} of {of:,} units drawn again from the model: equal bit for bit"
        one_path = config.one_path
        yield Comparison(what, [line for item in equal for line in difference(*again(item), name, one_path=one_path)])
    if others := [item for item, exact in zip(chosen, comparable, strict=True) if not exact]:
        why = why_not_equal([DeviceRecord.parse(item.device) for item in others], here)
        yield judged([again(item) for item in others], config.compute.precision, name, of=of, why=why)


def bits_can_be_equal(made_on: DeviceRecord, here: DeviceRecord) -> bool:
    return made_on.same_as(here) and made_on.exactness.exact and here.exactness.exact


def why_not_equal(made_on: Sequence[DeviceRecord], here: DeviceRecord) -> str:
    """Why bits cannot be compared, in words: the devices, or that they are not exact."""
    if others := sorted({str(record) for record in made_on if not record.same_as(here)}):
        return f"made on {'; '.join(others)}, drawn again on {here}"
    return f"on {here}, {exactness_line(here)}"


def votes_of(counts: VoteCounts) -> dict[int, int]:
    return {int(c): int(counts.votes[c]) for c in counts.votes.nonzero()[0]}


def difference(item: Evidence, drawn: VoteCounts, name: Name, *, one_path: bool) -> Iterator[str]:
    """What differs at all between a unit's evidence and the same draws, if anything."""
    votes = votes_of(drawn)
    if votes != item.votes:
        yield f"{name(item)}: votes {json.dumps(item.votes)}, the model gives {json.dumps(votes)}"
    elif drawn.evaluations != item.evaluations and not one_path:  # shared among levels there
        yield f"{name(item)}: {item.evaluations} evaluations, the model takes {drawn.evaluations}"
    elif not np.array_equal(_scores_or_none(drawn.scores), _scores_or_none(item.scores)):
        yield f"{name(item)}: the scores are not those that the model gives"


def _scores_or_none(scores: np.ndarray | None) -> np.ndarray:
    return np.empty(0) if scores is None else scores


def flipped(votes_before: Mapping[int, int], other: Mapping[int, int]) -> int:
    """The fewest votes that must have changed their class between two counts of the same draws."""
    return sum(max(0, votes - other.get(class_id, 0)) for class_id, votes in votes_before.items())


def judged(pairs: Sequence[Redrawn], precision: Precision, name: Name, *, of: int, why: str) -> Comparison:
    """Whether near-ties explain what differs: all units together and each by itself must pass a one-sided test.

    The hypothesis is that a vote flips with at most the tolerated share's probability. FALSE_ALARM is divided among
    the tests, so that a sound run fails with at most that probability.
    """
    tolerated, alpha = TOLERATED_SHARE[precision], FALSE_ALARM / (len(pairs) + 1)
    problems, flips, draws = [], 0, 0
    for item, drawn in pairs:
        votes = votes_of(drawn)
        changed = flipped(item.votes, votes)
        flips, draws = flips + changed, draws + item.unit.draws
        if clopper_pearson_lower(changed, item.unit.draws, alpha=alpha) > tolerated:
            problems.append(
                f"{name(item)}: votes {json.dumps(item.votes)}, the model gives {json.dumps(votes)}: {changed:,} of "
                f"{item.unit.draws:,} differ, more than near-ties explain"
            )
        problems += _far_scores(item, drawn, name, tolerated=TOLERATED_SCORE[precision])
    if clopper_pearson_lower(flips, draws, alpha=alpha) > tolerated:
        problems.append(f"{flips:,} of {draws:,} votes that were drawn again differ, more than near-ties explain")
    what = (
        f"{len(pairs):,} of {of:,} units drawn again from the model, {why}: bits cannot be compared; "
        f"{flips:,} of {draws:,} votes differ, and {tolerated:g} of all may be near-ties"
    )
    return Comparison(what, problems)


def _far_scores(item: Evidence, drawn: VoteCounts, name: Name, *, tolerated: float) -> Iterator[str]:
    if item.scores is None or drawn.scores is None:
        if (item.scores is None) != (drawn.scores is None):
            yield f"{name(item)}: the scores are not those that the model gives"
        return
    furthest = np.abs(item.scores - drawn.scores).max() / max(np.abs(drawn.scores).max(), 1e-30)
    if not furthest <= tolerated:
        yield f"{name(item)}: scores differ by {furthest:.1g} of the largest, which is more than rounding"
