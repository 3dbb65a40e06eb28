"""The search for the number of rows of a pass."""

import time
from pathlib import Path

import pytest
import torch

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.models import rows_per_pass as rows_module
from ndc_core.models.rows_per_pass import Rate, choose, measured
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from tests.support.in_process import replace_ray
from tests.support.small_runs import digits, small_config


def rates(*values: float):
    for index, value in enumerate(values):
        yield Rate(16 * 2**index, value)


def test_the_smallest_of_those_nearly_as_fast_as_the_best_is_chosen() -> None:
    assert choose(rates(100, 190, 300, 310, 305, 300, 999)).rows == 64, "within 5 % of 310; 999 is never tried"
    assert choose(rates(100)).rows == 16
    assert choose(rates(100, 200, 400, 800)).rows == 128


def test_rates_are_rows_over_seconds_and_end_where_a_pass_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def one_pass(rows: int) -> None:
        clock[0] += rows / 100

    measured_rates = list(measured(one_pass))
    assert [rate.rows for rate in measured_rates] == [16, 32, 64, 128, 256]
    assert all(rate.rows_per_second == pytest.approx(100) for rate in measured_rates)


def test_the_rate_of_long_passes_is_that_of_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def seconds(one_pass, rows: int, *, before) -> float:
        tried.append(rows)
        return rows / speed

    monkeypatch.setattr(rows_module, "_seconds", seconds)
    speed = 10.0
    assert rows_module.rate_of(None, 512, device="cpu") == Rate(512, 10.0)
    assert tried == [16], "51 seconds are not waited for"
    speed = 1000.0
    assert rows_module.rate_of(None, 512, device="cpu") == Rate(512, 1000.0)
    assert tried == [16, 16, 512]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_a_size_for_which_there_is_no_memory_ends_the_search_and_leaves_room_below(error: Exception) -> None:
    def pass_up_to(most: int):
        def one_pass(rows: int) -> None:
            time.sleep(0.002)  # so that more rows always pay
            if rows > most:
                raise error

        return one_pass

    assert choose(measured(pass_up_to(128))).rows == 64, "128 fit, and nothing beside them"
    assert choose(measured(pass_up_to(16))).rows == 16
    assert choose(measured(pass_up_to(1024), before=pass_up_to(64))).rows == 32
    with pytest.raises(ValueError, match=r"no memory for passes of 16 rows; set compute.rows_per_pass lower"):
        choose(measured(pass_up_to(8)))


def test_other_errors_of_a_pass_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        choose(measured(broken))


def test_rows_that_are_set_and_do_not_fit_are_an_error_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_pass(network, rows: int, *, device: str) -> None:
        if rows > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rows_module, "_one_pass", one_pass)
    with pytest.raises(ValueError, match=r"no memory for passes of 512 rows on this cuda; set compute.rows_per_pass"):
        rows_module.rate_of(None, 512, device="cuda")


def test_a_run_with_label_gradients_is_sized_by_passes_that_are_differentiated(tiny_model: Path) -> None:
    denoiser = load_denoiser(tiny_model)
    tried = set()

    def noted(z, sigma_model, label):
        tried.add((len(z), label.requires_grad))
        return denoiser(z, sigma_model, label)

    noted.image_shape, noted.num_classes = denoiser.image_shape, denoiser.num_classes  # type: ignore[attr-defined]
    rows_module.rate_of(noted, 8, device="cpu", label_gradient=True)
    assert tried == {(8, False), (8, True)}


def test_a_run_keeps_the_rows_that_it_was_declared_with(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_ray(monkeypatch)
    monkeypatch.setattr(rows_module, "SECONDS_A_SIZE", 0.01)
    unset = small_config(tiny_model).model_dump(mode="json", exclude_none=True)
    del unset["compute"]["rows_per_pass"]
    config = type(small_config(tiny_model)).model_validate(unset)
    first = prepare(config, location(tmp_path))
    rows, recorded = first.declaration.rows_per_pass, first.declaration.to_json()
    assert rows == first.config.compute.rows_per_pass >= 16
    store = RunStore(location(tmp_path))
    other = recorded | {"compute": recorded["compute"] | {"rows_per_pass": rows * 3}}
    examples = digits("test", limit=config.dataset.limit)
    store.declare(first.manifest() | {"law": other}, config_toml="", records=first.records, examples=examples)
    assert prepare(config, location(tmp_path)).config.compute.rows_per_pass == rows * 3
