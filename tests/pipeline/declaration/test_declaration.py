from pathlib import Path

import pytest

from pipeline.declaration.declaration import VOTE_VERSION, LawChangedError, fingerprint_of, law_of, refuse_changes
from tests.support.small_runs import digits, listing_of, small_config

EXAMPLES = digits("test", limit=4)


def law(*assignments: str, examples=EXAMPLES, model: str = "m", unconditional: str = "null_label"):
    models = {"model_sha256": model, "unconditional": unconditional}
    return law_of(small_config(Path("models/x"), *assignments), listing_of(examples), models=models)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (law("seed=1"), r"seed: 0 -> 1"),
        (law("classifier.grid.points=5"), r"classifier.grid.points: 4 -> 5"),
        (law("votes.estimation=60"), r"votes.estimation: 40 -> 60"),
        (law("certificate.alpha=0.01"), r"certificate.alpha: 0.001 -> 0.01"),
        (law("compute.rows_per_pass=16"), r"rows_per_pass: 32 -> 16"),
        (law("noise=float"), r"noise: integer -> float"),
        (law("certificate.method=sequential"), r"certificate.method: cohen -> sequential"),
        (law("compute.precision=bfloat16"), r"compute.precision: float32 -> bfloat16"),
        (law("dataset.resize=8", "dataset.filter=box"), r"dataset.filter: None -> box; dataset.resize: None -> 8"),
        (law(model="n"), r"model_sha256: m -> n"),
        (law(unconditional="label_mean"), r"unconditional: null_label -> label_mean"),
        (law(examples=EXAMPLES[:3]), r"dataset.images: 4 -> 3; dataset.sha256"),
    ],
)
def test_what_decides_a_vote_may_not_change(changed: dict, message: str) -> None:
    assert fingerprint_of(changed) != fingerprint_of(law())
    with pytest.raises(LawChangedError, match=message):
        refuse_changes(law(), changed, folder="runs/a")


def test_a_run_of_another_version_is_named_as_that() -> None:
    expected = rf"another version of ndc \(votes of version 2, this program's are {VOTE_VERSION}\)"
    with pytest.raises(LawChangedError, match=expected):
        refuse_changes({**law(), "vote_version": 2}, law(), folder="runs/a")


def sequential_law(*assignments: str) -> dict:
    return law("certificate.method=sequential", *assignments)


def test_radii_are_part_of_a_sequential_runs_law_only() -> None:
    assert law("certificate.radii=[0.05]") == law()
    with pytest.raises(LawChangedError, match=r"certificate\.radii: \[0\.0, 0\.1\] -> \[0\.05\]"):
        refuse_changes(sequential_law(), sequential_law("certificate.radii=[0.05]"), folder="runs/a")


def test_more_votes_after_a_look_are_refused_for_what_they_are() -> None:
    with pytest.raises(LawChangedError, match="and another seed: votes that have been looked at would spend alpha"):
        refuse_changes(law(), law("votes.estimation=60"), folder="runs/a")
    with pytest.raises(LawChangedError) as caught:
        refuse_changes(law(), law("seed=1"), folder="runs/a")
    assert "alpha" not in str(caught.value)


def test_where_it_is_computed_and_reported_may_change() -> None:
    moved = ["model=s3://elsewhere/m", "dataset.name=s3://elsewhere/data", "dataset.format=parquet"]
    assert law("compute.actors=7", "experiment=other", "certificate.radii=[0.05]", *moved) == law()
