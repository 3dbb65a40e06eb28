"""Training of denoisers, and of the embedded classifier, on labelled images with a progress bar."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from ndc_core.checkpoints.denoisers import WEIGHTS_FILE, save_denoiser
from ndc_core.checkpoints.image_classifiers import refuse_to_replace, save_small_classifier
from ndc_core.cores import usable_cores
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.training.architectures import SMALL, arguments_of, refuse_unknown
from ndc_core.training.denoiser import TrainingSpec, new_denoiser, train_denoiser
from ndc_core.training.fitting import DivergedError, Machine, TrainingProgress
from ndc_core.training.image_classifier import ClassifierSpec, train_classifier
from pipeline.data.datasets import DATASETS, DatasetSpec, source_of
from pipeline.declaration.config import Device
from pipeline.model_tools.training_images import TrainingImages, labelled_images
from pipeline.model_tools.training_presets import NO_STEPS_LIMIT, PRESETS, TrainingPreset
from pipeline.model_tools.training_state import SECONDS_BETWEEN_CHECKPOINTS, TrainingState
from pipeline.model_tools.training_tracker import Tracking, listeners
from pipeline.progress import SECONDS_BETWEEN_LINES, duration, show
from pipeline.workers.compute import pick_device, set_up_process, threads_for

# A cold compilation takes two minutes; this many images take longer than ten without it.
WORTH_COMPILING_SECONDS, WORTH_COMPILING_IMAGES = 600.0, 5_000_000


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, and how."""

    network: str
    options: Mapping[str, Any]
    spec: TrainingSpec


def plan_of(
    data: DatasetSpec,
    *,
    preset: str | None,
    network: str | None,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    heads: bool,
) -> TrainingPlan:
    """A preset, with what is given in place of its own settings; the embedded data sets have one by default.

    Raises:
        ValueError: there is no such preset, nothing says which network or when to end, a setting is out of range, or
            there are no such data.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; there are: {', '.join(PRESETS)}")
    if preset is None and network is None and data.name not in DATASETS:
        source_of(data)  # refuses what is not a data set at all, before anything else
        raise ValueError(
            f"say what to train on {data.name}: a --preset ({', '.join(PRESETS)}), or a --network and its settings"
        )
    start = own_way(network, settings) if network else PRESETS[preset or "small"]
    name = "small-heads" if heads else start.network
    if heads and start.network not in SMALL:
        raise ValueError(f"class heads are of the small network only, not of {start.network}: train it, then distil it")
    spec = TrainingSpec(**{**start.settings, **settings})
    if spec.batch < 1 or not spec.learning_rate > 0:
        raise ValueError(f"a batch of {spec.batch} at a learning rate of {spec.learning_rate:g} trains nothing")
    return TrainingPlan(name, {**start.options, **options}, spec)


def own_way(network: str, settings: Mapping[str, Any]) -> TrainingPreset:
    """For a network given by name: the defaults of `TrainingSpec`, no augmentation, and the stated length."""
    refuse_unknown(network)
    if not {"steps", "max_seconds"} & set(settings):
        raise ValueError(f"say how long to train {network}: --steps or --max-seconds")
    steps = settings.get("steps", NO_STEPS_LIMIT)
    return TrainingPreset(network, {}, {"augment": "none", "steps": steps, "max_seconds": None})


def train_on(
    data: DatasetSpec,
    out: Path,
    plan: TrainingPlan,
    *,
    device: Device = "auto",
    compiled: bool | None = None,
    tracking: Tracking = "none",
    say: Callable[[str], None] = print,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
) -> None:
    """Trains on the training split (held-out images are never seen) and writes a checkpoint folder.

    A training that was stopped goes on from its last checkpoint; on a CPU, if steps end it, to the same weights as one
    that was not stopped.

    Raises:
        ValueError: images or a network that cannot be used, or a folder that holds a checkpoint or another training.
        TrainingError: the training diverged, or the disk is full; names the last good checkpoint.
    """
    refuse_to_overwrite(out)
    images = labelled_images(data, batch=plan.spec.batch, say=say)
    arguments = fitting_arguments(plan, images)
    machine = machine_for(plan.spec, device=pick_device(device), compiled=compiled)
    say(f"{plan.network} on {images.notes['images']:,} images, {where(machine)}")
    notes = {"training": asdict(plan.spec), **images.notes, "trained_on": where(machine)}

    def write(folder: Path, denoiser: EDMDenoiser, more: dict[str, object]) -> None:
        save_denoiser(folder, denoiser, network=plan.network, arguments=arguments, notes={**notes, **more})

    declaration = {"network": plan.network, "arguments": arguments, **notes}
    state = TrainingState(out, declaration, write=write, seconds_between=seconds_between_checkpoints)
    if begun := state.load():
        say(f"going on after step {begun['step']:,}")
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=usable_cores())
    bar = partial(TrainingBar, plan.spec.steps, device=machine.device)
    with listeners(bar, out=out, declaration=state.declaration, tracking=tracking, say=say) as followers:
        denoiser = run(plan, images, machine, state, begun, on_step=followers.add)
    write(out, denoiser, {})
    state.clear()


def run(
    plan: TrainingPlan,
    images: TrainingImages,
    machine: Machine,
    state: TrainingState,
    begun: dict[str, Any] | None,
    *,
    on_step: Callable[[TrainingProgress], None],
) -> EDMDenoiser:
    """The training itself; raises TrainingError if it diverges."""
    place = place_of_images(images.pixels, machine)
    try:
        return train_denoiser(
            images.pixels.to(place),
            images.labels.to(place),
            num_classes=images.num_classes,
            spec=plan.spec,
            network=plan.network,
            options=plan.options,
            machine=machine,
            state=begun,
            on_step=on_step,
            watch=state.watch,
        )
    except DivergedError as error:
        raise state.ended(error) from error


def place_of_images(pixels: Tensor, machine: Machine) -> str:
    """The GPU, if the images leave most of its memory free."""
    near = machine.device == "cuda" and pixels.numel() < torch.cuda.mem_get_info()[0] / 4
    return machine.device if near else "cpu"


def fitting_arguments(plan: TrainingPlan, images: TrainingImages) -> dict[str, Any]:
    """The arguments of the network's constructor, tried on one image.

    Raises:
        ValueError: the network does not fit the images.
    """
    arguments = arguments_of(
        plan.network,
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        channels=plan.spec.channels,
        options=plan.options,
    )
    sizes: dict[str, Any] = {"image_shape": images.image_shape, "num_classes": images.num_classes}
    denoiser = new_denoiser(plan.network, **sizes, spec=plan.spec, options=plan.options)
    try:
        with torch.no_grad():
            denoiser(torch.zeros(1, *images.image_shape), torch.ones(1), torch.zeros(1, images.num_classes))
    except RuntimeError as error:
        raise ValueError(f"{arguments} do not fit images of shape {images.image_shape}: {error}") from error
    return arguments


def machine_for(spec: TrainingSpec, *, device: str, compiled: bool | None) -> Machine:
    """CUDA is compiled where that pays, unless the user decides."""
    if compiled is None:
        enough = spec.max_seconds is None or spec.max_seconds >= WORTH_COMPILING_SECONDS
        compiled = device == "cuda" and enough and spec.steps * spec.batch >= WORTH_COMPILING_IMAGES
    return Machine(device, channels_last=device == "cuda", compile=compiled)


def where(machine: Machine) -> str:
    """The device and the arithmetic, for people."""
    if machine.device == "cpu":
        return "CPU, float32" + (", compiled" if machine.compile else "")
    compiled = ", compiled" if machine.compile else ""
    return f"GPU ({torch.cuda.get_device_name()}), bfloat16{compiled}"


def train_classifier_on(
    data: DatasetSpec,
    out: Path,
    *,
    settings: dict[str, Any],
    device: Device = "auto",
    say: Callable[[str], None] = print,
) -> None:
    """Trains an image classifier for the baselines on the training split; `settings` are those of `ClassifierSpec`.

    Raises:
        ValueError: images that cannot be used, or a folder that holds a classifier already.
    """
    refuse_to_replace(out)
    spec = ClassifierSpec(**settings)
    images = labelled_images(data, batch=spec.batch, say=say)
    machine = Machine(pick_device(device))
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=threads_for(images.image_shape))
    with TrainingBar(spec.steps, device=machine.device) as bar:
        classifier = train_classifier(
            images.pixels,
            images.labels,
            num_classes=images.num_classes,
            spec=spec,
            machine=machine,
            on_step=bar.add,
        )
    notes = {"training": asdict(spec), **images.notes, "trained_on": where(machine)}
    save_small_classifier(out, classifier, arguments={"channels": spec.channels}, notes=notes)


def refuse_to_overwrite(out: Path) -> None:
    if (out / WEIGHTS_FILE).exists():
        raise ValueError(f"{out} holds a checkpoint already, which runs may depend on; choose another folder")


class TrainingBar:
    """Loss, rate and time left: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, steps: int, what: str = "training", *, device: str = "cpu") -> None:
        self.of_steps = "" if steps == NO_STEPS_LIMIT else f" of {steps:,}"
        self.last_line = 0.0
        columns = TextColumn(what), BarColumn(), TextColumn("{task.fields[text]}")
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task("", total=1.0, text="")
        if device == "cpu" and torch.cuda.is_available():
            print(f"{what} on the CPU: the GPU stays idle", file=sys.stderr)

    def __enter__(self) -> "TrainingBar":
        self.bar.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.bar.stop()

    def add(self, progress: TrainingProgress) -> None:
        rate, left = f"{progress.images_per_second:,.0f} images/s", f"{duration(progress.seconds_left)} left"
        text = f"step {progress.step:,}{self.of_steps}, loss {progress.loss:.3f}, {rate}, {left}"
        self.bar.update(self.task, completed=progress.share_done, text=text)
        due = progress.seconds - self.last_line >= SECONDS_BETWEEN_LINES
        if self.bar.disable and due:
            self.last_line = progress.seconds
            show(text)
