"""What a run will cost: its size, and from a measured or a stated rate its hours, price and storage."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from upath import UPath

from ndc_core.analysis.exactness import Exactness
from ndc_core.certificates.certificate import Procedure, Tally
from pipeline.certificates.remaining import Left, RemainingWork
from pipeline.certificates.stopping import cells_of
from pipeline.declaration.config import RunConfig
from pipeline.driver.pinned import with_commits
from pipeline.driver.prepare import CostSample, PreparedRun, prepare, read_inputs
from pipeline.driver.services import say_services
from pipeline.progress import duration
from pipeline.side_channel import Say
from pipeline.store.devices import DeviceRecord
from pipeline.store.evidence import Evidence, EvidenceTable, evidence_content
from pipeline.store.run_store import RunStore
from pipeline.workers.measurement import SampledCell
from pipeline.workers.ray_cluster import connect_ray

REPETITIONS = 12  # of the declared procedure, on each sampled image
RESAMPLES = 1000
QUANTILES = (0.05, 0.95)
# Its text in evidence is as long as any.
A_DEVICE = DeviceRecord("cuda", "NVIDIA H100 80GB HBM3", "2.13.0+cu128", "12.8", "91002", Exactness(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Amount:
    """What is expected, bounds that hold nine times in ten, and `most`, which it cannot exceed."""

    expected: float
    low: float
    high: float
    most: float

    @classmethod
    def exactly(cls, value: float) -> "Amount":
        return cls(value, value, value, value)

    def times(self, factor: float) -> "Amount":
        return Amount(self.expected * factor, self.low * factor, self.high * factor, self.most * factor)


@dataclass(frozen=True)
class Plan:
    """Without a sample of votes, amounts are the most there can be; hours follow from evaluations.

    `device` is empty for a stated rate. Hours are of GPUs, or of actors where they hold none. Storage counts images and
    evidence. For a run that `stops_early`, units and storage are the most there can be, too. For a run under way,
    `seconds_left` is estimated from its decided images.
    """

    images: int
    levels: int
    units: int
    units_done: int
    stops_early: bool
    votes: Amount
    votes_known: bool
    evaluations: Amount
    evaluations_known: bool
    device: str
    evaluations_per_second: float
    hours: Amount
    gpus_per_actor: float
    workers: int
    wall_hours: Amount
    price: Amount | None
    storage_bytes: float
    seconds_left: Left | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_run(
    config: RunConfig,
    folder: UPath,
    *,
    say: Say,
    gpus: int | None = None,
    price_per_hour: float | None = None,
    evaluations_per_second: float | None = None,
) -> Plan:
    """The plan of a whole run, from some votes where it would run, or from a stated rate of one actor; writes nothing.

    `gpus` and `price_per_hour` mean GPUs where actors hold GPUs, and otherwise actors; unset, all that there are.

    Raises:
        ValueError: as `prepare` and `say_services`, so that what would end `ndc certify` at its start ends this too.
    """
    say_services([config], folder, say=say)
    config = with_commits(config)
    inputs = read_inputs(config)
    say(f"model: {config.model}, {inputs.num_classes:,} classes")
    run = prepare(config, folder, say=say, plan=CostSample(evaluations_per_second), inputs=inputs)
    for line in run.remarks:
        say(line)
    store = RunStore(folder)
    evidence = store.all_evidence(fingerprint=run.fingerprint) if store.is_declared() else EvidenceTable([])
    workers, each = gpus or 1, config.compute.gpus_per_actor or 0.0
    if not evaluations_per_second:
        pool = connect_ray(config.compute, say=say)
        for remark in pool.remarks:
            say(remark)
        if pool.device == "cuda" and pool.gpus_per_actor < 1:
            say("one actor was measured, with the GPU to itself: those that share one take longer than the plan says")
        each = pool.gpus_per_actor
        workers = gpus or max(1, round(pool.most * (each or 1)))
    return plan_of(run, evidence, gpus=workers, gpus_per_actor=each, price_per_hour=price_per_hour)


def plan_of(
    run: PreparedRun, evidence: EvidenceTable, *, gpus: int, gpus_per_actor: float, price_per_hour: float | None
) -> Plan:
    assert run.measured is not None
    votes, evaluations = _amounts(run, run.measured.cells)
    sampled = bool(run.measured.cells)
    share = gpus_per_actor or 1
    hours = evaluations.times(share / (3600 * run.measured.evaluations_per_second))
    wall_hours = hours.times(1 / gpus)
    return Plan(
        images=len(run.records),
        levels=len(run.config.sigma_pixel),
        units=len(run.units),
        units_done=len(evidence),
        stops_early=run.stops_early,
        votes=votes,
        votes_known=sampled or not run.stops_early,
        evaluations=evaluations,
        evaluations_known=sampled or (run.votes_cost_alike and not run.stops_early),
        device=run.measured.device,
        evaluations_per_second=run.measured.evaluations_per_second,
        hours=hours,
        gpus_per_actor=gpus_per_actor,
        workers=gpus,
        wall_hours=wall_hours,
        price=hours.times(price_per_hour) if price_per_hour else None,
        storage_bytes=_storage(run),
        seconds_left=_seconds_left(run, evidence, of_an_evaluation=3600 * wall_hours.expected / evaluations.expected),
    )


def _seconds_left(run: PreparedRun, evidence: EvidenceTable, *, of_an_evaluation: float) -> Left | None:
    if not len(evidence):
        return None
    cells = cells_of(run.declaration, run.records, evidence, num_classes=run.num_classes)
    work = RemainingWork.of_evidence(cells, evidence, stops_early=run.stops_early)
    return work.evaluations_left().times(of_an_evaluation)


def _amounts(run: PreparedRun, cells: Sequence[SampledCell]) -> tuple[Amount, Amount]:
    """Votes and evaluations of the run: from the sample for each image and level, or else the most."""
    most_votes, each = run.votes, run.most_evaluations_per_vote
    if not cells:
        votes = Amount.exactly(most_votes)
        return votes, Amount.exactly(most_votes * each)
    rng = np.random.default_rng(0)
    of_level = defaultdict(list)
    for cell in cells:
        of_level[cell.sigma_pixel].append(_simulated(run, cell, rng))
    totals = np.zeros((RESAMPLES, 2))
    expected = np.zeros(2)
    for rows in of_level.values():
        costs = np.array(rows)  # cells x repetitions x (votes, evaluations)
        expected += len(run.records) * costs.mean(axis=(0, 1))
        images = rng.integers(len(costs), size=(RESAMPLES, len(costs)))
        times = rng.integers(costs.shape[1], size=images.shape)
        totals += len(run.records) * costs[images, times].mean(axis=1)
    low, high = np.quantile(totals, QUANTILES, axis=0)
    most = (most_votes, most_votes * each)
    bounded = [np.minimum(values, most).tolist() for values in (expected, low, high)]
    votes, evaluations = (Amount(*values) for values in zip(*bounded, most, strict=True))
    return votes, evaluations


def _simulated(run: PreparedRun, cell: SampledCell, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Votes and evaluations of the sampled image if its declared procedure were carried out."""
    method, selection = run.declaration.procedure(cell.sigma_pixel), run.config.votes.selection
    of_each = {phase: evaluations / cell.draws for phase, evaluations in cell.evaluations.items()}
    costs: list[tuple[float, float]] = []
    for _ in range(REPETITIONS):
        votes = _votes_needed(method, cell, rng)
        costs.append((selection + votes, selection * of_each["selection"] + votes * of_each["estimation"]))
    return costs


def _votes_needed(method: Procedure, cell: SampledCell, rng: np.random.Generator) -> int:
    """Estimation votes until the procedure stops, with the candidate's probability drawn from what is known of it."""
    looks = method.looks
    if len(looks) == 1:
        return looks[0]
    draw = _scores_of(cell, rng) if cell.scores is not None else _counts_of(cell, rng)
    selection = [0] * cell.classes
    selection[cell.candidate] = 1
    counted: list[list[int]] = []
    for end in looks:
        counts, scores = draw(end)
        counted.append(counts)
        if method.decided(Tally(selection, counted, scores, scores)):
            return end
    return looks[-1]


Draw = Callable[[int], tuple[list[int], np.ndarray | None]]


def _counts_of(cell: SampledCell, rng: np.random.Generator) -> Draw:
    # Jeffreys' prior: a class that won all of a few votes need not win all of many.
    p = rng.beta(cell.candidate_votes + 0.5, cell.draws - cell.candidate_votes + 0.5)
    state = {"votes": 0, "wins": 0}

    def draw(end: int) -> tuple[list[int], None]:
        state["wins"] += int(rng.binomial(end - state["votes"], p))
        state["votes"] = end
        counts = [0] * cell.classes
        counts[cell.candidate] = state["wins"]
        counts[(cell.candidate + 1) % cell.classes] = end - state["wins"]
        return counts, None

    return draw


def _scores_of(cell: SampledCell, rng: np.random.Generator) -> Draw:
    assert cell.scores is not None
    drawn = np.empty((0, cell.classes))

    def draw(end: int) -> tuple[list[int], np.ndarray]:
        nonlocal drawn
        assert cell.scores is not None
        more = cell.scores[rng.integers(len(cell.scores), size=end - len(drawn))]
        drawn = np.concatenate([drawn, more])
        return np.bincount(drawn.argmax(axis=1), minlength=cell.classes).tolist(), drawn

    return draw


def _storage(run: PreparedRun) -> float:
    """Bytes of the run's images, not compressed, and of its evidence, if a unit's votes fall on two classes."""
    unit = max(run.units.values(), key=lambda unit: unit.draws)
    scores = np.zeros((unit.draws, run.num_classes)) if run.config.certificate.method == "lipschitz" else None
    votes = {0: unit.draws - 1, 1: 1} if unit.draws > 1 else {0: 1}
    evidence = Evidence(unit, votes, 10**6, 100.0, 1.7e9, A_DEVICE.text(), scores)
    each = len(evidence_content(evidence, fingerprint=run.fingerprint))
    return float(len(run.records) * math.prod(run.listing.image_shape) + len(run.units) * each)


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people."""
    at_most = "" if plan.evaluations_known else "at most "
    device = f"measured on {plan.device}" if plan.device else "as stated"
    what = "GPU" if plan.gpus_per_actor else "actor"
    done = f", {plan.units_done:,} of them done" if plan.units_done else ""
    lines = [
        f"{plan.images:,} image{'s' * (plan.images != 1)}, {plan.levels} noise level{'s' * (plan.levels != 1)}, "
        f"{'up to ' * plan.stops_early}{plan.units:,} work units{done}",
        f"votes        {'' if plan.votes_known else 'at most '}{_range(plan.votes, _count)}",
        f"evaluations  {at_most}{_range(plan.evaluations, _count)}",
        f"rate         {plan.evaluations_per_second:,.0f} evaluations/s per actor, {device}",
        f"{what} hours".ljust(13) + at_most + _range(plan.hours, "{:,.2f}".format),
        f"time         {at_most}{_times(plan.wall_hours)} on {plan.workers} {what}{'s' * (plan.workers != 1)}",
        f"storage      {'at most ' * plan.stops_early}{_size(plan.storage_bytes)}",
    ]
    if plan.seconds_left is not None:
        lines.insert(-1, f"of that      {plan.seconds_left.text()}")
    if plan.price is not None:
        lines.insert(-1, f"price        {at_most}{_range(plan.price, '{:,.2f}'.format)}")
    return lines


def _range(amount: Amount, text: Callable[[float], str]) -> str:
    if amount.low == amount.high:
        return text(amount.expected)
    return f"{text(amount.expected)} expected ({text(amount.low)} to {text(amount.high)}, at most {text(amount.most)})"


def _count(value: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if value >= 10 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f}"


def _times(hours: Amount) -> str:
    seconds = hours.times(3600)
    if seconds.low == seconds.high:
        return duration(seconds.expected)
    return f"{duration(seconds.expected)} expected ({duration(seconds.low)} to {duration(seconds.high)})"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
