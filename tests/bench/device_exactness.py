"""How exact a device is, and what exactness costs: one table, for EDM's two kinds of network with golden weights.

    .venv/bin/python -m tests.bench.device_exactness [--rows 256 --seconds 1]

Each row is a way to run a network: `golden` is the largest difference to EDM's own outputs, then come the self-test's
differences (ndc_core/analysis/self_test.py; 0 is bit for bit) and the milliseconds of a pass and of one with the
label's gradient. It takes a GPU if there is one; on a CPU all of it runs as well, where the switches of CUDA change
nothing.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

# Read when CUDA's libraries are set up: deterministic algorithms of cuBLAS need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import click
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndc_core.analysis.exactness import Exactness
from ndc_core.analysis.self_test import self_test
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.precision import Precision
from ndc_core.noise.grid import GridSpec
from pipeline.workers.device_record import processor
from tests.ndc_core.models.test_networks import golden_inputs, golden_network

NAMES = ("edm-song-ddpmpp-cond", "edm-adm-cond")


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time, and nothing here reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def contiguous_attention() -> Iterator[None]:
    whole = F.scaled_dot_product_attention

    def contiguous(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return whole(query.contiguous(), key.contiguous(), value.contiguous())

    F.scaled_dot_product_attention = contiguous  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = whole


@contextmanager
def full_reductions() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def plain_attention() -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH)


Setting = tuple[Precision, Callable[[], AbstractContextManager[None]]]
WAYS: dict[str, Setting] = {
    "float32": ("float32", nullcontext),
    "float32, deterministic algorithms": ("float32", deterministic),
    "float32, contiguous attention": ("float32", contiguous_attention),
    "float32, attention by plain products": ("float32", plain_attention),
    "tf32": ("tf32", nullcontext),
    "tf32, deterministic algorithms": ("tf32", deterministic),
    "bfloat16": ("bfloat16", nullcontext),
    "bfloat16, deterministic algorithms": ("bfloat16", deterministic),
    "bfloat16, contiguous attention": ("bfloat16", contiguous_attention),
    "bfloat16, reductions in float32": ("bfloat16", full_reductions),
}


@dataclass(frozen=True)
class Measured:
    golden: float
    exactness: Exactness
    milliseconds: float
    gradient_milliseconds: float


def measure(name: str, precision: Precision, *, rows: int, seconds: float, device: str) -> Measured:
    network, channels = golden_network(name)
    x, sigma, label, expected = golden_inputs(name)
    denoiser = EDMDenoiser(
        Execution(precision).apply(network, device=device),
        image_shape=(channels, 16, 16),
        num_classes=label.shape[1],
        network_dtype=DTYPES[precision],
    )
    with torch.no_grad():
        output = denoiser.unclipped(x.to(device), sigma.to(device), label.to(device)).cpu()
    spec, grid = LabelGradientSpec(steps=1, keep=2), GridSpec(points=4, sigma_model_max=1.5)
    classifier = DiffusionClassifier(denoiser, "epndc", grid, label_gradient=spec, rows_per_pass=rows, device=device)
    exactness = self_test(classifier)
    z = torch.randn(rows, channels, 16, 16, device=device)
    level, labels = torch.ones(rows, device=device), torch.zeros(rows, label.shape[1], device=device)

    def forward() -> None:
        with torch.inference_mode():
            denoiser(z, level, labels)

    def gradient() -> None:
        wanted = labels.clone().requires_grad_()
        torch.autograd.grad(denoiser(z, level, wanted).square().sum(), wanted)

    times = [1e3 * fastest(one_pass, seconds, device=device) for one_pass in (forward, gradient)]
    return Measured(float((output - expected).abs().max()), exactness, *times)


def fastest(one_pass: Callable[[], None], seconds: float, *, device: str) -> float:
    def timed() -> float:
        started = time.perf_counter()
        one_pass()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed()
    ends, best = time.perf_counter() + seconds, timed()
    while time.perf_counter() < ends:
        best = min(best, timed())
    return best


def cells(measured: Measured | Exception) -> list[str]:
    if isinstance(measured, Exception):
        return [f"{type(measured).__name__}: {str(measured).splitlines()[0][:60]}"]
    exactness = measured.exactness
    differences = (
        exactness.repeated,
        exactness.moved,
        exactness.company,
        exactness.gradient_repeated,
        exactness.gradient_moved,
    )
    return [
        f"{measured.golden:.1e}",
        *("0" if value == 0 else f"{value:.1e}" for value in differences if value is not None),
        f"{measured.milliseconds:.2f}",
        f"{measured.gradient_milliseconds:.2f}",
    ]


@click.command()
@click.option("--rows", default=16)
@click.option("--seconds", default=0.2)
def main(rows: int, seconds: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    print(f"{where}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    header = "repeated", "moved", "company", "gradient repeated", "gradient moved", "ms", "gradient ms"
    print(" | ".join(["network", "way", "golden", *header]))
    for name in NAMES:
        for way, (precision, setting) in WAYS.items():
            try:
                with setting():
                    measured: Measured | Exception = measure(name, precision, rows=rows, seconds=seconds, device=device)
            except RuntimeError as error:  # no deterministic algorithm for it, or no such attention there
                measured = error
            print(" | ".join([name, way, *cells(measured)]), flush=True)


if __name__ == "__main__":
    main()
