"""`ndc compare`: runs and logs of other tools in the same tables and the same plot."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

from upath import UPath

from pipeline.certificates.reduce import LARGEST
from pipeline.compare.caveats import caveats
from pipeline.compare.inputs import LogInput, RunInput, open_input, parse_argument
from pipeline.compare.method_tables import (
    Comparison,
    MethodAtLevel,
    accuracy_table,
    best_curve,
    comparison_json,
    cost_table,
    levels_of,
)
from pipeline.compare.shared_images import ids_of_log, shared_images
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration, DeclarationChangedError, refuse_undeclared_radii
from pipeline.locations import exists, publish
from pipeline.report.figures import certified_accuracy_figure
from pipeline.report.pages import comparison_page
from pipeline.report.tables import Table, latex_page, markdown_page
from pipeline.store.run_store import StoreError

TITLE = "Methods compared"

Opened = RunInput | LogInput


class DeclaredRun(Protocol):
    """What a run is before any of its votes is looked at."""

    @property
    def where(self) -> UPath: ...
    @property
    def declaration(self) -> Declaration: ...
    @property
    def config(self) -> RunConfig: ...


@dataclass(frozen=True)
class WrittenComparison:
    comparison: Comparison
    tables: tuple[Table, Table]
    page: UPath


def compare(
    arguments: Sequence[str], *, alpha: float | None, radii: Sequence[float] | None, intersect: bool, out: UPath
) -> WrittenComparison:
    """Compares runs and logs from their files alone, and writes tables, page, figure and numbers into a folder.

    `alpha` None is the one that all runs were declared with, `radii` None all that they declared.

    Raises:
        ValueError: what is given cannot be compared: other images, alphas or undeclared radii, incomplete runs, logs
            that contradict themselves; or the folder holds a run.
    """
    if exists(out / "run.json"):
        raise StoreError(f"{out} holds a run, whose tables these would replace; give another folder with --out")
    opened = [open_input(parse_argument(argument), alpha=alpha) for argument in arguments]
    comparison = comparison_of(opened, alpha=alpha, radii=radii, intersect=intersect)
    return write_comparison(comparison, out)


def comparison_of(
    opened: Sequence[Opened], *, alpha: float | None, radii: Sequence[float] | None, intersect: bool
) -> Comparison:
    """See `compare`; refuses what it can before it looks at the evidence."""
    runs = [item for item in opened if isinstance(item, RunInput)]
    if alpha is None:
        refuse_other_alphas(runs)
    chosen = chosen_radii(runs, radii)
    ids = {id(item): ids_of_log(item, runs) for item in opened if isinstance(item, LogInput)}
    sources = [
        (str(item.where), item.images if isinstance(item, RunInput) else item.images(ids[id(item)])) for item in opened
    ]
    shared = shared_images(sources, intersect=intersect)
    named = list(zip(names_of(opened), opened, strict=True))
    unordered: list[MethodAtLevel] = []
    for name, item in named:
        if isinstance(item, RunInput):
            unordered += item.entries(name, alpha=alpha)
        else:
            unordered += item.entries(name, ids[id(item)])
    entries = in_order([restricted(entry, shared) for entry in unordered])
    remarks = caveats(named, entries, sources, shared=len(shared), alpha=alpha)
    declared = next((run.declaration.alpha for run in runs), None)
    return Comparison(entries, chosen, alpha if runs and alpha is not None else declared, remarks)


def refuse_other_alphas(runs: Sequence[DeclaredRun]) -> None:
    """Raises DeclarationChangedError, naming two runs that were declared with different alphas."""
    alphas = [run.declaration.alpha for run in runs]
    for run, alpha in zip(runs, alphas, strict=True):
        if alpha != alphas[0]:
            raise DeclarationChangedError(
                f"{runs[0].where} was declared with alpha {alphas[0]:g}, {run.where} with {alpha:g}: their radii hold "
                f"with different probability; give one alpha for all, as --alpha {max(alpha, alphas[0]):g}"
            )


def chosen_radii(runs: Sequence[DeclaredRun], radii: Sequence[float] | None) -> tuple[float, ...]:
    """The given radii, or else all that the runs declared; without radius 0, which every table has.

    Raises:
        DeclarationChangedError: a sequential run did not aim at one of them.
    """
    if not runs and radii is None:
        raise ValueError("logs alone declare no radii; give those of the table, as --radii 0.25,0.5,1")
    declared = chain.from_iterable(run.config.certificate.radii for run in runs)
    chosen = sorted(set(declared if radii is None else radii))
    for run in runs:
        try:
            refuse_undeclared_radii(run.declaration, [radius for radius in chosen if radius > 0])
        except DeclarationChangedError as error:
            aims = [set(other.declaration.radii) for other in runs if other.declaration.radii is not None]
            common = ",".join(f"{radius:g}" for radius in sorted(set.intersection(*aims))) or "0"
            hint = f"These runs can be compared at --radii {common}"
            raise DeclarationChangedError(f"{run.where}: {error}. {hint}") from error
    return tuple(radius for radius in chosen if radius > 0)


def radii_of(text: str) -> tuple[float, ...]:
    """Radii as they are typed, `0.25,0.5`.

    Raises:
        ValueError: one is not a number of at least 0.
    """
    try:
        radii = tuple(float(part) for part in text.split(","))
    except ValueError:
        radii = (math.nan,)
    if not all(0 <= radius < math.inf for radius in radii):
        raise ValueError(f"--radii {text}: these are not all numbers from 0 on; give them as 0.25,0.5")
    return radii


def names_of(opened: Sequence[Opened]) -> list[str]:
    """The names given, else those of the methods, with the folder's name where several would share one."""
    names = [item.argument.name or item.default_name for item in opened]
    for longer in ("name", "path"):
        often = Counter(names)
        names = [
            name if item.argument.name or often[name] == 1 else f"{item.default_name} ({_called(item.where, longer)})"
            for item, name in zip(opened, names, strict=True)
        ]
    return names


def _called(where: UPath, how: str) -> str:
    return where.absolute().name if how == "name" else str(where)


def restricted(entry: MethodAtLevel, images: Sequence[str]) -> MethodAtLevel:
    """The entry on these images only, without accuracy under attack where some are left out: it is of all together."""
    outcomes = {image_id: entry.outcomes[image_id] for image_id in images}
    attacked = entry.attacked if len(outcomes) == len(entry.outcomes) else None
    return replace(entry, outcomes=outcomes, attacked=attacked)


def in_order(entries: Sequence[MethodAtLevel]) -> tuple[MethodAtLevel, ...]:
    """Methods as they were given, their levels by rising noise.

    Raises:
        ValueError: a method has a noise level twice.
    """
    seen: dict[tuple[str, str], MethodAtLevel] = {}
    for entry in entries:
        other = seen.setdefault((entry.method, entry.level), entry)
        if other is not entry:
            raise ValueError(
                f"{entry.method} has the noise level {entry.level} twice, in {other.source} and in {entry.source}; "
                "give them different names, as NAME=RUN"
            )
    methods = list(dict.fromkeys(entry.method for entry in entries))
    noise = {entry.level: math.inf if entry.level == LARGEST else float(entry.level) for entry in entries}
    return tuple(sorted(entries, key=lambda entry: (methods.index(entry.method), noise[entry.level])))


def write_comparison(comparison: Comparison, folder: UPath) -> WrittenComparison:
    tables = accuracy_table(comparison), cost_table(comparison)
    figure = certified_accuracy_figure(
        [best_curve(m) if len(levels_of(m)) > 1 else m[0].curve for m in comparison.methods]
    )
    curves = [entry.curve for entry in comparison.entries]
    texts = {
        "table.md": markdown_page(comparison.remarks, tables),
        "table.tex": latex_page(comparison.remarks, tables),
        "compare.json": json.dumps(comparison_json(comparison), indent=2, allow_nan=False) + "\n",
        "curves.svg": figure.svg,
        "compare.html": comparison_page(title=TITLE, lead=comparison.remarks, tables=tables, curves=curves),
    }
    publish(folder / "curves.png", figure.png)
    for name, text in texts.items():
        publish(folder / name, text.encode())
    return WrittenComparison(comparison, tables, folder / "compare.html")
