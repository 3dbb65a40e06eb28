"""Models and data by their names on a hub, which is an imitation on loopback: fetched once, pinned, and without it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ndc_core.checkpoints.denoisers import CheckpointError, denoiser_digest, load_denoiser
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.declaration.toml_files import load_config
from pipeline.driver.pinned import with_commits
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import verify_run
from pipeline.hub import HubError, HubName, _snapshot, at_commit, pinned
from pipeline.locations import location
from pipeline.workers.models import local_checkpoint, local_classifier
from tests.support.commands import ndc
from tests.support.fake_hub import TOKEN, FakeHub, go_offline
from tests.support.small_runs import computed, small_arguments, small_config

constants = pytest.importorskip("huggingface_hub.constants")


def test_names_are_read_and_written_back() -> None:
    for text, name in {
        "hf://org/name": HubName("model", "org/name"),
        "hf://org/name/": HubName("model", "org/name"),
        "hf://org/na.me-2@v1/unet": HubName("model", "org/na.me-2", "v1", "unet"),
        "hf://datasets/org/name@refs/convert/parquet": HubName("dataset", "org/name", "refs/convert/parquet"),
        "hf://datasets/org/name@refs%2Fpr%2F1/data/a*": HubName("dataset", "org/name", "refs/pr/1", "data/a*"),
    }.items():
        assert HubName.parse(text) == HubName.parse(str(name)) == name
    for text in ("hf://name", "hf://datasets/name", "hf://", "hf://org/name@", "hf:/org/name"):
        with pytest.raises(HubError, match="names no repository; write hf://ORG/NAME"):
            HubName.parse(text)
    assert pinned("models/digits") == "models/digits"


def test_a_checkpoint_is_fetched_once_however_many_ask(hub: FakeHub, tiny_model: Path) -> None:
    commit = hub.push_folder("org/tiny", tiny_model)
    hub.repos[("models", "org/tiny")][0]["large.bin"] = b"not asked for"
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: local_checkpoint(f"hf://org/tiny@{commit}"), range(8)))
    assert denoiser_digest(folders.pop()) == denoiser_digest(tiny_model)
    assert not folders
    assert hub.served == {"denoiser.json": 1, "denoiser.safetensors": 1}
    asked = hub.asked
    _snapshot.cache_clear()  # as in another process
    local_checkpoint(f"hf://org/tiny@{commit}")
    assert hub.asked == asked, "a commit that is there needs no hub"


def test_processes_that_ask_at_once_fetch_once_where_the_environment_says(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.push("org/one", {"weights.bin": bytes(10**7)})
    script = f"from pipeline.hub import *; local_copy(HubName.parse('hf://org/one@{commit}'), ['*'])"
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    actors = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(4)]
    assert [actor.wait(60) for actor in actors] == [0] * 4
    assert hub.served["weights.bin"] == 1
    offline = f"from pipeline.hub import *; print(local_copy(HubName.parse('hf://org/one@{commit}'), ['*'])[0])"
    environment |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", offline], env=environment, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "weights.bin").stat().st_size == 10**7
    assert done.stderr == ""


def test_a_folder_in_a_repository_and_an_image_classifier_are_taken(hub: FakeHub, tiny_model: Path) -> None:
    hub.push_folder("org/several", tiny_model, below="models/tiny/")
    assert load_denoiser(local_checkpoint("hf://org/several/models/tiny")).num_classes == 10
    with pytest.raises(CheckpointError, match=r"hf://org/several@[0-9a-f]{40} is no model of ndc \(denoiser.json"):
        local_checkpoint("hf://org/several")
    with pytest.raises(CheckpointError, match=r"\(classifier.json is missing\); take it in with `ndc convert hf://"):
        local_classifier("hf://org/several")


@pytest.mark.usefixtures("workplace_without_ray")
def test_a_run_is_pinned_to_the_commit_that_it_began_with(
    hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push_folder("org/tiny", tiny_model)
    config = small_config(Path("x"), "dataset.limit=1", "tracking=none").model_copy(update={"model": "hf://org/tiny"})
    store = computed(config, Path("run"))
    assert load_config("run/run.toml").model == f"hf://org/tiny@{commit}"
    description = json.loads((tiny_model / "denoiser.json").read_text())
    other = json.dumps({**description, "sigma_data": 0.6}).encode()
    weights = (tiny_model / "denoiser.safetensors").read_bytes()
    hub.push("org/tiny", {"denoiser.json": other, "denoiser.safetensors": weights})
    verify_run(store.folder, redraw=1, say=lambda line: None)  # main has moved, the run has not
    assert prepare(load_config("run/run.toml"), location("run")).growth is None
    with pytest.raises(DeclarationChangedError, match="model_sha256: "):
        prepare(config, location("run"))
    go_offline(monkeypatch)
    verify_run(store.folder, redraw=1, say=lambda line: None)


def test_all_names_in_a_configuration_are_pinned(hub: FakeHub) -> None:
    commit, data = hub.push("org/a", {}), hub.push("org/b", {}, kind="datasets")
    section = "classifier={name='denoise', network='hf://org/a/inner'}"
    config = small_config(Path("x"), section, "unconditional=hf://org/a", "dataset.name=hf://datasets/org/b")
    exact = with_commits(config)
    assert (exact.model, exact.unconditional) == ("x", f"hf://org/a@{commit}")
    assert exact.classifier.network == f"hf://org/a@{commit}/inner"  # type: ignore[union-attr]
    assert exact.dataset.name == f"hf://datasets/org/b@{data}"
    asked = hub.asked
    assert with_commits(exact) == exact
    assert hub.asked == asked


def test_without_a_network_the_cache_serves_or_the_error_says_what_is_missing(
    hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push_folder("org/tiny", tiny_model)
    local_checkpoint("hf://org/tiny")
    go_offline(monkeypatch)
    assert pinned("hf://org/tiny") == f"hf://org/tiny@{commit}"
    assert load_denoiser(local_checkpoint("hf://org/tiny")).num_classes == 10
    with pytest.raises(HubError, match=r"hf://org/other@main is incomplete in the cache at .*, and HF_HUB_OFFLINE"):
        local_checkpoint("hf://org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pinned("hf://org/tiny") == f"hf://org/tiny@{commit}"  # a hub that is away


def test_what_may_not_be_read_or_is_not_there_is_named(
    hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push_folder("org/secret", tiny_model)
    hub.private.add("org/secret")
    with pytest.raises(HubError, match=r"hf://org/secret@main does not exist, or is private; .*set HF_TOKEN"):
        local_checkpoint("hf://org/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert local_checkpoint("hf://org/secret").is_dir()
    with pytest.raises(HubError, match="the repository has no revision v9"):
        at_commit(HubName.parse("hf://org/secret@v9"))
    assert TOKEN not in str(local_checkpoint("hf://org/secret"))


def test_a_model_of_diffusers_is_converted_by_its_name(hub: FakeHub, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    small = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 32)}
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    diffusers.UNet2DModel(**small, **blocks).save_pretrained(tmp_path / "pipeline" / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "pipeline" / "scheduler")
    commit = hub.push_folder("org/ddpm", tmp_path / "pipeline")
    hub.repos[("models", "org/ddpm")][0].update({"unet/diffusion_pytorch_model.bin": b"", "vae/model.safetensors": b""})
    done = ndc("convert", "hf://org/ddpm", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/denoiser.json").read_text())["notes"]["source"] == f"hf://org/ddpm@{commit}/unet"
    assert {name for name in hub.served if not name.endswith(".json")} == {"unet/diffusion_pytorch_model.safetensors"}
    hub.push_folder("org/flat", tmp_path / "pipeline/unet")
    hub.repos[("models", "org/flat")][0]["scheduler_config.json"] = (
        tmp_path / "pipeline/scheduler/scheduler_config.json"
    ).read_bytes()
    assert ndc("convert", "hf://org/flat@main", tmp_path / "flat").returncode == 0
    hub.push("org/pickles", {"edm.pkl": b"cos\nsystem\n(S'true'\ntR."})
    done = ndc("convert", "hf://org/pickles/edm.pkl", tmp_path / "no")
    assert "asks to call os.system" in done.stderr


@pytest.mark.usefixtures("workplace_without_ray")
def test_a_plan_names_the_commit(hub: FakeHub, tiny_model: Path) -> None:
    commit = hub.push_folder("org/tiny", tiny_model)
    few = [*small_arguments(tiny_model, "dataset.limit=1"), "--model", "hf://org/tiny", "--evaluations-per-second", "9"]
    planned = ndc("plan", "demo", *few)
    assert planned.returncode == 0, planned.stderr
    assert f"model: hf://org/tiny@{commit}" in planned.stderr
