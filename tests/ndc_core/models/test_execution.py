"""Precision is set in one place, wherever a network comes from."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.checkpoints.image_classifiers import load_classifier
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.precision import Precision
from ndc_core.models.replay import Replays, directly
from pipeline.declaration.toml_files import load_config
from pipeline.workers.models import build_classifier, load_pair
from tests.ndc_core.models.test_networks import golden_inputs, golden_network

ROOT = Path(__file__).parents[3]
SWITCHES = ("allow_tf32", "fp32_precision", "set_float32_matmul_precision", "cudnn", "use_deterministic_algorithms")


def switches() -> tuple[bool, bool, bool, bool]:
    backends = torch.backends
    return (
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
    )


@pytest.fixture(autouse=True)
def everything_set_wrong() -> Iterator[None]:
    """Before each test, so that what a test reads was set by what it called."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    yield
    Execution().apply(torch.nn.Identity(), device="cpu")


@pytest.mark.parametrize("precision", list(DTYPES))
def test_each_precision_says_whether_products_are_rounded_to_tf32(precision: Precision) -> None:
    Execution(precision).apply(torch.nn.Identity(), device="cpu")
    tf32 = precision == "tf32"
    assert switches() == (tf32, tf32, False, True)
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # the later switches agree with those that were set
        assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


def test_precision_can_change_back_and_forth() -> None:
    for precision in ("tf32", "float32", "bfloat16", "tf32", "float32"):
        Execution(precision).apply(torch.nn.Identity(), device="cpu")
        assert switches()[:2] == ((precision == "tf32"),) * 2


@pytest.fixture(scope="module")
def image_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ndc_core.checkpoints.image_classifiers import save_small_classifier
    from ndc_core.training.image_classifier import ClassifierSpec, train_classifier

    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    spec = ClassifierSpec(steps=1, batch=4, channels=8)
    classifier = train_classifier(images, torch.tensor([0, 1, 2, 3]), num_classes=10, spec=spec)
    folder = tmp_path_factory.mktemp("classifier") / "small"
    save_small_classifier(folder, classifier, arguments={"channels": 8}, notes={})
    return folder


def by_run(model: Path, *settings: str, preset: str = "demo") -> None:
    build_classifier(load_config(preset, [f"model={model}", *settings]), device="cpu")


EntryPoint = Callable[[Path, Path], object]
LOADERS: dict[str, EntryPoint] = {
    "a denoiser, as distill loads it": lambda model, _: load_denoiser(model),
    "an image classifier": lambda _, classifier: load_classifier(classifier),
    "a pair, as diagnose loads it": lambda model, _: load_pair(
        str(model), "null_label", classifier="apndc", device="cpu"
    ),
    "a run's, as certify, plan, verify and attack load it": lambda model, _: by_run(model),
    "a plain classifier's": lambda _, classifier: by_run(classifier, "classifier={name='plain'}"),
    "a denoised classifier's": lambda model, classifier: by_run(
        model, f"classifier={{name='denoise', network='{classifier}'}}"
    ),
}


@pytest.mark.parametrize("loads", LOADERS.values(), ids=list(LOADERS))
def test_every_loader_of_a_network_sets_its_precision(
    loads: EntryPoint, tiny_model: Path, image_classifier: Path
) -> None:
    loads(tiny_model, image_classifier)
    assert switches() == (False, False, False, True)


def test_a_run_in_tf32_is_set_to_it(tiny_model: Path) -> None:
    Execution().apply(torch.nn.Identity(), device="cpu")
    by_run(tiny_model, "compute.precision=tf32")
    assert switches()[:2] == (True, True)


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_nobody_else_touches_the_switches() -> None:
    reading = {"cudnn"}  # its version
    for path in [*(ROOT / "ndc_core").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        if path.name == "execution.py":
            continue
        allowed = reading if path.name in ("devices.py", "device_record.py") else set()
        assert not (names_in(path) & set(SWITCHES)) - allowed, path


def test_nobody_else_puts_a_network_on_a_device() -> None:
    """A network that came to a GPU by another way would run in whatever precision the process had."""
    for path in [*(ROOT / "ndc_core").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        if path.name != "execution.py":
            moves = re.search(r"(network|denoiser|model|teacher|student)\.to\(|\.cuda\(\)", path.read_text())
            assert moves is None, f"{path}: {moves}"


@torch.no_grad()
def test_tf32_on_a_cpu_is_float32_bit_for_bit() -> None:
    x, sigma, label, _ = golden_inputs("edm-song-ddpmpp-cond")
    outputs = []
    for precision in ("float32", "tf32"):
        network, _ = golden_network("edm-song-ddpmpp-cond")
        outputs.append(Execution(precision).apply(network, device="cpu")(x, sigma.log() / 4, label))
    assert torch.equal(*outputs)


class Anywhere(torch.nn.Module):
    """A network that can be fused, and can be sent to a device that is not there."""

    fused = False

    def to(self, *_: object, **__: object) -> "Anywhere":
        return self


@pytest.mark.parametrize(
    ("execution", "device", "fused"),
    [
        (Execution("float16", channels_last=True), "cuda", True),
        (Execution("float16", channels_last=True), "cpu", False),
        (Execution("float16"), "cuda", False),
    ],
)
def test_networks_are_fused_in_channels_last_on_cuda(
    monkeypatch: pytest.MonkeyPatch, execution: Execution, device: str, fused: bool
) -> None:
    monkeypatch.setattr("ndc_core.models.execution.has_kernels", lambda: True)
    assert execution.apply(Anywhere(), device=device).fused == fused


def test_a_machine_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndc_core.models.execution.has_kernels", lambda: False)
    with pytest.warns(UserWarning, match="Triton is not installed here"):
        network = Execution(channels_last=True).apply(Anywhere(), device="cuda")
    assert not network.fused


def test_passes_are_replayed_on_cuda_unless_they_are_compiled() -> None:
    assert isinstance(Execution().launch(device="cuda"), Replays)
    assert Execution(compile=True).launch(device="cuda") is directly
    assert Execution().launch(device="cpu") is directly
