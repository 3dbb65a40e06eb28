"""`ndc sweep`: runs that were declared together, one after the other, with votes shared where they may."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from upath import UPath

from pipeline.certificates.reuse import ends_of, is_about_candidate, vote_key
from pipeline.declaration.config import ConfigError, RunConfig
from pipeline.declaration.declaration import Declaration, DeclarationChangedError, declare, refuse_changes
from pipeline.declaration.units import WorkUnit, draws_a_unit
from pipeline.driver.certify import NothingKeptError, UnitsFailedError, certify_run
from pipeline.driver.pinned import with_commits
from pipeline.driver.prepare import Inputs, Measurer, PreparedRun, prepare, read_inputs
from pipeline.driver.services import say_services
from pipeline.locations import exists, publish, read
from pipeline.report.tables import Table
from pipeline.side_channel import Say
from pipeline.store.evidence import EvidenceTable
from pipeline.store.run_store import RunStore, StoreError
from pipeline.sweep.file import Point, Sweep
from pipeline.sweep.results import WrittenSweep, refuse_what_cannot_be_compared, write_sweep
from pipeline.workers.measurement import MeasuredCost
from pipeline.workers.ray_cluster import connect_most

DECLARATION = "declared.json"
# What decides how fast passes are, and how many rows are fastest.
OF_THE_NETWORK = ("precision", "channels_last", "compile", "threads_per_actor", "device", "gpus_per_actor")


@dataclass(frozen=True)
class Member:
    """A point of a sweep whose model and data are read; its configuration may leave sizes open."""

    point: Point
    config: RunConfig
    where: UPath
    inputs: Inputs

    def with_sizes(self, *, rows: int | None = None, **votes: Any) -> "Member":
        """Sets sizes that are left open."""
        config = self.config
        compute = config.compute.model_copy(update={"rows_per_pass": config.compute.rows_per_pass or rows})
        update = {key: value for key, value in votes.items() if getattr(config.votes, key) is None}
        changed = {"compute": compute, "votes": config.votes.model_copy(update=update)}
        return replace(self, config=config.model_copy(update=changed))

    @property
    def declaration(self) -> Declaration:
        return declare(self.config, self.inputs.listing, models=self.inputs.digests)

    @property
    def network(self) -> str:
        return json.dumps([self.inputs.digests, *(getattr(self.config.compute, key) for key in OF_THE_NETWORK)])

    def prepared(self) -> PreparedRun:
        return prepare(self.config, self.where, inputs=self.inputs)


def run_sweep(sweep: Sweep, folder: UPath, *, say: Say) -> WrittenSweep:
    """Brings every run of a sweep to its end from wherever it stands, and shows them beside each other.

    Raises:
        UnitsFailedError: naming the runs with failed units; the others are done.
        ValueError: a run that cannot be started, before any work.
    """
    members = settled(sweep, folder, say=say)
    connect_most([member.config.compute for member in members], say=say)
    if not exists(folder / DECLARATION):
        declarations = {member.point.name: member.declaration.to_json() for member in members}
        publish(folder / DECLARATION, json.dumps(declarations, indent=2).encode())
    failed: list[str] = []
    for number, member in enumerate(members, start=1):
        say(f"run {number} of {len(members)}: {member.point.name}")
        try:
            run_member(member, members, say=lambda line: say(f"  {line}"))
        except NothingKeptError:
            raise
        except UnitsFailedError as error:
            say(f"  {error}")
            failed.append(member.point.name)
    if failed:
        raise UnitsFailedError(
            f"units failed in {len(failed)} of {len(members)} runs, the others are done: {', '.join(failed)}; "
            "mend the cause, then run the same command to finish"
        )
    return write_sweep(sweep, folder)


def run_member(member: Member, members: Sequence[Member], *, say: Say) -> None:
    """See `certify_run`; the others lend the votes that they have in common with it."""
    alike = [other for other in members if vote_key(other.declaration) == vote_key(member.declaration)]
    run = member.prepared()
    say(run.labels)
    report, _ = certify_run(run, say=say, donors=[other.where for other in alike if other is not member])
    assert report is not None
    for warning in report.summary.warnings:
        say(warning)


def plan_sweep(sweep: Sweep, folder: UPath, *, say: Say) -> Table:
    """What is still to be drawn of each run, after what those before it will surely lend; writes nothing."""
    header = ["run", "images", "levels", "votes", "to draw", "evaluations to come"]
    rows, lent, to_come = [], set[Draws](), dict[Draws, tuple[int, int]]()
    for member in settled(sweep, folder, say=say):
        run, each = member.prepared(), member.inputs.most_evaluations_per_vote
        units = {draws_of(run.declaration, unit): unit.draws for unit in undecided_units(run)}
        votes = sum(draws for draws_named, draws in units.items() if draws_named not in lent)
        for draws_named, draws in units.items():
            to_come.setdefault(draws_named, (draws, draws * each))
        lent |= {
            draws_of(run.declaration, u) for u in run.units.values() if u.phase == "selection" or not run.stops_early
        }
        exact = votes == 0 or (run.votes_cost_alike and not run.stops_early)
        numbers = [f"{len(run.records):,}", f"{len(run.config.sigma_pixel)}", f"{run.at_most}{run.votes:,}"]
        bounds = [f"{run.at_most if votes else ''}{votes:,}", f"{'' if exact else 'at most '}{votes * each:,}"]
        rows.append([member.point.name, *numbers, *bounds])
    totals = [sum(column) for column in zip(*to_come.values(), strict=True)] or [0, 0]
    rows.append(["all", "", "", "", *(f"at most {total:,}" for total in totals)])
    return Table(f"{sweep.name}: {len(rows) - 1} runs in {folder}", header, rows)


Draws = tuple[Any, ...]


def draws_of(declaration: Declaration, unit: WorkUnit) -> Draws:
    """Equal for units that one of two runs will surely lend to the other; a candidate follows from its selection."""
    about = declaration.selection_votes if is_about_candidate(declaration) and unit.phase == "estimation" else None
    return vote_key(declaration), about, unit.cell, unit.phase, unit.draw_start, unit.draw_stop


def undecided_units(run: PreparedRun) -> list[WorkUnit]:
    """All that may yet be drawn: units without evidence, of images and levels that are not decided."""
    store = RunStore(run.folder)
    evidence = store.all_evidence(fingerprint=run.fingerprint) if store.is_declared() else EvidenceTable([])
    cells = {unit.cell for unit in run.missing(evidence).values()}
    present = set(evidence.unit_ids)
    return [unit for unit_id, unit in run.units.items() if unit.cell in cells and unit_id not in present]


def settled(sweep: Sweep, folder: UPath, *, say: Say) -> list[Member]:
    """The runs in the order in which they are best drawn, after every check that can be made before work starts.

    Sizes that are left open are those that the runs were declared with, or else the same for all that may share votes.

    Raises:
        ValueError: naming the first run that cannot be started, and why.
    """
    if exists(folder / "run.json"):
        raise StoreError(f"{folder} holds a run, not a sweep; give another folder with --out")
    say_services([point.config for point in sweep.points], folder, say=say)
    declarations, members = declarations_of(folder), read_members(sweep, folder)
    for index, member in enumerate(members):
        with naming(member.point):
            members[index] = as_declared(member, declarations)
    members = members if declarations else with_sizes(members, say)
    for member in members:
        with naming(member.point):
            member.prepared()
    refuse_what_cannot_be_compared([member for member in members if member.point.key is None])
    return sorted(members, key=most_votes_first)


def most_votes_first(member: Member) -> tuple[int, bool, int]:
    """The runs with the most votes, and those that never stop early, come first: later ones take votes over from them,
    and need all selection votes before they can take any estimation vote that is about a class."""
    votes = member.config.votes
    return -votes.selection, member.config.certificate.method != "cohen", -votes.estimation


def read_members(sweep: Sweep, folder: UPath) -> list[Member]:
    """Each point with its model and data, which are read once for all that have the same."""
    inputs: dict[str, Inputs] = {}
    members = []
    for point in sweep.points:
        with naming(point):
            config = with_commits(point.config)
        key = config.model_dump_json(include={"dataset", "model", "unconditional", "noise", "compute", "classifier"})
        if key not in inputs:
            with naming(point):
                inputs[key] = read_inputs(config)
        members.append(Member(point, config, folder / point.name, inputs[key]))
    return members


@contextmanager
def naming(point: Point) -> Iterator[None]:
    """Says which run cannot be started."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{point.name}: {error}") from error


def declarations_of(folder: UPath) -> dict[str, Declaration]:
    """What the runs of a sweep declared before its first draw, by name; empty until then."""
    try:
        recorded: dict[str, dict[str, Any]] = json.loads(read(folder / DECLARATION))
    except FileNotFoundError:
        return {}
    return {name: Declaration.from_json(declared) for name, declared in recorded.items()}


def as_declared(member: Member, declarations: dict[str, Declaration]) -> Member:
    """With the sizes that it was declared with.

    Raises:
        DeclarationChangedError: the sweep was started without this run, or the run without the sweep.
    """
    declaration = declarations.get(member.point.name)
    if not declarations and RunStore(member.where).is_declared():
        raise DeclarationChangedError(
            f"{member.where} holds a run that no sweep declared; give another folder with --out"
        )
    if declarations and declaration is None:
        raise DeclarationChangedError(
            "this sweep was started without it, and votes that have been looked at would spend alpha a second time if "
            "it took them over; leave it out, or give the sweep another folder with --out, and another seed"
        )
    if declaration is None:
        return member
    member = member.with_sizes(
        rows=declaration.rows_per_pass, per_unit=declaration.votes_per_unit, ends=declaration.unit_ends or None
    )
    refuse_changes(declaration, member.declaration, folder=str(member.where))
    return member


def once_for_each_network(members: Sequence[Member], say: Say) -> Callable[[Member], MeasuredCost]:
    """Measures the passes of a run's network, once for all runs that have the same."""
    measured: dict[str, MeasuredCost] = {}

    def measure(member: Member) -> MeasuredCost:
        if member.network not in measured:
            connect_most([other.config.compute for other in members], say=say)
            inputs, most = member.inputs, member.inputs.most_evaluations_per_vote
            measuring = Measurer(inputs.source, inputs.listing, most, say)
            measured[member.network] = measuring.measure(member.config, votes=False)
        return measured[member.network]

    return measure


def with_sizes(members: Sequence[Member], say: Say) -> list[Member]:
    """Each with the passes of its network, and with units cut as in all runs that it may share votes with."""
    measure = once_for_each_network(members, say)
    sized = [
        member if member.config.compute.rows_per_pass else member.with_sizes(rows=measure(member).rows_per_pass)
        for member in members
    ]
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, member in enumerate(sized):
        groups[vote_key(member.declaration)].append(index)
    for indices in groups.values():
        group = [sized[index] for index in indices]
        ends = ends_of([member.declaration for member in group]) or None
        open_ones = [member for member in group if member.config.votes.per_unit is None]
        per_unit = draws_of_a_unit(group, measure(group[0])) if open_ones else None
        for index in indices:
            sized[index] = sized[index].with_sizes(per_unit=per_unit, ends=ends)
    return sized


def draws_of_a_unit(group: Sequence[Member], measured: MeasuredCost) -> int:
    per_vote = max(member.inputs.most_evaluations_per_vote for member in group)
    longest = max(group, key=lambda member: member.config.votes.selection + member.config.votes.estimation)
    votes, rows = longest.config.votes, longest.config.compute.rows_per_pass
    assert rows is not None
    return draws_a_unit(
        measured.evaluations_per_second / per_vote,
        phase=max(votes.selection, votes.estimation),
        run=len(longest.inputs.listing.records)
        * len(longest.config.sigma_pixel)
        * (votes.selection + votes.estimation),
        of_a_pass=math.ceil(rows / per_vote),
    )
