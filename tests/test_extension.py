"""A certificate, a classifier and a data format are one file and one line of a registry each (CONTRIBUTING.md)."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from ndc_core import CERTIFICATES, CLASSIFIERS, DiffusionClassifier, GridSpec, Tally, count_votes
from pipeline.data.datasets import DatasetSpec, examples_of, source_of
from pipeline.data.formats import FORMATS
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration, declare
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import plan_units
from tests.support.fakes import two_gaussians
from tests.support.small_runs import digits, listing_of
from tests.support.toys.certificate import Hoeffding
from tests.support.toys.classifier import RAW
from tests.support.toys.data_format import greys


def test_a_certificate_is_a_file_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CERTIFICATES, "hoeffding", Hoeffding)

    def declared(method: str) -> Declaration:
        config = load_config(
            "demo",
            [
                f"certificate.method={method}",
                "votes.per_unit=50",
                "compute.rows_per_pass=32",
                "certificate.radii=[0.25]",
            ],
        )
        return declare(config, listing_of(digits("test", limit=1)), models={})

    ours, cohen = declared("hoeffding").procedure(0.25), declared("cohen").procedure(0.25)
    tally = Tally([0, 10], [[100, 3900]])
    assert isinstance(ours, Hoeffding)
    assert 0 < ours.certificate(tally).radius < cohen.certificate(tally).radius
    records = listing_of(digits("test", limit=1)).records
    assert list(plan_units(declared("hoeffding"), records)) == list(plan_units(declared("cohen"), records))


def test_a_classifier_is_a_file_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSIFIERS, "raw", RAW)
    classifier = DiffusionClassifier(two_gaussians(), "raw", GridSpec(4, 2.0, "log"), rows_per_pass=64)
    for label, grey in ((0, 80), (1, 175)):
        image = np.full(classifier.image_shape, grey, np.uint8)
        counted = count_votes(
            classifier,
            image,
            sigma_pixel=0.125,
            noise="integer",
            seed=0,
            image_id="x",
            phase="selection",
            draws=range(40),
        )
        assert counted.votes[label] > 35
    config = load_config("demo", ["classifier.name=raw", "votes.per_unit=50", "compute.rows_per_pass=32"])
    assert config.diffusion is not None
    assert RunConfig.model_validate(tomllib.loads(config.to_toml())) == config


def test_a_data_format_is_a_file_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FORMATS, "greys", greys)
    (tmp_path / "greys.txt").write_text("0 10\n1 200\n")
    data = DatasetSpec(str(tmp_path / "greys.txt"), format="greys", split="test")
    examples = list(examples_of(data, source_of(data), channels=1, corrupt=[]))
    assert [(example.image_id, example.label, int(example.image.mean())) for example in examples] == [
        ("0", 0, 10),
        ("1", 1, 200),
    ]
