"""What a run may grow by, and what stays refused, with its reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.declaration.declaration import Declaration, DeclarationChangedError, declare
from pipeline.declaration.growth import growth_of
from tests.support.small_runs import digits, listing_of, small_config

EXAMPLES = digits("test", limit=6)
LEVELS = "sigma_pixel=[0.25, 0.5]"
MORE_LEVELS = "sigma_pixel=[0.125, 0.25, 0.5]"
PATH = ["classifier={name='epndc', weight='edm', grid={levels=[0.6, 1.1, 1.3]}, one_path=true}"]
MAXIMUM = ["certificate.maximum_over_sigmas=true"]


def stage(*assignments: str, examples=EXAMPLES[:4], model: str = "m"):
    listing = listing_of(list(examples))
    config = small_config(Path("models/x"), *assignments)
    models = {"model_sha256": model, "unconditional": "null_label"}
    return declare(config, listing, models=models), listing.records


def grown(before, after):
    (declared, records), (wanted, more) = before, after
    return growth_of(declared, wanted, before=records, after=more, folder="runs/a")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (stage(examples=EXAMPLES), "grows from 4 to 6 images"),
        (stage(examples=[EXAMPLES[i] for i in (4, 0, 1, 5, 2, 3)]), "grows from 4 to 6 images"),
        (stage("sigma_pixel=[0.125, 0.25]"), "grows from 1 to 2 noise levels"),
        (stage(LEVELS, examples=EXAMPLES), "grows from 4 to 6 images and from 1 to 2 noise levels"),
    ],
)
def test_more_images_and_more_levels_are_growth(after, said: str) -> None:
    assert str(grown(stage(), after)) == f"{said}; what is drawn is kept"


def test_the_same_again_is_no_growth() -> None:
    assert grown(stage(), stage()) is None


CHANGED = replace(EXAMPLES[1], image=EXAMPLES[1].image ^ 1)
RELABELLED = replace(EXAMPLES[1], label=9 - EXAMPLES[1].label)


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (stage(examples=EXAMPLES[:3]), r"1 of them, such as digits-\d+, are not among the 3 chosen now"),
        (stage(examples=EXAMPLES[1:]), r"1 of them, such as digits-\d+, are not among the 5 chosen now"),
        (stage(examples=EXAMPLES[3::-1]), r"dataset.sha256: "),
        (stage("sigma_pixel=[0.5]"), r"gives no level up: .* \(--sigma-pixel 0.25\)"),
        (stage(examples=[EXAMPLES[0], CHANGED, *EXAMPLES[2:]]), r"the data changed .* image digits-\d+, its pixels"),
        (stage(examples=[EXAMPLES[0], RELABELLED, *EXAMPLES[2:]]), r"image digits-\d+, its label"),
        (stage(examples=EXAMPLES, model="n"), r"model_sha256: m -> n"),
        (stage("classifier.grid.points=5", examples=EXAMPLES), r"classifier.grid.points: 4 -> 5"),
        (stage("votes.estimation=60", examples=EXAMPLES), r"would spend alpha a second time"),
        (stage("seed=1", examples=EXAMPLES), r"seed: 0 -> 1"),
        (stage("dataset.resize=8", "dataset.filter=box", examples=EXAMPLES), r"dataset.resize: None -> 8"),
    ],
)
def test_what_is_no_growth_is_refused_with_its_reason(after, why: str) -> None:
    with pytest.raises(DeclarationChangedError, match=why):
        grown(stage(), after)


@pytest.mark.parametrize(
    ("settings", "why"),
    [(MAXIMUM, r"shares alpha among its 2 noise levels .*rule S5"), (PATH, r"one path of noise .* other votes")],
)
def test_levels_that_share_something_take_no_other_and_yet_more_images(settings: list[str], why: str) -> None:
    before = stage(LEVELS, *settings)
    with pytest.raises(DeclarationChangedError, match=why):
        grown(before, stage(MORE_LEVELS, *settings))
    assert grown(before, stage(LEVELS, *settings, examples=EXAMPLES))


def test_votes_of_another_version_do_not_grow() -> None:
    declared, records = stage()
    old = Declaration({**declared.recorded, "vote_version": 2}), records
    with pytest.raises(DeclarationChangedError, match="another version of ndc"):
        grown(old, stage(examples=EXAMPLES))
