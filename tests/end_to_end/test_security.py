"""Keys and tokens stay in the environment; names in data stay names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import Example
from pipeline.declaration.declaration import declare
from pipeline.declaration.toml_files import load_config
from pipeline.driver.prepare import prepare
from pipeline.locations import LocationError, location
from pipeline.report.mlflow_address import TrackingError, without_password
from pipeline.report.mlflow_tracker import connect
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_settings import cell_id
from pipeline.workers.ray_cluster import HANDED_ON, _environment
from pipeline.workers.vote_actor import VoteActor
from tests.pipeline.workers.test_vote_actor import batch_of, declared, receipts_of, settings_of
from tests.support.small_runs import listing_of, small_config

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-store-7f3a",
    "AWS_SESSION_TOKEN": "token-of-the-store-91bc",
    "MLFLOW_TRACKING_PASSWORD": "password-of-mlflow-55de",
    "MLFLOW_TRACKING_TOKEN": "token-of-mlflow-0c4f",
    "RAY_AUTH_TOKEN": "token-of-ray-" + "e1" * 20,
    "HF_TOKEN": "token-of-a-hub-2b2b",
}


@pytest.mark.parametrize(
    "where",
    ["s3://key:secret-7f3a@bucket/run", "https://x.org/data?X-Amz-Signature=secret-7f3a", "s3://secret-7f3a@b/r"],
)
def test_an_address_with_a_secret_is_refused_without_showing_it(tiny_model: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(LocationError, match=r"holds credentials, or a query; leave them out") as caught:
        location(where)
    assert "secret-7f3a" not in str(caught.value)
    for key in ("model", "dataset.name"):
        with pytest.raises(ValueError, match=r"credentials") as caught:
            prepare(small_config(tiny_model, f"{key}={where}"), location(tmp_path / "run"))
        assert "secret-7f3a" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_password_in_mlflows_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_password("http://me:secret@127.0.0.1:1/mlflow") == "http://127.0.0.1:1/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1/mlflow")
    with pytest.raises(TrackingError, match="does not answer") as caught:
        connect("ndc")
    assert "secret" not in str(caught.value)


def test_a_fingerprint_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint() -> str:
        listing = listing_of([Example("a", np.zeros((1, 8, 8), np.uint8), 0)])
        models = {"model_sha256": "m", "unconditional": "null_label"}
        return declare(load_config("demo", ["compute.rows_per_pass=32"]), listing, models=models).fingerprint

    before = fingerprint()
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    assert fingerprint() == before


def test_a_driver_hands_on_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name, secret in {**SECRETS, "AWS_ENDPOINT_URL": "http://store"}.items():
        monkeypatch.setenv(name, secret)
    handed = _environment()["runtime_env"]["env_vars"]
    assert handed["AWS_ENDPOINT_URL"] == "http://store"
    assert set(handed) <= set(HANDED_ON)
    assert not set(handed.values()) & set(SECRETS.values())


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../../evil", "..", "evil\nname", "<b>evil</b>"])
def test_a_name_in_the_data_leads_nowhere(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Ids are kept as what they are called, and no path is made of them."""
    inside = tmp_path / "here" / "run"
    run = declared(small_config(tiny_model, "dataset.limit=1"), inside)
    example = Example(name, run_image(run), run.records[0].label)
    store = RunStore(inside)
    record = example.record(0)
    store.pictures.write([example], expected=[record])
    renamed = [type(unit)(name, *[getattr(unit, key) for key in unit.__slots__[1:]]) for unit in run.units.values()]
    changed = replace(run, listing=replace(run.listing, records=[record]))
    receipts = receipts_of(VoteActor(settings_of(run, inside)), batch_of(changed, renamed))
    assert not any(receipt["error"] for receipt in receipts)
    manifest = {"law": run.declaration.to_json(), "fingerprint": run.fingerprint, "plan": {"classes": 10}}
    store.declare(manifest, config_toml=run.config.to_toml(), records=[record], examples=[example])
    report = reduce_and_report(store, alpha=None, radii=(0.0,), folder=location(inside))
    page = Path(str(report.page)).read_text()
    assert "<b>evil</b>" not in page
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"run"}
    assert cell_id(name, 0.25).isalnum()


def run_image(run) -> np.ndarray:
    return np.full(run.listing.image_shape, 128, np.uint8)
