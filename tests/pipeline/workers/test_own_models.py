"""Networks from users' functions: commands that take a model take them or say why not; their contents are declared."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ndc_core.analysis.contract import ContractError
from ndc_core.checkpoints.denoisers import CheckpointError, load_denoiser
from ndc_core.models.denoiser import ClippedDenoiser, EDMDenoiser
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.declaration.toml_files import load_config
from pipeline.driver.attack import AttackFailedError, attack_run
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import VerificationError, verify_run
from pipeline.locations import location
from pipeline.workers.attack_settings import AttackSettings
from pipeline.workers.models import build_classifier, load_model, load_models, model_digests
from tests.support.commands import ndc
from tests.support.plugged_in import Write, users_folder
from tests.support.small_runs import computed, small_config

# One with the tiny model's weights, and one whose classes are constant images, written as a user would.
TINY = """
import torch
from ndc_core import load_denoiser
from ndc_core.models.image_classifier import ImageNetwork

def edm():
    return load_denoiser({folder!r})

class Plain(torch.nn.Module):
    image_shape, num_classes = (1, 8, 8), 10
    scale = 9

    def __init__(self):
        super().__init__()
        self.images = torch.nn.Parameter(torch.linspace(-1, 1, 640, dtype=torch.float32).view(10, 64))

    def forward(self, z, sigma_model, label):
        return (label @ self.images).view_as(z) * 2 + z / self.scale

def plain():
    return Plain()

def labelled():
    made = Plain()
    made.knows_no_label = True
    return made

def without_gradient():
    made = labelled()
    forward = made.forward
    made.forward = lambda *rows: forward(*rows).detach()
    return made

class Object:
    image_shape, num_classes, knows_no_label = (1, 8, 8), 10, True

    def __init__(self):
        self.made, self.more = Plain(), torch.ones(1)

    def __call__(self, *rows):
        return self.made(*rows).detach()

def random():
    made = Plain()
    torch.nn.init.normal_(made.images)
    return made

def classifier():
    return ImageNetwork(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10).requires_grad_(False).apply(seeded)),
        image_shape=(1, 8, 8), num_classes=10, mean=[0.5], std=[0.5],
    )

def seeded(layer):
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(layer.bias)
"""
QUICK = AttackSettings(restarts=1, steps=2, draws=2, votes=20)


@pytest.fixture
def write(workplace_without_ray: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with users_folder(workplace_without_ray) as write:
        write("mine.py", TINY.format(folder=str(tiny_model)))
        yield write


def test_a_run_of_a_function_is_certified_verified_attacked_and_refused_when_it_changes(
    write: Write, tiny_model: Path
) -> None:
    config = small_config("mine:labelled", "dataset.limit=2", "tracking=none")
    store = computed(config, Path("run"))
    verify_run(store.folder, redraw=2, say=lambda line: None)
    attack_run(store.folder, QUICK, limit=1, say=lambda line: None)
    source = TINY.format(folder=str(tiny_model))
    for changed in (source + "# a remark\n", source.replace("640, dtype", "640, requires_grad=False, dtype")):
        write("mine.py", changed)
        with pytest.raises(DeclarationChangedError, match="model_sha256: "):
            prepare(config, location("run"))
        with pytest.raises(VerificationError, match="declared -> found: model_sha256"):
            verify_run(store.folder, redraw=0, say=lambda line: None)
    write("mine.py", source)
    assert not prepare(config, location("run")).growth


def test_weights_and_settings_are_declared_though_no_source_changes(write: Write) -> None:
    write("loaded.py", "import torch, mine\ndef build():\n    made = mine.Plain()\n    made.scale = 9\n    "
          "made.load_state_dict(torch.load('weights.pt'))\n    return made\n")  # fmt: skip
    digests = []
    for image in (torch.zeros(10, 64), torch.ones(10, 64), torch.zeros(10, 64)):
        torch.save({"images": image}, "weights.pt")
        digests.append(model_digests(small_config("loaded:build", "unconditional=label_mean"))["model_sha256"])
    assert digests[0] == digests[2] != digests[1]


def test_the_same_network_votes_the_same_as_a_checkpoint_and_as_a_function(write: Write, tiny_model: Path) -> None:
    stores = [computed(small_config(model), Path(name)) for model, name in ((tiny_model, "a"), ("mine:edm", "b"))]
    votes = [{str(e.unit): e.votes for e in s.all_evidence(fingerprint=s.manifest()["fingerprint"])} for s in stores]
    assert votes[0] == votes[1]


def test_precision_is_for_networks_of_known_classes(write: Write) -> None:
    half = small_config("mine:edm", "compute.precision=bfloat16", "compute.channels_last=true")
    denoiser, _ = load_models(half, device="cpu")
    assert isinstance(denoiser, EDMDenoiser)
    assert next(denoiser.network.parameters()).dtype == denoiser.network_dtype == torch.bfloat16
    with pytest.raises(ContractError, match=r"mine:labelled returns is a Plain, which runs in single precision.*EDM"):
        load_models(small_config("mine:labelled", "compute.precision=bfloat16"), device="cpu")
    with pytest.raises(ContractError, match=r"a Object and no torch.nn.Module: it stays on the CPU as it is"):
        load_models(small_config("mine:Object", "compute.channels_last=true"), device="cpu")


def test_outputs_are_clipped_for_the_lipschitz_certificate(write: Write) -> None:
    denoiser = load_model("mine:Object")
    assert isinstance(denoiser, ClippedDenoiser)
    assert denoiser.bounded
    assert float(denoiser(torch.full((1, 1, 8, 8), 50.0), torch.ones(1), torch.zeros(1, 10)).max()) == 1
    small = ["dataset.limit=1", "votes.estimation=200", "certificate.radii=[0.0]", "classifier.grid.points=4"]
    run = prepare(load_config("lipschitz", ["model=mine:labelled", "votes.per_unit=50", *small]), location("run"))
    assert run.num_classes == 10


def test_functions_stand_wherever_a_model_may(write: Write, tiny_model: Path) -> None:
    denoise = "classifier={name='denoise', network='mine:classifier'}"
    configs = {
        "unconditional": small_config(tiny_model, "unconditional=mine:labelled"),
        "plain": small_config("mine:classifier", "classifier={name='plain'}"),
        "denoise": small_config("mine:edm", denoise, "unconditional=mine:labelled"),
    }
    digests = {name: model_digests(config) for name, config in configs.items()}
    assert digests["plain"]["model_sha256"] == digests["denoise"]["network_sha256"]
    assert digests["unconditional"]["unconditional"] == digests["denoise"]["unconditional"]
    for name, config in configs.items():
        computed(config.model_copy(update={"tracking": "none"}), Path(name))


def test_a_sweep_shares_votes_of_a_function(write: Write) -> None:
    Path("sweep.toml").write_text("""base = "demo"

[set]
model = "mine:labelled"
sigma_pixel = [0.25]
tracking = "none"
"dataset.limit" = 2
"votes.selection" = 10
"votes.estimation" = 20
"certificate.radii" = [0.0]
"compute.rows_per_pass" = 32

[vary]
"votes.estimation" = [20, 40]
""")
    done = ndc("sweep", "sweep.toml", "--out", "sweep")
    assert done.returncode == 0, done.stderr
    assert "votes over from" in done.stderr


def test_tools_take_functions_or_say_why_not(write: Write) -> None:
    few = "--limit", "12", "--draws", "1", "--sigma-pixel", "0.25", "--budget", "2"
    done = ndc("diagnose", "mine:edm", "digits", *few)
    assert done.returncode == 0, done.stderr
    assert Path("runs/diagnose-mine:edm/run.toml").exists()
    done = ndc("distill", "mine:edm", "digits", "heads", "--steps", "3", "--channels", "8", "--limit", "64")
    assert done.returncode == 0, done.stderr
    assert load_denoiser("heads").num_classes == 10
    refused = {
        ("distill", "mine:edm", "digits", "other", "--network", "own"): "class heads do not fit the network of a func",
        ("tune", "fast", "tuned", "--model", "mine:edm"): "is a function, and tuned heads are kept as a checkpoint",
        ("convert", "mine:edm", "converted"): "is a function, which needs no conversion: give it as --model",
        ("certify", "demo", "--model", "mine:none"): "mine.py has no function none",
        ("certify", "demo", "--model", "no.such:one"): "there is no module no on",
    }
    for arguments, message in refused.items():
        done = ndc(*arguments)
        assert done.returncode in (1, 2), arguments
        assert message in done.stderr, done.stderr


def test_missing_parts_are_reported_before_any_vote(write: Write) -> None:
    with pytest.raises(CheckpointError, match=r"never trained without a label.*set knows_no_label = True on"):
        load_models(small_config("mine:plain"), device="cpu")
    gradient = ["classifier.name=epndc", "classifier.label_gradient={steps=2, keep=2}"]
    with pytest.raises(ContractError, match="fails where the gradient of the label is asked for"):
        build_classifier(load_config("fast", ["model=mine:without_gradient", *gradient]), device="cpu")
    with pytest.raises(ContractError, match="mine:random returns other weights each time it is called"):
        model_digests(small_config("mine:random"))
    store = computed(small_config("mine:without_gradient", "dataset.limit=1", "tracking=none"), Path("run"))
    with pytest.raises(AttackFailedError, match="no gradient, which an attack climbs"):
        attack_run(store.folder, QUICK, limit=1, say=lambda line: None)
