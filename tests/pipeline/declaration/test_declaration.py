import json
from pathlib import Path

import pytest

from pipeline.declaration.declaration import (
    VOTE_VERSION,
    Declaration,
    DeclarationChangedError,
    declare,
    refuse_changes,
)
from pipeline.declaration.toml_files import load_config
from pipeline.store.run_store import RunStore
from tests.support.small_runs import digits, listing_of, small_config

EXAMPLES = digits("test", limit=4)


def law(*assignments: str, examples=EXAMPLES, model: str = "m", unconditional: str = "null_label"):
    models = {"model_sha256": model, "unconditional": unconditional}
    return declare(small_config(Path("models/x"), *assignments), listing_of(examples), models=models)


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
    assert changed.fingerprint != law().fingerprint
    with pytest.raises(DeclarationChangedError, match=message):
        refuse_changes(law(), changed, folder="runs/a")


def test_a_run_of_another_version_is_named_as_that() -> None:
    expected = rf"another version of ndc \(votes of version 2, this program's are {VOTE_VERSION}\)"
    with pytest.raises(DeclarationChangedError, match=expected):
        refuse_changes(Declaration({**law().recorded, "vote_version": 2}), law(), folder="runs/a")


def sequential_law(*assignments: str) -> dict:
    return law("certificate.method=sequential", *assignments)


def test_radii_are_part_of_a_sequential_runs_law_only() -> None:
    assert law("certificate.radii=[0.05]") == law()
    with pytest.raises(DeclarationChangedError, match=r"certificate\.radii: \[0\.0, 0\.1\] -> \[0\.05\]"):
        refuse_changes(sequential_law(), sequential_law("certificate.radii=[0.05]"), folder="runs/a")


def test_more_votes_after_a_look_are_refused_for_what_they_are() -> None:
    with pytest.raises(
        DeclarationChangedError, match="and another seed: votes that have been looked at would spend alpha"
    ):
        refuse_changes(law(), law("votes.estimation=60"), folder="runs/a")
    with pytest.raises(DeclarationChangedError) as caught:
        refuse_changes(law(), law("seed=1"), folder="runs/a")
    assert "alpha" not in str(caught.value)


def test_where_it_is_computed_and_reported_may_change() -> None:
    moved = ["model=s3://elsewhere/m", "dataset.name=s3://elsewhere/data", "dataset.format=parquet"]
    assert law("compute.actors=7", "experiment=other", "certificate.radii=[0.05]", *moved) == law()


# What the program declared before `Declaration` was a type.
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "declarations.json").read_text())


@pytest.mark.parametrize("preset", GOLDEN)
def test_what_is_written_keeps_its_bytes_and_its_fingerprint(preset: str) -> None:
    recorded = GOLDEN[preset]["law"]
    declaration = Declaration.from_json(recorded)
    assert declaration.fingerprint == GOLDEN[preset]["fingerprint"]
    config = load_config(preset, ["compute.rows_per_pass=32", "votes.per_unit=50"])
    models = {"model_sha256": "0" * 64, "unconditional": "null_label"}
    today = declare(config, listing_of(EXAMPLES), models=models)
    assert json.dumps(today.to_json()) == json.dumps({**recorded, "vote_version": VOTE_VERSION})


@pytest.mark.parametrize("preset", GOLDEN)
def test_a_declaration_and_its_configuration_have_the_same_procedure(preset: str) -> None:
    declaration, config = Declaration.from_json(GOLDEN[preset]["law"]), load_config(preset)
    for sigma_pixel in config.sigma_pixel:
        wanted = config.procedure_spec.procedure(sigma_pixel, dimension=64)
        assert declaration.procedure(sigma_pixel).looks == wanted.looks
        assert declaration.procedure(sigma_pixel).largest_radius == wanted.largest_radius


def test_a_run_folder_of_before_goes_on(tmp_path: Path) -> None:
    store, recorded = RunStore(tmp_path), GOLDEN["demo"]["law"]
    manifest = {"fingerprint": GOLDEN["demo"]["fingerprint"], "law": recorded, "plan": {}}
    (tmp_path / "run.json").write_text(json.dumps(manifest, indent=2))
    assert store.declaration().fingerprint == manifest["fingerprint"]
    refuse_changes(store.declaration(), Declaration.from_json(recorded), folder="runs/a")
    assert store.declaration().votes_per_unit == 50
    assert store.declaration().radii is None
