"""How fast EDM's networks run, step by step, beside how NVIDIA's code runs them, and how right each way is.

    python -m tests.bench.gpu_network [--device cpu --tiny] [--seconds 0.7] [--budget 150] [--compile] --out FILE.json

Weights are random, of full size: CIFAR-10's SongUNet at 512 rows and ImageNet-64's ADM at 256. Needs torch, triton,
numpy, scipy, safetensors, jaxtyping. Each row is written to FILE.json when it is known.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_song import SongUNet
from ndc_core.models.precision import Precision
from ndc_core.models.replay import Replays, cuda_graph, directly
from tests.bench.edm_reference import edm_network
from tests.bench.gpu_places import REMEDIES, causes

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN_NAMES = ("edm-song-ddpmpp-cond", "edm-song-ncsnpp-cond", "edm-adm-cond")
KINDS: dict[str, Any] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")
SEED = 0


@dataclass(frozen=True)
class Net:
    name: str
    build: Callable[..., nn.Module]
    arguments: dict[str, Any]
    side: int
    classes: int
    rows: int


FULL = (
    Net("CIFAR-10", SongUNet, {"augment_dim": 9, "channel_mult": (2, 2, 2)}, 32, 10, 512),
    Net("ImageNet-64", DhariwalUNet, {}, 64, 1000, 256),
)
TINY = (
    Net("CIFAR-10", SongUNet, {"model_channels": 16, "num_blocks": 1, "channel_mult": (1, 2)}, 8, 10, 2),
    Net("ImageNet-64", DhariwalUNet, {"model_channels": 32, "num_blocks": 1, "channel_mult": (1, 2)}, 8, 10, 2),
)


@dataclass(frozen=True)
class Way:
    """A way to run a network; `reference` is EDM's."""

    name: str
    precision: Precision = "float16"
    channels_last: bool = True
    fused: bool = True
    graph: bool = True
    reference: bool = False
    compile: bool = False
    tuned: bool = False


WAYS = (
    Way("EDM's own way", channels_last=False, fused=False, graph=False, reference=True),
    Way("fused, graph"),
    Way("fused, graph", "bfloat16"),
    Way("fused, no graph", graph=False),
    Way("fused, graph, cudnn.benchmark", tuned=True),
    Way("channels last", fused=False, graph=False),
    Way("NCHW", channels_last=False, fused=False, graph=False),
    Way("NCHW, graph", channels_last=False, fused=False),
    Way("EDM's own way, cudnn.benchmark", channels_last=False, fused=False, graph=False, reference=True, tuned=True),
    Way("fused, graph", "tf32"),
)
GRADIENT_WAYS = (Way("fused", graph=False), Way("NCHW", channels_last=False, fused=False, graph=False))
COMPILED = (Way("channels last, compiled", fused=False, graph=False, compile=True),)


@dataclass
class Bench:
    device: str
    seconds: float
    out: Path | None
    started: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self, **row: Any) -> None:
        self.rows.append(row)
        print(
            "  ".join(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()), flush=True
        )
        if self.out:
            self.out.write_text(json.dumps({"machine": machine(self.device), "rows": self.rows}, indent=1) + "\n")

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    cudnn = torch.backends.cudnn.version()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def per_second(bench: Bench, call: Callable[[], object], *, amount: float, before: int = 4) -> float:
    """The amount per second, where one call does `amount`."""
    for _ in range(before):
        call()
    bench.synchronise()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < bench.seconds:
        call()
        call()
        bench.synchronise()
        calls += 2
    return amount * calls / (time.perf_counter() - started)


def made(net: Net, way: Way, *, device: str) -> tuple[EDMDenoiser, tuple[Tensor, Tensor, Tensor]]:
    """A denoiser that runs in this way, and inputs for it."""
    torch.manual_seed(SEED)
    with torch.device(device):
        network = net.build(
            img_resolution=net.side, in_channels=3, out_channels=3, label_dim=net.classes, **net.arguments
        )
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.6 / weight[0].numel() ** 0.5)
    execution = Execution("float32" if way.reference else way.precision, way.channels_last, way.compile)
    running: Any = execution.apply(network, device=device)
    network.fused = way.fused  # type: ignore[assignment]
    if way.reference:
        running = EDMsWay(network)
    torch.backends.cudnn.benchmark = way.tuned
    denoiser = EDMDenoiser(
        running,
        image_shape=(3, net.side, net.side),
        num_classes=net.classes,
        network_dtype=DTYPES[way.precision],
        launch=Replays(cuda_graph) if way.graph and device == "cuda" else directly,
    )
    return denoiser, inputs(net, device=device)


class EDMsWay(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return edm_network(self.network, *inputs)  # type: ignore[arg-type]


def inputs(net: Net, *, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(net.rows, 3, net.side, net.side, generator=generator) * 0.7
    sigma = torch.rand(net.rows, generator=generator) * 2 + 0.4
    label = torch.eye(net.classes)[torch.randint(0, net.classes, (net.rows,), generator=generator)]
    return z.to(device), sigma.to(device), label.to(device)


def flops_of(net: Net) -> float:
    """FLOPs of an evaluation: products of convolutions, linear layers and attention."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = net.build(
            img_resolution=net.side, in_channels=3, out_channels=3, label_dim=net.classes, **net.arguments
        ).eval()
        network(torch.empty(1, 3, net.side, net.side), torch.empty(1), torch.empty(1, net.classes))
    return float(counter.get_total_flops())


@torch.inference_mode()
def golden(bench: Bench, names: tuple[str, ...]) -> None:
    """The largest error against EDM's outputs (float32), and against our network in float64."""
    for name in names:
        exact = golden_float64(name)
        for layout in ("NCHW", "channels last", "fused"):
            row: dict[str, Any] = {"part": "golden", "network": name, "way": layout}
            for precision in PRECISIONS:
                execution = Execution(precision, layout != "NCHW")
                denoiser, io = golden_denoiser(name, execution, fused=layout == "fused", device=bench.device)
                output = denoiser.unclipped(*io[:3]).cpu()
                row[precision] = f"{(output - io[3]).abs().max():.1e}/{(output - exact).abs().max():.1e}"
            bench.note(**row)


def golden_denoiser(
    name: str, execution: Execution, *, fused: bool, device: str
) -> tuple[EDMDenoiser, tuple[Tensor, Tensor, Tensor, Tensor]]:
    network, channels, io = golden_parts(name)
    running = execution.apply(network, device=device)
    network.fused = fused
    dtype = DTYPES[execution.precision]
    denoiser = EDMDenoiser(running, image_shape=(channels, 16, 16), num_classes=10, network_dtype=dtype)
    x, sigma, label, expected = io
    return denoiser, (x.to(device), sigma.to(device), label.to(device), expected)


def golden_float64(name: str) -> Tensor:
    network, channels, (x, sigma, label, _) = golden_parts(name)
    denoiser = EDMDenoiser(
        network.double().eval(), image_shape=(channels, 16, 16), num_classes=10, network_dtype=torch.float64
    )
    return denoiser.unclipped(x.double(), sigma.double(), label.double())


def golden_parts(name: str) -> tuple[Any, int, tuple[Tensor, Tensor, Tensor, Tensor]]:
    arguments = json.loads((GOLDEN / f"{name}.json").read_text())
    build, channels = KINDS[arguments.pop("model_type")], arguments.pop("img_channels")
    network = build(in_channels=channels, out_channels=channels, **arguments)
    weights = load_file(GOLDEN / f"{name}.weights.safetensors")
    network.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()})
    io = load_file(GOLDEN / f"{name}.io.safetensors")
    return network, channels, (io["x"], io["sigma"], torch.eye(10)[io["label"]], io["denoised"])


@torch.inference_mode()
def limits(bench: Bench, *, side: int) -> dict[str, float]:
    """FLOP/s of a large product of matrices, and bytes/s of a large copy."""
    measured = {}
    for precision in ("float16", "bfloat16"):
        a, b = (torch.randn(side, side, device=bench.device, dtype=DTYPES[precision]) for _ in range(2))
        measured[precision] = per_second(bench, lambda a=a, b=b: a @ b, amount=2.0 * side**3)
    a = torch.empty(side, side, device=bench.device)
    measured["copy"] = per_second(bench, a.clone, amount=2.0 * a.numel() * a.element_size())
    bench.note(part="limits", **{key: f"{value / 1e12:.3g} T/s" for key, value in measured.items()})
    return measured


@torch.inference_mode()
def rows_stand_alone(bench: Bench, net: Net) -> None:
    """Whether a row's result depends on its place, its company or chance in the default way to run."""
    for precision in ("float16", "bfloat16"):
        denoiser, (z, sigma, label) = made(net, Way("", precision), device=bench.device)
        first = [denoiser(z, sigma, label) for _ in range(5)]
        order = torch.randperm(net.rows, generator=torch.Generator().manual_seed(1)).to(bench.device)
        moved = denoiser(z[order], sigma[order], label[order])
        lonely = torch.arange(net.rows, device=bench.device) % 2 == 0
        company = denoiser(torch.where(lonely.view(-1, 1, 1, 1), z, -z), sigma, label)
        plain = denoiser._output(z, sigma, label)
        bench.note(
            part="rows",
            network=net.name,
            way=precision,
            again=all(torch.equal(first[0], output) for output in first),
            moved=f"{(moved - first[0][order]).abs().max().item():.1e}",
            other_company=f"{(company - first[0])[lonely].abs().max().item():.1e}",
            graph_against_eager=f"{(plain - first[0]).abs().max().item():.1e}",
            finite=bool(first[0].isfinite().all()),
        )


@torch.inference_mode()
def places(bench: Bench, net: Net) -> None:
    """The operations that make a row depend on its place, and the rate of each remedy."""
    for precision in PRECISIONS[2:]:
        denoiser, given = made(net, Way("", precision, graph=False), device=bench.device)
        for cause in (list(causes(denoiser, given)) or ["none"])[:8]:
            bench.note(part="cause", network=net.name, precision=precision, cause=cause)
        for name in REMEDIES:
            tried = partial(place, bench, net, precision, name, denoiser, given)
            guarded(bench, tried, name=f"places, {name}")


def place(
    bench: Bench, net: Net, precision: str, remedy: str, denoiser: EDMDenoiser, given: tuple[Tensor, Tensor, Tensor]
) -> None:
    order = torch.randperm(net.rows, generator=torch.Generator().manual_seed(1)).to(bench.device)
    with REMEDIES[remedy]():
        first, moved = denoiser(*given), denoiser(*(tensor[order] for tensor in given))
        evaluations_per_second = per_second(bench, lambda: denoiser(*given), amount=net.rows, before=0)
    difference = f"{(moved - first[order]).abs().max().item():.1e}"
    bench.note(
        part="place",
        network=net.name,
        precision=precision,
        remedy=remedy,
        moved=difference,
        rate=evaluations_per_second,
    )


@torch.inference_mode()
def rate(bench: Bench, net: Net, way: Way, *, limit: dict[str, float]) -> None:
    began = time.perf_counter()
    denoiser, given = made(net, way, device=bench.device)
    evaluations_per_second = per_second(bench, lambda: denoiser(*given), amount=net.rows)
    power = evaluations_per_second * flops_of(net)
    bench.note(
        part="rate",
        network=net.name,
        way=way.name,
        precision=way.precision,
        per_second=round(evaluations_per_second, 1),
        tflops=round(power / 1e12, 3),
        share=round(power / limit.get(way.precision, limit["float16"]), 3),
        took=round(time.perf_counter() - began, 1),
    )


def gradient_rate(bench: Bench, net: Net, way: Way) -> None:
    """The rate of label gradients, where a row counts as two evaluations; half the rows, for memory."""
    denoiser, given = made(replace(net, rows=net.rows // 2), way, device=bench.device)
    denoiser.requires_grad_(False)
    z, sigma, label = given

    def gradient() -> Tensor:
        wanted = label.clone().requires_grad_()
        return torch.autograd.grad(denoiser(z, sigma, wanted).square().sum(), wanted)[0]

    same = torch.equal(gradient(), gradient())
    evaluations_per_second = per_second(bench, gradient, amount=net.rows, before=1)
    bench.note(
        part="gradient",
        network=net.name,
        way=way.name,
        precision=way.precision,
        evaluations_per_second=round(evaluations_per_second, 1),
        same_again=same,
    )


@torch.inference_mode()
def kernels(bench: Bench, net: Net) -> None:
    """Where the time of one pass goes: by kernel, and by shape of convolution and product."""
    denoiser, given = made(net, Way("", graph=False), device=bench.device)
    for _ in range(2):
        denoiser(*given)
    bench.synchronise()
    cuda = bench.device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, record_shapes=True) as run:
        denoiser(*given)
        bench.synchronise()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3

    on_device = [entry for entry in run.key_averages() if not cuda or "CUDA" in str(entry.device_type)]
    total = sum(own(entry) for entry in on_device) or 1.0
    print(f"kernels of one pass of {net.name}, {total:.2f} ms")
    for entry in sorted(on_device, key=own, reverse=True)[:18]:
        bench.note(part="kernel", network=net.name, ms=round(own(entry), 3), calls=entry.count, kernel=entry.key[:110])
    for entry in sorted(run.key_averages(group_by_input_shape=True), key=own, reverse=True)[:14]:
        if own(entry) and entry.key.startswith("aten::"):
            shapes = str(entry.input_shapes[:3])
            bench.note(
                part="shape", network=net.name, ms=round(own(entry), 3), calls=entry.count, of=f"{entry.key} {shapes}"
            )


def table(bench: Bench) -> Iterator[str]:
    rates = [row for row in bench.rows if row["part"] == "rate"]
    reference = {row["network"]: row["per_second"] for row in rates if row["way"] == WAYS[0].name}
    yield "| network | way | precision | evaluations/s | of EDM's | TFLOP/s | of the limit |"
    yield "|---|---|---|---|---|---|---|"
    for row in rates:
        times = row["per_second"] / reference.get(row["network"], float("nan"))
        cells = (row["network"], row["way"], row["precision"], f"{row['per_second']:,}", f"{times:.2f}")
        yield "| " + " | ".join((*cells, str(row["tflops"]), str(row["share"]))) + " |"


def guarded(bench: Bench, what: Callable[[], None], *, name: str) -> None:
    """A part that fails does not stop the others."""
    try:
        what()
    except Exception as error:
        print(traceback.format_exc(limit=-4))
        bench.note(part="failed", what=name, error=repr(error)[:300])
    finally:
        torch.backends.cudnn.benchmark = False
        if bench.device == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--budget", type=float, default=150)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds = 0.05 if options.tiny else options.seconds
    run(Bench(options.device, seconds, options.out), tiny=options.tiny, budget=options.budget, compiled=options.compile)


def run(bench: Bench, *, tiny: bool, budget: float, compiled: bool) -> None:
    print(machine(bench.device), flush=True)
    nets = TINY if tiny else FULL
    limit: dict[str, float] = {"float16": float("nan")}
    guarded(bench, lambda: golden(bench, GOLDEN_NAMES[-1:] if tiny else GOLDEN_NAMES), name="golden")
    guarded(bench, lambda: limit.update(limits(bench, side=256 if tiny else 8192)), name="limits")
    for net in nets:
        guarded(bench, lambda net=net: rows_stand_alone(bench, net), name="rows")
    jobs = [(net, way) for way in WAYS[:5] for net in nets]
    for net, way in jobs:
        guarded(bench, lambda net=net, way=way: rate(bench, net, way, limit=limit), name=f"{net.name}, {way.name}")
    for net in nets:
        guarded(bench, lambda net=net: kernels(bench, net), name="kernels")
    for net in nets[1:]:
        guarded(bench, lambda net=net: places(bench, net), name="places")
    for net, way in [(net, way) for way in GRADIENT_WAYS for net in nets]:
        if bench.elapsed() < budget:
            guarded(bench, lambda net=net, way=way: gradient_rate(bench, net, way), name=f"gradient, {net.name}")
    for net, way in [(net, way) for way in (*WAYS[5:], *(COMPILED if compiled else ())) for net in nets]:
        if bench.elapsed() > budget:
            bench.note(part="skipped", what=f"{net.name}, {way.name}", at=round(bench.elapsed()))
            continue
        guarded(bench, lambda net=net, way=way: rate(bench, net, way, limit=limit), name=f"{net.name}, {way.name}")
    print(f"{bench.elapsed():.0f} s", *table(bench), sep="\n")


if __name__ == "__main__":
    main()
