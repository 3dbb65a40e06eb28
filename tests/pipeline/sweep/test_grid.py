"""Products of keys: which runs they make, which a random subset takes, what is refused, and what is written."""

import json
import re
from pathlib import Path

import pytest

from pipeline.declaration.config import ConfigError
from pipeline.locations import location
from pipeline.sweep.file import Sweep, load_sweep
from pipeline.sweep.run import plan_sweep, run_sweep
from tests.support.in_process import replace_ray
from tests.support.small_sweeps import SWEEP, alone, certificates_of, sweep_toml

HEAD = SWEEP[: SWEEP.index("[vary]")]
GRID = """
[grid]
"votes.estimation" = [20, 40]
sigma_pixel = [[0.125], [0.25]]
"certificate.method" = ["cohen", "sequential"]
"""
NAMES = [
    f"estimation-{votes}--sigma_pixel-{sigma}--method-{method}"
    for votes in (20, 40)
    for sigma in (0.125, 0.25)
    for method in ("cohen", "sequential")
]


def loaded(folder: Path, text: str, *assignments: str) -> Sweep:
    return load_sweep(sweep_toml(folder, Path("models/tiny"), text), assignments)


def names(sweep: Sweep) -> list[str]:
    return [point.name for point in sweep.points]


def at_random(runs: int, seed: int) -> str:
    return f"random = {runs}\nrandom_seed = {seed}\n" + HEAD + GRID


def test_a_grid_has_a_run_for_each_combination(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, HEAD + GRID, "votes.selection=7")
    assert names(sweep) == NAMES
    last = sweep.points[-1]
    assert (last.config.votes.estimation, last.config.sigma_pixel) == (40, (0.25,))
    assert (last.config.certificate.method, last.config.votes.selection) == ("sequential", 7)
    assert last.value == {"votes.estimation": 40, "sigma_pixel": [0.25], "certificate.method": "sequential"}


def test_a_grid_stands_beside_varied_keys_and_named_runs(tmp_path: Path) -> None:
    all_names = names(loaded(tmp_path, SWEEP + GRID))
    assert set(NAMES) < set(all_names)
    assert {"votes.selection-4", "Cohen"} < set(all_names)


def test_keys_that_end_alike_are_named_in_full(tmp_path: Path) -> None:
    grid = '\n[grid]\n"classifier.grid.points" = [4, 5]\n"classifier.sift.grid.points" = [3]\n'
    first, _ = names(loaded(tmp_path, HEAD + grid))
    assert first == "classifier.grid.points-4--classifier.sift.grid.points-3"


def test_a_random_subset_is_the_same_again_and_part_of_a_larger_one(tmp_path: Path) -> None:
    three = names(loaded(tmp_path, at_random(3, 0)))
    assert three == names(loaded(tmp_path, at_random(3, 0)))
    assert three == sorted(three, key=NAMES.index)
    assert set(three) < set(names(loaded(tmp_path, at_random(5, 0))))
    assert names(loaded(tmp_path, at_random(8, 3))) == NAMES
    assert len({tuple(names(loaded(tmp_path, at_random(3, seed)))) for seed in range(6)}) > 1
    remark = loaded(tmp_path, at_random(3, 0)).remark
    assert remark == "3 of the 8 combinations of the grid, chosen at random with random_seed 0."


def test_each_combination_is_as_likely(tmp_path: Path) -> None:
    from pipeline.sweep.grid import combinations

    grid = {"a": [1, 2, 3], "b": [1, 2]}
    chosen = [c for seed in range(3000) for c in combinations(grid, random=2, seed=seed, source="")]
    counted = [sum(c == {"a": a, "b": b} for c in chosen) for a in (1, 2, 3) for b in (1, 2)]
    assert all(abs(count - 1000) < 5 * 26 for count in counted), "5 standard deviations of a count"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nseed = [1, 2, 1]", r"grid.seed has the value 1 twice"),
        ("[grid]\nseed = []", r"grid.seed: .* at least 1 item"),
        ("[grid]\nseed = 1", r"grid.seed: .*"),
        ("[grid]\nvotes.estimation = [100]", r"grid.votes has no values; write a key with a dot in quotes"),
        ('[grid]\n"votes.estimatoin" = [1]', r"run votes.estimatoin-1: unknown key votes.estimatoin.*did you mean"),
        ("[grid]\nseed = [1, -1]", r"run seed--1: seed: .* greater than or equal to 0"),
        (
            '[grid]\n"classifier.grid" = [{points = 4}]\n"classifier.grid.points" = [5]',
            r"has classifier.grid and .*in it",
        ),
        (f"[grid]\nmodel = ['{'m' * 120}']", r"too long for a name"),
        ("[grid]\nseed = [1]\n[points.seed-1]", r"two runs would be called seed-1"),
        (
            f'[grid]\nseed = {list(range(40))}\n"dataset.every" = {list(range(1, 40))}',
            r"1,560 combinations, .* at random",
        ),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_with_what_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, 'base = "fast"\n' + text)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("random = 3\n", r"random = 3 needs a random_seed"),
        ("random_seed = 3\n", r"random_seed chooses nothing"),
        ("random = 9\nrandom_seed = 0\n", r"random = 9 of the 8 combinations of \[grid\]; at most 8"),
        ("random = 0\nrandom_seed = 0\n", r"random: .* greater than or equal to 1"),
    ],
)
def test_a_random_subset_that_is_none_is_refused(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, head + HEAD + GRID)
    with pytest.raises(ConfigError, match=r"of the 0 combinations of \[grid\]"):
        loaded(tmp_path, "random = 1\nrandom_seed = 0\n" + HEAD)


def test_a_swept_grid_shares_votes_and_shows_a_column_for_each_key(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replace_ray(monkeypatch)
    text = HEAD.replace("[set]", '[set]\ntracking = "none"') + GRID
    sweep = load_sweep(sweep_toml(tmp_path, tiny_model, text))
    planned = plan_sweep(sweep, location("out"), say=lambda line: None)
    assert {row[0] for row in planned.rows} == {*NAMES, "all"}
    written = run_sweep(sweep, location("out"), say=lambda line: None)
    (table,) = written.tables
    assert table.header[:3] == ["votes.estimation", "sigma_pixel", "certificate.method"]
    assert [row[:3] for row in table.rows][:2] == [["20", "0.125", "cohen"], ["20", "0.125", "sequential"]]
    assert not Path("out/sweep.svg").exists(), "a figure shows keys that vary by themselves"
    runs = json.loads(Path("out/sweep.json").read_text())["runs"]
    assert [run["value"]["votes.estimation"] for run in runs] == [20] * 4 + [40] * 4
    (drawn, alone_drawn) = re.search(
        r"8 runs drew ([\d,]+) votes .* have drawn ([\d,]+)", " ".join(written.lead)
    ).groups()
    assert int(drawn) < int(alone_drawn) / 2, "those of one level share"
    alone(sweep.points[1].config, tmp_path / "alone")
    assert certificates_of(Path("out") / NAMES[1]) == certificates_of(tmp_path / "alone")
