"""CIFAR's batches, pickled and binary."""

import pickle
from pathlib import Path

import pytest
from upath import UPath

from pipeline.data.source import DataError
from tests.support.stored_images import (
    COUNT,
    LABELS,
    PIXELS,
    binary_batch,
    observed,
    put,
    python_2_pickle,
    python_batch,
)


def test_a_malicious_pickle_is_refused_and_does_not_run(here: UPath) -> None:
    marker = here / "it-ran"

    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (Path(marker.path),)

    for name in ("test_batch", "batches.meta"):
        folder = here / name
        put(folder / "test_batch", python_batch())
        put(folder / name, pickle.dumps({b"data": Malicious(), b"labels": []}))
        with pytest.raises(DataError, match=f"{name} is refused"):
            observed(folder, "cifar-python")
        assert not marker.exists()


def test_a_pickle_that_is_no_batch_is_refused(here: UPath) -> None:
    wrong = [
        {"labels": LABELS},
        {"data": PIXELS.reshape(COUNT, -1)},
        {"data": PIXELS.reshape(COUNT, -1)[:, :-1], "labels": LABELS},
        {"data": PIXELS.reshape(COUNT, -1), "labels": LABELS[1:]},
        {"data": LABELS, "labels": LABELS},
    ]
    for batch in wrong:
        put(here / "test_batch", python_2_pickle(batch))
        with pytest.raises(DataError, match="test_batch is no CIFAR batch"):
            observed(here, "cifar-python")


def test_a_binary_batch_that_ends_within_an_image_is_refused(here: UPath) -> None:
    put(here / "test_batch.bin", binary_batch()[:-1])
    with pytest.raises(DataError, match=r"test_batch.bin ends within image 11"):
        observed(here, "cifar-binary")
