"""What an attack may cost: stated before it starts, not exceeded, and no larger than the budget."""

from typing import Any

import pytest

from pipeline.driver.attack_plan import BudgetError, plan_attack
from pipeline.workers.attack_settings import CONFIRM_FACTOR, AttackCosts, AttackSettings


@pytest.mark.parametrize(("budget", "images"), [(0.3, 1), (0.5, 2), (0.59, 2), (0.6, 3), (9.0, 3)])
def test_as_many_images_are_attacked_as_the_budget_allows(budget: float, images: int) -> None:
    plan = plan_attack([300, 200, 100], evaluations_of_run=1000, budget=budget)
    assert plan.images == images
    assert plan.evaluations == sum([300, 200, 100][:images])


def test_a_plan_says_what_is_left_out_and_what_would_be_enough_for_all() -> None:
    said = str(plan_attack([30_000, 20_000, 10_001], evaluations_of_run=100_000, budget=0.5))
    assert said == (
        "attacks the first 2 of 3 images: at most 50,000 evaluations, 0.5 times the 100,000 that the run took; "
        "--budget 0.61 is enough for all"
    )
    assert plan_attack([30_000, 20_000, 10_001], evaluations_of_run=100_000, budget=0.61).images == 3
    assert "attacks all 3 images" in str(plan_attack([1, 1, 1], evaluations_of_run=10, budget=1))


def test_a_budget_that_is_not_enough_for_one_image_is_refused_with_one_that_is() -> None:
    with pytest.raises(BudgetError, match=r"takes up to 301 evaluations, .* 0.2 times the 1,000 .* --budget of 0.31"):
        plan_attack([301, 1], evaluations_of_run=1000, budget=0.2)


def cell(**changes: Any) -> dict[str, Any]:
    return {"predicted": 0, "certified_radius": 0.1, "radii": [0.2, 0.4], **changes}


def test_the_most_that_a_cell_takes_is_every_ascent_its_judges_and_every_confirmation() -> None:
    settings = AttackSettings(restarts=2, steps=3, draws=5, votes=7)
    costs = AttackCosts(settings, vote=11, scores=13)
    # A row that is differentiated counts for three; the start of an ascent is looked at too.
    ascent = 5 * 13 * (2 * 4 * 3 + 1)
    assert costs.ascent == ascent
    strike = ascent + 11 * (5 + 2 * 7 + CONFIRM_FACTOR * 7)
    assert costs.most_of_cell(cell()) == 3 * strike
    assert costs.most_of_cell(cell(predicted=-1)) == 2 * strike
    on_the_image_itself = 11 * (7 + CONFIRM_FACTOR * 7)
    assert (
        costs.most_of_cell(cell(predicted=-1, certified_radius=0.0, radii=[0.0, 0.4])) == strike + on_the_image_itself
    )
    assert AttackCosts(AttackSettings(2, 3, 5, 7, source="there"), vote=11, scores=13).ascent == 2 * 4 * 3


def test_results_from_before_there_were_several_attacks_are_found_again() -> None:
    """The folder of the plain ascent has the name that it always had; others have others."""
    settings = AttackSettings(restarts=4, steps=10, draws=4, votes=64)
    assert settings.folder("f") == "6c29cb76ebbc"
    names = {
        AttackSettings(4, 10, 4, 64, **more).folder("f")
        for more in (
            {},
            {"method": "apgd"},
            {"source": "a", "source_digest": "1"},
            {"source": "a", "source_digest": "2"},
        )
    }
    assert len(names) == 4
    moved = [AttackSettings(4, 10, 4, 64, source=where, source_digest="1").folder("f") for where in ("a", "b")]
    assert moved[0] == moved[1], "the same classifier elsewhere"
