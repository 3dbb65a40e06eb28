"""What a run will cost: arithmetic from a rate, and the expected cost of procedures that stop early."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ndc_core.certificates.certificate import Terms
from ndc_core.certificates.sequential import Sequential
from ndc_core.checkpoints.denoisers import CheckpointError
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import UNIT_SECONDS, draws_a_unit
from pipeline.driver import plan as plan_module
from pipeline.driver import prepare as prepare_module
from pipeline.driver.declare import declare_or_grow
from pipeline.driver.plan import Amount, _amounts, plan_lines, plan_of, plan_run
from pipeline.driver.prepare import CostSample, prepare
from pipeline.locations import LocationError, location
from pipeline.report.mlflow_address import TrackingError
from pipeline.store.evidence import EvidenceTable
from pipeline.workers import measurement as measure_module
from pipeline.workers.measurement import MeasuredCost, MeasurementRequest, SampledCell, measure
from tests.support.small_runs import digits, fast_config, small_config

METHOD = Sequential(Terms(sigma_pixel=0.25, alpha=0.001, votes=2000, radii=(0.0, 0.3)))
IMAGES, SELECTION = 100, 50


def votes_until_stop(p: float, rng: np.random.Generator) -> int:
    cell = SampledCell(0.25, 10**9, round(10**9 * p), {"selection": 1, "estimation": 1}, None, 10, 3)
    return plan_module._votes_needed(METHOD, cell, rng)


def sampled(p: float, draws: int, rng: np.random.Generator) -> SampledCell:
    evaluations = {"selection": 20 * draws, "estimation": 10 * draws}
    return SampledCell(0.25, draws, int(rng.binomial(draws, p)), evaluations, None, 10, 3)


def test_the_range_of_a_sequential_run_holds_its_true_expected_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    probabilities = [0.6, 0.9, 0.95, 0.99, 0.999, 1.0]
    truth = SELECTION + np.mean([votes_until_stop(p, rng) for p in probabilities for _ in range(40)])
    votes = SimpleNamespace(selection=SELECTION)
    run = SimpleNamespace(
        declaration=SimpleNamespace(procedure=lambda sigma_pixel: METHOD),
        config=SimpleNamespace(votes=votes),
        records=range(IMAGES),
        votes=IMAGES * (SELECTION + 2000),
        most_evaluations_per_vote=30,
    )
    held = 0
    for _ in range(20):
        cells = [sampled(rng.choice(probabilities), 60, rng) for _ in range(8)]
        vote_amount, evaluations = _amounts(run, cells)
        assert vote_amount.low <= vote_amount.expected <= vote_amount.high <= vote_amount.most
        held += vote_amount.low <= IMAGES * truth <= vote_amount.high
        spent = IMAGES * SELECTION
        assert evaluations.expected == pytest.approx(20 * spent + 10 * (vote_amount.expected - spent))
    assert held >= 14, "of 20 ranges that hold nine times in ten of eight images"


def stated(config, folder: Path, rate: float):
    return prepare(config, location(folder), plan=CostSample(rate))


def test_a_stated_rate_gives_hours_price_and_time_by_arithmetic(tiny_model: Path, tmp_path: Path) -> None:
    run = stated(small_config(tiny_model, "compute.gpus_per_actor=0.5"), tmp_path, 10.0)
    plan = plan_of(run, EvidenceTable([]), gpus=4, gpus_per_actor=0.5, price_per_hour=2.0)
    assert plan.evaluations == Amount.exactly(200 * 15)
    assert plan.hours.expected == pytest.approx(0.5 * 3000 / 10 / 3600)
    assert plan.wall_hours.expected == pytest.approx(plan.hours.expected / 4)
    assert plan.price is not None
    assert plan.price.expected == pytest.approx(2.0 * plan.hours.expected)
    assert plan.storage_bytes > 4 * 64 + 12 * 1000
    assert "GPU hours" in "\n".join(plan_lines(plan))
    assert plan.device == ""
    assert not [line for line in run.remarks if "rows per forward pass" in line], "nothing was measured"


def test_measuring_finds_rows_rate_and_votes_without_ray(tiny_model: Path) -> None:
    config = fast_config(tiny_model)
    images = tuple((example.image_id, example.image) for example in digits("test", limit=2))
    cost = measure(MeasurementRequest(config, images, 60))
    assert (cost.device, cost.rows_per_pass) == ("cpu", 32)
    assert cost.evaluations_per_second > 10
    assert len(cost.cells) == 4
    assert all(0 <= cell.candidate_votes <= cell.draws for cell in cost.cells)
    expensive = measure(MeasurementRequest(config, images, 10**9))
    assert expensive.cells == (), "votes that would take long are not tried"
    passes = measure(MeasurementRequest(config, (), 60))
    assert passes.cells == ()


@pytest.mark.parametrize("per_second", [0.1, 1.0, 5.0, 25.0])
def test_a_unit_takes_two_to_five_minutes_where_votes_allow_it(per_second: float) -> None:
    draws = draws_a_unit(per_second, phase=10_000, run=10**7, of_a_pass=1)
    assert 120 <= draws / per_second <= 300


@pytest.mark.parametrize(
    ("votes", "draws"),
    [
        ({"phase": 10_000, "run": 10**7, "of_a_pass": 30}, 5_000),  # half of the phase
        ({"phase": 10_000, "run": 40_000, "of_a_pass": 30}, 400),  # a hundredth of the run
        ({"phase": 10_000, "run": 1_000, "of_a_pass": 30}, 30),  # a full pass
        ({"phase": 20, "run": 1_000, "of_a_pass": 30}, 20),  # all votes of the phase
    ],
)
def test_units_of_a_short_run_are_smaller_but_fill_a_pass(votes: dict[str, int], draws: int) -> None:
    assert draws_a_unit(1e6, **votes) == draws


@pytest.mark.parametrize("preset", ["fast", "paper", "paper-cifar10", "paper-imagenet64"])
def test_presets_for_models_of_any_size_leave_the_size_of_a_unit_open(preset: str) -> None:
    assert load_config(preset).votes.per_unit is None


def test_units_are_sized_by_the_rate_and_stay_so_on_resume(tiny_model: Path, tmp_path: Path) -> None:
    config = small_config(tiny_model, "votes.estimation=4000")
    open_ended = config.model_copy(update={"votes": config.votes.model_copy(update={"per_unit": None})})
    first = stated(open_ended, tmp_path, 7.5)  # 15 evaluations a vote: a vote in two seconds
    assert first.declaration.votes_per_unit == UNIT_SECONDS / 2
    assert stated(open_ended, tmp_path, 1.5).declaration.votes_per_unit == UNIT_SECONDS / 10
    assert stated(open_ended, tmp_path, 1500.0).declaration.votes_per_unit == 4 * 4010 // 100
    declare_or_grow(first)
    assert prepare(open_ended, location(tmp_path)).declaration == first.declaration


def test_a_plan_measures_votes_that_are_not_the_runs(tiny_model: Path) -> None:
    """Choosing settings by the run's own draws would spend its alpha."""
    config = small_config(tiny_model, "dataset.limit=1")
    images = tuple((example.image_id, example.image) for example in digits("test", limit=1))
    seeds = []

    class Noted(measure_module.VoteRequest):
        def __post_init__(self) -> None:
            seeds.append((self.seed, self.phase))
            super().__post_init__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_module, "VoteRequest", Noted)
        cost = measure(MeasurementRequest(config, images, 15))
    assert isinstance(cost, MeasuredCost)
    assert {phase for _, phase in seeds} == {"selection", "estimation"}
    assert config.seed not in {seed for seed, _ in seeds}


def test_what_no_vote_can_change_is_known_without_a_sample(tiny_model: Path, tmp_path: Path) -> None:
    full = small_config(tiny_model)
    full = full.model_copy(update={"classifier": full.classifier.model_copy(update={"sift": None})})
    sifted = small_config(tiny_model)
    raced = fast_config(tiny_model)
    known = {}
    for name, config in (("full", full), ("sifted", sifted), ("raced", raced)):
        run = stated(config, tmp_path / name, 10.0)
        plan = plan_of(run, EvidenceTable([]), gpus=1, gpus_per_actor=0.0, price_per_hour=None)
        known[name] = (plan.votes_known, plan.evaluations_known)
        assert ("evaluations  at most" in "\n".join(plan_lines(plan))) != plan.evaluations_known
    assert known == {"full": (True, True), "sifted": (True, False), "raced": (False, False)}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[MeasurementRequest]:
    """The requests for measurements, of which none is carried out."""
    measured: list[MeasurementRequest] = []

    def run_once(function, request: MeasurementRequest, **where) -> MeasuredCost:
        measured.append(request)
        return MeasuredCost("cpu", 32, 1000.0, ())

    monkeypatch.setattr(prepare_module, "run_once", run_once)
    return measured


def test_a_run_whose_sizes_are_set_measures_nothing_and_the_driver_needs_no_gpu(
    tiny_model: Path, tmp_path: Path, requests: list[MeasurementRequest]
) -> None:
    run = prepare(small_config(tiny_model, "compute.gpus_per_actor=1"), location(tmp_path))
    assert (run.measured, requests) == (None, [])


@pytest.mark.parametrize(
    ("images", "places"), [(3, [0, 1, 2]), (15, [0, 1, 3, 5, 7, 9, 11, 13]), (80, range(0, 80, 10))]
)
def test_votes_are_tried_on_images_from_all_over_the_data(
    tiny_model: Path, tmp_path: Path, requests: list[MeasurementRequest], images: int, places: list[int]
) -> None:
    prepare(small_config(tiny_model, f"dataset.limit={images}"), location(tmp_path), plan=CostSample())
    ids = [example.image_id for example in digits("test", limit=images)]
    assert [image_id for image_id, _ in requests[0].images] == [ids[place] for place in places]


def plan_lines_said(model: Path, folder: Path) -> list[str]:
    said: list[str] = []
    plan_run(small_config(model), location(folder), say=said.append, gpus=1, evaluations_per_second=10.0)
    return said


def test_a_plan_checks_folder_tracking_model_and_data_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = plan_lines_said(tiny_model, tmp_path / "runs/a")
    assert said == [
        f"run: {tmp_path / 'runs/a'}, which can be written",
        f"tracking: sqlite:///{tmp_path / 'mlflow.db'}",
        f"model: {tiny_model}, 10 classes",
        "data: digits: 1 x 8 x 8 pixels",
        "classes, in the data's order (dataset.classes sets another): 0 to 9, called by their numbers",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tracking", "folder", "model", "error", "message"),
    [
        ("http://127.0.0.1:1", "runs/a", None, TrackingError, "127.0.0.1:1 does not answer .* unset MLFLOW_TRACKING"),
        ("", "file/runs/a", None, LocationError, "file.* cannot be used"),
        ("", "runs/a", "models/none", CheckpointError, "models/none"),
    ],
)
def test_what_would_end_a_run_at_its_start_ends_its_plan_before_anything_is_measured(
    tracking: str,
    folder: str,
    model: str | None,
    error: type[Exception],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requests: list[MeasurementRequest],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    (tmp_path / "file").write_text("")
    config = small_config(Path(model or tiny_model))
    with pytest.raises(error, match=message):
        plan_run(config, location(tmp_path / folder), say=lambda line: None)
    assert requests == []


def test_amounts_scale() -> None:
    assert Amount(1, 0, 2, 4).times(3) == Amount(3, 0, 6, 12)
