"""Runs with heads on a network of EDM's, distilled and tuned: certified, gone on with, and drawn again."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ndc_core.checkpoints.denoisers import save_denoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.networks.edm_song import SongUNet
from pipeline.cli import main
from pipeline.driver.verify import verify_run
from pipeline.store.run_store import RunStore
from tests.support.small_runs import computed, fast_config

WAYS = {
    "ensemble, racing": ["classifier.name='apndc-ensemble'"],
    "one path, all classes": ["classifier.name='epndc'", "classifier.one_path=true"],
}


def ndc(*arguments: str | Path) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tuned heads for digits; a few steps each, so they tell classes apart no better than chance."""
    place = tmp_path_factory.mktemp("models")
    small = {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": []}
    arguments = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10, **small}
    torch.manual_seed(0)
    teacher = EDMDenoiser(SongUNet(**arguments), image_shape=(1, 8, 8), num_classes=10)
    save_denoiser(place / "teacher", teacher, network="edm-song", arguments=arguments, notes={})
    short = ["--steps", "3", "--limit", "80", "--device", "cpu"]
    heads = ["--batch", "16", "--learning-rate", "0.1", "--tracking", "none"]
    ndc("distill", place / "teacher", "digits", place / "heads", *heads, *short)
    ndc("tune", "fast", place / "tuned", "--model", place / "heads", *short, "--set", "tracking=none")
    return place / "tuned"


def votes_of(store: RunStore) -> dict[str, dict[int, int]]:
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    return {str(item.unit): item.votes for item in evidence}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_with_tuned_heads_is_certified_gone_on_with_and_drawn_again(
    tuned: Path, tmp_path: Path, way: str
) -> None:
    config = fast_config(tuned, "dataset.limit=1", "votes.estimation=120", *WAYS[way])
    if "all classes" in way:
        config = config.model_copy(update={"classifier": config.classifier.model_copy(update={"race": None})})
    store = computed(config, tmp_path / "run")
    whole = votes_of(store)
    assert len({class_id for votes in whole.values() for class_id in votes}) > 1
    for path in store.evidence_files()[::2]:
        path.unlink()
    assert votes_of(computed(config, tmp_path / "run")) == whole
    said: list[str] = []
    verify_run(store.folder, redraw=99, say=said.append)
    assert any("drawn again from the model: equal bit for bit" in line for line in said)
