"""A sweep: runs around one base that are declared together, read from TOML."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.declaration.config import ConfigError, RunConfig, Section
from pipeline.declaration.toml_files import (
    assign,
    override,
    packaged_names,
    read_source,
    read_toml,
    sentence,
    validated,
)
from pipeline.sweep.grid import GRID, combinations, size_of
from pipeline.sweep.run_names import name_of_values, refuse_name


class Axis(Section):
    """A key that is varied by itself."""

    values: tuple[Any, ...] = Field(min_length=1)
    """Its values, each a run: `[100, 1000]`."""
    set: dict[str, Any] = Field(default={})
    """Further keys that this key's runs have."""


def _as_axis(value: Any) -> Any:
    return {"values": value} if isinstance(value, list) else value


class SweepFile(Section):
    """Keys are written as `--set` takes them, those with a dot in quotes: `"votes.estimation" = 100`. A value that is a
    table takes the place of all that was there."""

    base: str
    """The run that all start from: a preset, or the path or URI of a TOML file."""
    set: dict[str, Any] = Field(default={})
    """Keys that all runs have."""
    vary: dict[str, Annotated[Axis, BeforeValidator(_as_axis)]] = Field(default={})
    """Keys that are varied, each by itself: a list of values, or a section."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default={})
    """Keys whose values are combined, each with each: a list of values for each key."""
    random: int | None = Field(default=None, ge=1)
    """Only this many of the grid's combinations, chosen at random."""
    random_seed: int | None = None
    """Chooses them; the same seed chooses the same ones, and more of them with a larger `random`."""
    points: dict[str, dict[str, Any]] = Field(default={})
    """Runs by name, each with the keys that it has: methods to compare."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder's name, and the key that is varied in it with its value.

    The key is None if the run was named, and GRID with the values of all keys if it is one of the grid.
    """

    name: str
    config: RunConfig
    key: str | None
    value: Any


@dataclass(frozen=True)
class Sweep:
    """`remark` says which part of the grid is taken, if it is not all."""

    name: str
    points: tuple[Point, ...]
    remark: str | None = None


def sweep_names() -> list[str]:
    return packaged_names("presets/sweeps")


def load_sweep(source: str, assignments: tuple[str, ...] = ()) -> Sweep:
    """The validated runs of a packaged sweep or a TOML file. `assignments` hold for all but what is varied.

    Raises:
        ConfigError: an unknown name or key, no runs, runs that cannot be told apart, or one that cannot be run.
    """
    declared, name = read_sweep(source), Path(source).stem
    base = read_source(declared.base)
    assign_all(base, declared.set, origin=f"{source}: [set]")
    for assignment in assignments:
        override(base, assignment)
    base.setdefault("sweep", name)
    points = list(configured_points(base, declared, source))
    if not points:
        raise ConfigError(f"{source} has no runs; give values below [vary] or [grid], or a run below [points.NAME]")
    names = [point.name for point in points]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"{source}: two runs would be called {twice}; leave one out, or name it yourself below [points.NAME]"
        )
    return Sweep(name, tuple(points), remark_of(declared))


def remark_of(declared: SweepFile) -> str | None:
    if declared.random is None:
        return None
    combinations = f"{size_of(declared.grid):,} combinations of the grid"
    return f"{declared.random:,} of the {combinations}, chosen at random with random_seed {declared.random_seed}."


def configured_points(base: dict[str, Any], declared: SweepFile, source: str) -> Iterator[Point]:
    """Each run, without the radii that it cannot reach whatever is drawn: it certifies nothing there.

    Raises:
        ConfigError: naming the run that cannot be run; or that no run with some radius can reach it.
    """
    reached, raw_of_radius = set[float](), dict[float, dict[str, Any]]()
    for name, keys, key, value in declared_points(declared, source):
        raw, origin = copy.deepcopy(base), f"{source}: run {name}"
        assign_all(raw, keys, origin=origin)
        radii, within = radii_within_reach(raw, origin=origin)
        reached |= set(within)
        raw_of_radius |= dict.fromkeys(radii, raw)
        limited = copy.deepcopy(raw)
        assign(limited, "certificate.radii", within, origin=origin)
        yield Point(name, validated(limited, source=origin), key, value)
    for radius in raw_of_radius.keys() - reached:
        validated(raw_of_radius[radius], source=source)


def radii_within_reach(raw: dict[str, Any], *, origin: str) -> tuple[list[float], list[float]]:
    """The radii that are asked for, and those of them that the run can reach: all of them, if it can reach none."""
    certificate = raw.get("certificate")
    radii = certificate.get("radii") if isinstance(certificate, dict) else None
    if not isinstance(radii, list) or not all(isinstance(radius, int | float) for radius in radii):
        validated(raw, source=origin)  # which says what is wrong with them
    assert isinstance(radii, list)
    natural = copy.deepcopy(raw)
    natural["certificate"]["radii"] = [0.0]
    reach = validated(natural, source=origin).reach
    return radii, [radius for radius in radii if not radius > reach] or radii


def read_sweep(source: str) -> SweepFile:
    raw = read_toml(source, "presets/sweeps", what="a sweep")
    for section in ("vary", "grid"):
        for key, value in raw[section].items() if isinstance(raw.get(section), dict) else ():
            if isinstance(value, dict) and (section == "grid" or "values" not in value):
                or_table = ", or give a table its `values`" if section == "vary" else ""
                raise ConfigError(
                    f"{source}: {section}.{key} has no values; write a key with a dot in quotes, as "
                    f'"votes.estimation" = [100]{or_table}'
                )
    try:
        return SweepFile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(sentence(problem) for problem in error.errors())) from error


def declared_points(declared: SweepFile, source: str) -> Iterator[tuple[str, Mapping[str, Any], str | None, Any]]:
    """Name, keys, and the varied key with its value, of each run."""
    for key, axis in declared.vary.items():
        for index, value in enumerate(axis.values):
            if value in axis.values[:index]:
                raise ConfigError(f"{source}: vary.{key} has the value {value!r} twice")
            name = name_of_values({key: value}, origin=f"{source}: vary.{key}")
            yield name, {**axis.set, key: value}, key, value
    subset = {"random": declared.random, "seed": declared.random_seed}
    for values in combinations(declared.grid, **subset, source=source):
        yield name_of_values(values, origin=f"{source}: [grid]"), values, GRID, values
    for name, keys in declared.points.items():
        refuse_name(name, source)
        yield name, keys, None, None


def assign_all(raw: dict[str, Any], keys: Mapping[str, Any], *, origin: str) -> None:
    for key, value in keys.items():
        assign(raw, key, copy.deepcopy(value), origin=f"{origin}: {key}")
