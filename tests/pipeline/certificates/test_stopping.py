import numpy as np
import pytest

from ndc_core.certificates.certificate import Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.sequential import Sequential
from pipeline.certificates.stopping import Cell, IncompleteRunError, cells_of
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.units import WorkUnit, draw_ranges
from pipeline.store.evidence import Evidence

TERMS = Terms(sigma_pixel=0.25, alpha=0.001, votes=1000, radii=(0.25, 0.5))
LAW = Declaration(
    {
        "sigma_pixel": [0.25],
        "noise": "float",
        "votes": {"selection": 10, "estimation": 1000, "per_unit": 60},
        "dataset": {"image_shape": [1, 8, 8]},
        "classifier": {"grid": {"points": 4, "sigma_model_max": 1.5}, "weight": "edm", "loss_cap": None},
        "certificate": {"method": "sequential", "alpha": 0.001, "maximum_over_sigmas": False, "radii": [0.25, 0.5]},
    }
)


def item(phase: str, start: int, stop: int, *, wrong: int = 0) -> Evidence:
    votes = {c: n for c, n in ((1, stop - start - wrong), (0, wrong)) if n}
    return Evidence(WorkUnit("a", 1, 0.25, phase, start, stop), votes, 0, 0.0, 0.0, "cpu")


def cell(*items: Evidence, method=Sequential(TERMS)) -> Cell:  # noqa: B008 - frozen
    filled = Cell("a", 0.25, method, 10, 3)
    for evidence in items:
        filled.take(evidence)
    return filled


def test_the_first_wave_is_selection_and_the_first_look() -> None:
    assert cell().state().needed == 100
    assert cell(item("selection", 0, 10)).state().needed == 100


def test_the_next_wave_comes_when_a_look_left_something_open() -> None:
    known = [item("selection", 0, 10), item("estimation", 0, 60), item("estimation", 60, 100)]
    assert cell(*known[:2]).state().needed == 100
    assert cell(*known).state().needed == 150
    assert not cell(*known).state().decided


def test_unanimous_votes_are_decided_at_the_first_look_that_proves_the_largest_radius() -> None:
    units = [item("selection", 0, 10)]
    for _, start, stop in [piece for piece in draw_ranges(LAW, 0.25) if piece[0] == "estimation"]:
        units.append(item("estimation", start, stop))
    state = cell(*units).state()
    assert (state.decided, state.needed) == (True, 507)


def test_the_state_depends_on_the_evidence_and_not_on_its_order() -> None:
    pieces = [item(*piece, wrong=5 if piece[0] == "estimation" else 0) for piece in draw_ranges(LAW, 0.25)]
    step_by_step = cell()
    for evidence in pieces:
        if evidence.unit.phase == "estimation" and evidence.unit.draw_stop > step_by_step.state().needed:
            break
        step_by_step.take(evidence)
    again = cell(
        *[evidence for phase in ("estimation", "selection") for evidence in step_by_step.evidence[phase].values()][::-1]
    )
    one, other = again.state(), step_by_step.state()
    assert (one.decided, one.needed) == (other.decided, other.needed)
    assert one.tally is not None
    assert other.tally is not None
    np.testing.assert_array_equal(one.tally.looks, other.tally.looks)
    assert one.decided


def test_votes_beyond_the_decision_are_refused() -> None:
    """More draws after a look that decided could be used to try again until the result pleases."""
    units = [item(*piece) for piece in draw_ranges(LAW, 0.25) if piece[0] == "selection" or piece[2] <= 507]
    assert cell(*units).finished(resume_with="x").looks[-1].tolist() == [0, 507, 0]
    message = "567 estimation votes where the declared procedure stops at 507"
    with pytest.raises(IncompleteRunError, match=message):
        cell(*units, item("estimation", 507, 567)).finished(resume_with="x")


def test_a_gap_is_not_skipped() -> None:
    held = cell(item("selection", 0, 10), item("estimation", 60, 100))
    assert held.drawn("estimation") == 0
    with pytest.raises(IncompleteRunError, match="40 of 100 estimation votes present; run `ndc certify x` to finish"):
        held.finished(resume_with="ndc certify x")


def test_a_fixed_number_of_votes_is_one_wave() -> None:
    fixed = cell(item("selection", 0, 10), item("estimation", 0, 60), method=Cohen(TERMS))
    assert fixed.state().needed == 1000
    assert not fixed.state().decided


def test_evidence_of_an_unknown_image_is_refused() -> None:
    with pytest.raises(IncompleteRunError, match="the run has no such image or noise level"):
        cells_of(LAW, [], [item("selection", 0, 10)], num_classes=3)
