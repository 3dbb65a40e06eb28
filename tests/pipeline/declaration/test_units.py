from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.datasets import Example
from pipeline.declaration.declaration import declare
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import WorkUnit, plan_units
from tests.support.small_runs import listing_of

IMAGE = np.zeros((1, 8, 8), np.uint8)


@settings(deadline=None)
@given(
    images=st.integers(1, 3),
    selection=st.integers(1, 60),
    per_unit=st.integers(1, 400),
    ends=st.lists(st.integers(1, 1200), max_size=3),
    method=st.sampled_from(["cohen", "sequential"]),
)
def test_units_cover_every_draw_exactly_once(
    images: int, selection: int, per_unit: int, ends: list[int], method: str
) -> None:
    chosen = [f"votes.selection={selection}", f"votes.per_unit={per_unit}", f"certificate.method={method}"]
    chosen += [f"votes.ends={ends}"]
    examples = [Example(str(index), IMAGE, index) for index in range(images)]
    listing = listing_of(examples)
    law = declare(load_config("demo", chosen), listing, models={})
    units = list(plan_units(law, listing.records))
    covered = [
        (unit.image_id, unit.sigma_pixel, unit.phase, draw)
        for unit in units
        for draw in range(unit.draw_start, unit.draw_stop)
    ]
    assert len(covered) == len(set(covered)) == images * 2 * (selection + 1000)
    assert max(unit.draws for unit in units) <= per_unit
    looks = law.procedure(0.25).looks
    assert not [unit for unit in units if any(unit.draw_start < look < unit.draw_stop for look in looks[:-1])]
    assert not [unit for unit in units if any(unit.draw_start < end < unit.draw_stop for end in ends)]
    assert len({unit.unit_id("law") for unit in units}) == len(units)


def test_a_units_id_is_pinned() -> None:
    """It names files of runs that are to be resumed by a later version."""
    unit = WorkUnit("digits-0001", 3, 0.25, "estimation", 0, 500)
    assert unit.unit_id("law") == "19d8f7d1b280a3cf6ba744873c569c31"
    assert unit.unit_id("other law") != unit.unit_id("law")
    assert str(unit) == "image digits-0001, sigma_pixel 0.25, estimation draws 0 to 499"


def test_ids_from_data_never_leave_the_run_folder() -> None:
    unit = WorkUnit("../../etc/passwd", 3, 0.25, "estimation", 0, 500)
    assert Path(unit.unit_id("law")).name == unit.unit_id("law")
