"""Which votes one run may take over from another, on evidence that a test chooses."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.certificates.reduce import certify_images
from pipeline.certificates.reuse import drawn_once, ends_of, reuse_votes, vote_key
from pipeline.declaration.declaration import Declaration, declare
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import WorkUnit, plan_units
from pipeline.locations import location
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore, StoreError
from tests.support.finished_runs import CLASSES, example
from tests.support.small_runs import listing_of

EXAMPLES = [example(0), example(1)]
LISTING = listing_of(EXAMPLES)
RACE = "classifier.race={gap=1.7}"
ONE_PATH = [
    "classifier.name=epndc",
    "classifier.one_path=true",
    "classifier.grid={levels=[0.3, 0.4, 0.6, 0.8, 1.1]}",
    "sigma_pixel=[0.0625, 0.125]",
]
LIPSCHITZ = ["classifier.name=dc", "sigma_pixel=[0.0]", "noise=none", "certificate.radii=[0.0]"]
Votes = Callable[[WorkUnit], dict[int, int] | None]


def for_class(class_id: int) -> Votes:
    return lambda unit: {class_id: unit.draws}


def law_for(*assignments: str, model: str = "m") -> dict:
    small = ["sigma_pixel=[0.25]", "votes.selection=10", "votes.estimation=40", "votes.per_unit=20"]
    rest = ["certificate.method=cohen", "certificate.radii=[0.0]", "compute.rows_per_pass=32"]
    classifier = "classifier={name='epndc', weight='edm', grid={points=4, sigma_model_max=2.0}}"
    config = load_config("fast", [classifier, *small, *rest, *assignments])
    return declare(config, LISTING, models={"model_sha256": model, "unconditional": "null_label"})


def declared(folder: Path, law: Declaration, votes: Votes | None = None) -> RunStore:
    """A run with the votes that a function gives for each unit; without a function it has none."""
    store, fingerprint = RunStore(location(folder)), law.fingerprint
    manifest = {"law": law.to_json(), "fingerprint": fingerprint, "plan": {"classes": CLASSES}}
    store.declare(manifest, config_toml="", records=LISTING.records, examples=iter(EXAMPLES))
    for unit in plan_units(law, LISTING.records) if votes else ():
        if counts := votes(unit):
            store.publish(Evidence(unit, counts, 3 * unit.draws, 2.0, 7.0, "cpu"), fingerprint=fingerprint)
    return store


def evidence_of(store: RunStore):
    return store.all_evidence(fingerprint=store.manifest()["fingerprint"])


def borrowed(store: RunStore, donor: RunStore) -> tuple[int, int]:
    law = store.declaration()
    return reuse_votes(store, law, evidence_of(store), LISTING.records, num_classes=CLASSES, donor=donor.folder)


@pytest.mark.parametrize(
    "assignments",
    [
        ["votes.selection=3"],
        ["votes.estimation=1000"],
        ["votes.per_unit=7", "votes.ends=[5]"],
        ["certificate.alpha=0.1"],
        ["certificate.method=sequential"],
        ["sigma_pixel=[0.25, 0.5]", "certificate.maximum_over_sigmas=true"],
    ],
)
def test_settings_that_change_no_single_vote_keep_it_shared(assignments: list[str]) -> None:
    assert vote_key(law_for(*assignments)) == vote_key(law_for())


@pytest.mark.parametrize(
    "assignments",
    [
        ["seed=1"],
        ["noise=float"],
        ["classifier.weight=elbo"],
        ["classifier.grid.points=5"],
        [RACE],
        ["compute.rows_per_pass=31"],
        ["compute.threads_per_actor=2"],
    ],
)
def test_settings_that_change_a_vote_keep_runs_apart(assignments: list[str]) -> None:
    assert vote_key(law_for(*assignments)) != vote_key(law_for())


def test_other_models_data_and_versions_keep_runs_apart() -> None:
    law = law_for()
    changed = [
        law_for(model="other"),
        Declaration({**law.recorded, "vote_version": 0}),
        Declaration({**law.recorded, "dataset": {**law.recorded["dataset"], "sha256": "0"}}),
    ]
    assert len({vote_key(declaration) for declaration in [law, *changed]}) == 4


def test_on_one_path_and_for_scores_runs_share_less() -> None:
    assert vote_key(law_for(*ONE_PATH)) != vote_key(law_for(*ONE_PATH, "sigma_pixel=[0.0625]"))
    lipschitz = law_for(*LIPSCHITZ, "certificate.method=lipschitz", "votes.estimation=4000")
    assert vote_key(lipschitz) != vote_key(Declaration({**lipschitz.recorded, "certificate": {"method": "cohen"}}))


def test_units_end_where_any_of_the_runs_stops_and_only_if_they_differ() -> None:
    laws = [law_for(), law_for("votes.selection=3"), law_for("votes.estimation=1000")]
    assert ends_of(laws) == (3, 10, 40, 1000)
    assert ends_of([law_for(), law_for("certificate.alpha=0.1"), law_for("sigma_pixel=[0.5]")]) == ()
    sequential = law_for("certificate.method=sequential", "votes.estimation=1000")
    assert set(sequential.procedure(0.25).looks) < set(ends_of([law_for(), sequential]))


def test_a_run_takes_over_what_it_lacks_at_the_cost_that_it_had(tmp_path: Path) -> None:
    ends = "votes.ends=[4, 20]"
    donor = declared(tmp_path / "donor", law_for(ends, "sigma_pixel=[0.25, 0.5]"), for_class(1))
    law = law_for(ends, "votes.selection=4", "votes.estimation=20", "certificate.alpha=0.1")
    store = declared(tmp_path / "borrower", law)
    assert borrowed(store, donor) == (48, 144)
    evidence = evidence_of(store)
    assert {item.unit for item in evidence} == set(plan_units(law, LISTING.records))
    assert {(item.evaluations / item.unit.draws, item.seconds, item.finished_unix) for item in evidence} == {
        (3, 2.0, 7.0)
    }
    assert borrowed(store, donor) == (0, 0)
    pairs = [(run.declaration(), evidence_of(run)) for run in (donor, store)]
    assert drawn_once(pairs) == (200, 600)


def test_what_a_run_has_drawn_itself_stays(tmp_path: Path) -> None:
    donor = declared(tmp_path / "donor", law_for("certificate.alpha=0.1"), for_class(1))
    law = law_for()
    store = declared(tmp_path / "borrower", law)
    own = next(iter(plan_units(law, LISTING.records)))
    store.publish(Evidence(own, {2: own.draws}, 9, 9.0, 9.0, "cpu"), fingerprint=law.fingerprint)
    assert borrowed(store, donor) == (100 - own.draws, 300 - 3 * own.draws)
    assert next(item for item in evidence_of(store) if item.unit == own).votes == {2: own.draws}


@pytest.mark.parametrize("other", ["seed=1", "sigma_pixel=[0.5]"])
def test_nothing_is_taken_from_a_run_of_other_votes(tmp_path: Path, other: str) -> None:
    donor = declared(tmp_path / "donor", law_for(other), for_class(1))
    assert borrowed(declared(tmp_path / "borrower", law_for()), donor) == (0, 0)


def test_a_unit_of_the_same_beginning_and_another_end_is_not_cut(tmp_path: Path) -> None:
    donor = declared(tmp_path / "donor", law_for("votes.per_unit=40"), for_class(1))
    store = declared(tmp_path / "borrower", law_for())
    assert borrowed(store, donor) == (20, 60)
    assert {item.unit.phase for item in evidence_of(store)} == {"selection"}


def selects(few: int, all_of_them: int) -> Votes:
    """The first 4 selection votes are for one class; all others, estimation included, are for another."""
    return lambda unit: {few if unit.phase == "selection" and unit.draw_stop <= 4 else all_of_them: unit.draws}


def test_votes_about_a_class_are_taken_only_by_a_run_that_selected_it(tmp_path: Path) -> None:
    ends = "votes.ends=[4]"
    for name, votes, taken in (("same", for_class(1), 88), ("other", selects(2, 1), 8)):
        donor = declared(tmp_path / f"{name}-donor", law_for(RACE, ends), votes)
        store = declared(tmp_path / name, law_for(RACE, ends, "votes.selection=4"))
        assert borrowed(store, donor)[0] == taken
    plain = declared(tmp_path / "plain-donor", law_for(ends), selects(2, 1))
    assert borrowed(declared(tmp_path / "plain", law_for(ends, "votes.selection=4")), plain)[0] == 88


def test_a_run_that_must_still_select_takes_no_votes_about_a_class(tmp_path: Path) -> None:
    donor = declared(tmp_path / "donor", law_for(RACE, "votes.ends=[10]"), for_class(1))
    store = declared(tmp_path / "borrower", law_for(RACE, "votes.ends=[10]", "votes.selection=12"))
    assert borrowed(store, donor)[0] == 20


def test_votes_about_an_unknown_class_are_not_lent(tmp_path: Path) -> None:
    donor = declared(tmp_path / "donor", law_for(RACE), lambda unit: {1: 20} if unit.phase == "estimation" else None)
    assert borrowed(declared(tmp_path / "borrower", law_for(RACE, "certificate.alpha=0.1")), donor) == (0, 0)


def test_on_one_path_a_different_selected_class_at_one_level_keeps_all_levels_apart(tmp_path: Path) -> None:
    law = law_for(*ONE_PATH, RACE, "votes.ends=[4]")
    at_one = lambda unit: (selects(2, 1) if unit.sigma_pixel == 0.125 else for_class(1))(unit)  # noqa: E731
    donor = declared(tmp_path / "donor", law, at_one)
    store = declared(tmp_path / "borrower", law_for(*ONE_PATH, RACE, "votes.ends=[4]", "votes.selection=4"))
    assert borrowed(store, donor)[0] == 2 * 2 * 4


def test_a_run_that_stops_early_takes_no_vote_beyond_its_stop(tmp_path: Path) -> None:
    many = "votes.estimation=2000"
    law = law_for(many, "certificate.method=sequential")
    ends = f"votes.ends={list(ends_of([law, law_for(many)]))}"
    donor = declared(tmp_path / "donor", law_for(many, ends, "votes.per_unit=2000"), for_class(1))
    law = law_for(many, ends, "certificate.method=sequential", "votes.per_unit=2000")
    store = declared(tmp_path / "borrower", law)
    votes, _ = borrowed(store, donor)
    assert 2 * 10 < votes < 2 * 2010
    certified = certify_images(
        evidence_of(store), store.images(), declaration=law, num_classes=CLASSES, alpha=None, resume_with="nothing"
    )
    assert [item.certificate.predicted for item in certified] == [1, 1]
    assert votes == sum(10 + item.certificate.votes for item in certified)


def test_damaged_votes_are_not_lent(tmp_path: Path) -> None:
    donor = declared(tmp_path / "donor", law_for(), for_class(1))
    donor.compact(fingerprint=donor.manifest()["fingerprint"], at_least=1)
    shard = donor.shard_files()[0]
    table = pq.read_table(str(shard))
    column = table.schema.get_field_index("evaluations")
    one_more = [value + 1 for value in table["evaluations"].to_pylist()]
    pq.write_table(table.set_column(column, table.schema.field(column), [one_more]), str(shard))
    with pytest.raises(StoreError, match="was changed after it was written; `ndc verify"):
        borrowed(declared(tmp_path / "borrower", law_for("certificate.alpha=0.1")), donor)
