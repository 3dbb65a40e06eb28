"""Commands about models: train, distil, convert, diagnose. Heavy imports wait for the command that needs them."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli.model_options import (
    AUGMENT,
    BATCH,
    CLASSES,
    DEVICE,
    FILTER,
    FORMAT,
    LABEL_ORDER,
    LEARNING_RATE,
    LIMIT,
    MAX_SECONDS,
    NUMBERS,
    RESIZE,
    SEED,
    STEPS,
    TRACKING,
)


@click.command()
@click.argument("data", required=False)
@click.option("--dataset", help="The same as DATA.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new checkpoint.")
@click.option("--preset", help="small (digits, mnist: the default there), cifar10-small or cifar10.")
@click.option("--network", help="Instead of a preset: small, edm-song, edm-adm or edm2, at the settings below.")
@click.option("--channels", type=click.IntRange(min=1), help="Width of the network.")
@click.option("--channel-mult", type=NUMBERS, help="Width of each level, in channels, as 1,2,2.")
@click.option("--blocks", "num_blocks", type=click.IntRange(min=1), help="Residual blocks of a level.")
@click.option("--attention", "attn_resolutions", type=NUMBERS, help="Sides of the levels with attention, as 16,8.")
@click.option("--heads", type=click.Choice(["classes"]), help="An output for each class instead of a label as input.")
@AUGMENT
@BATCH
@LEARNING_RATE
@STEPS
@MAX_SECONDS
@SEED
@DEVICE
@click.option("--compile/--no-compile", "compiled", default=None, help="Compile the network [default: long GPU runs].")
@TRACKING
@FORMAT
@LIMIT
@RESIZE
@FILTER
@CLASSES
@LABEL_ORDER
@click.option(
    "--classifier", is_flag=True, help="Train a small image classifier, for baselines, instead of a denoiser."
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    multiple=True,
    help="Train the classifier with noise of this sigma, for pixels in [0, 1]; of several, each image gets one.",
)
def train(
    data: str | None,
    dataset: str | None,
    out: Path,
    preset: str | None,
    network: str | None,
    heads: str | None,
    device: Any,
    compiled: bool | None,
    tracking: Any,
    data_format: str | None,
    limit: int | None,
    resize: int | None,
    resample: str | None,
    classes: str | None,
    label_order: Any,
    classifier: bool,
    noise: tuple[float, ...],
    **settings: Any,
) -> None:
    """Train a denoiser on DATA, or a small image classifier to compare with.

    DATA is digits, mnist, or a path, URI or module:function as a run takes it; the training split is taken where there
    is one. The same command goes on with a training that was stopped, from the last of the checkpoints that it keeps
    every few minutes.
    """
    from pipeline.data.classes import class_order
    from pipeline.data.datasets import DatasetSpec
    from pipeline.model_tools.train import plan_of, train_classifier_on, train_on

    if (data is None) == (dataset is None):
        raise click.UsageError("Name the data once: DATA, or --dataset.")
    if preset and network:
        raise click.UsageError("--preset names its network: leave out --network.")
    if classifier and (heads or preset or network):
        raise click.UsageError("--heads, --preset and --network are of denoisers; leave them out, or --classifier.")
    if noise and not classifier:
        raise click.UsageError("--noise is for --classifier: denoisers are trained at all levels of noise.")
    images = DatasetSpec(
        data or dataset or "",
        format=data_format,
        split="train",
        limit=limit,
        resize=resize,
        filter=resample,
        classes=class_order(classes) if classes else None,
        label_order=label_order,
    )
    given = {name: value for name, value in settings.items() if value is not None}
    if classifier:
        given |= {"noise": noise} if noise else {}
        train_classifier_on(images, out, settings=given, device=device, say=click.echo)
    else:
        options: dict[str, Any] = {
            name: given.pop(name) for name in ("channel_mult", "num_blocks", "attn_resolutions") if name in given
        }
        options = {
            name: tuple(map(int, option)) if isinstance(option, list) else option for name, option in options.items()
        }
        plan = plan_of(
            images, preset=preset, network=network, options=options, settings=given, heads=heads == "classes"
        )
        train_on(images, out, plan, device=device, compiled=compiled, tracking=tracking, say=click.echo)
    click.echo(f"trained {out}")


@click.command()
@click.argument("teacher")
@click.argument("data")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--network",
    type=click.Choice(["own", "small"]),
    help="own: TEACHER's with heads [default for edm-song, edm-adm, edm2]; small: the embedded one.",
)
@click.option("--channels", type=click.IntRange(min=8), help="Width of the small network, instead of the default.")
@AUGMENT
@BATCH
@LEARNING_RATE
@STEPS
@MAX_SECONDS
@SEED
@DEVICE
@TRACKING
@FORMAT
@LIMIT
@RESIZE
@FILTER
def distill(
    teacher: str,
    data: str,
    out: Path,
    network: Any,
    device: Any,
    tracking: Any,
    data_format: str | None,
    limit: int | None,
    resize: int | None,
    resample: str | None,
    **settings: Any,
) -> None:
    """Teach a network with an output for each class what TEACHER says of images of DATA.

    TEACHER is a checkpoint of any kind, or module:function.

    The classes are TEACHER's, in its order; labels of the images play no part. The same command goes on with a
    distillation that was stopped, from the last of the checkpoints that it keeps every few minutes.
    """
    from pipeline.data.datasets import DatasetSpec
    from pipeline.model_tools.distill import distill as distill_model

    images = DatasetSpec(data, format=data_format, split="train", limit=limit, resize=resize, filter=resample)
    given = {name: value for name, value in settings.items() if value is not None}
    distill_model(
        teacher,
        out,
        data=images,
        network=network,
        settings=given,
        device=device,
        tracking=tracking,
        say=click.echo,
    )
    click.echo(f"distilled {out}")


@click.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", help="The heads to tune, instead of the run's.")
@click.option("--data", help="Images to learn on, which the run does not certify [default: digits' training images].")
@FORMAT
@LIMIT
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As of `ndc certify`.")
@AUGMENT
@BATCH
@LEARNING_RATE
@click.option("--steps", type=click.IntRange(min=1), help="Training steps at most, instead of the default.")
@MAX_SECONDS
@SEED
@DEVICE
def tune(
    run: str,
    out: Path,
    model: str | None,
    data: str | None,
    data_format: str | None,
    limit: int | None,
    assignments: tuple[str, ...],
    device: Any,
    **settings: Any,
) -> None:
    """Tune class heads for RUN, a preset or TOML file: as the classifier that votes there, at its noise levels.

    The heads stay a denoiser, and votes and certificates mean the same as before. Ends early when held-out
    images say so.
    """
    import json

    from pipeline.declaration.toml_files import load_config
    from pipeline.model_tools.tune import tune_for

    own = [f"model={json.dumps(model)}"] if model else []
    given = {name: value for name, value in settings.items() if value is not None}
    config = load_config(run, [*assignments, *own])
    tune_for(
        config,
        out,
        data=data,
        data_format=data_format,
        limit=limit,
        settings=given,
        device=device,
        say=click.echo,
    )
    click.echo(f"tuned {out}; try it with `ndc certify {run} --model {out}`")


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--classifier", is_flag=True, help="SOURCE is an image classifier, for baselines.")
@click.option("--image-shape", type=NUMBERS, help="Of the classifier's images: channels, height, width, as 3,32,32.")
@click.option(
    "--mean", type=NUMBERS, default="", help="Subtracted from pixels in [0, 1], as 0.5,0.5,0.5 [default: 0.5]."
)
@click.option("--std", type=NUMBERS, default="", help="Pixels are then divided by it [default: 0.5].")
def convert(
    source: str,
    out: Path,
    classifier: bool,
    image_shape: list[float] | None,
    mean: list[float],
    std: list[float],
) -> None:
    """Take in a model of another program: SOURCE becomes the checkpoint folder OUT.

    NVIDIA's EDM and EDM2 pickles, training states, state dicts (.pt, .safetensors) of EDM's networks, and diffusers'
    UNet2DModel folders. Nothing in a pickle is executed.

    SOURCE may be hf://ORG/NAME[@REVISION][/FILE or FOLDER], of the Hugging Face hub.

    With --classifier a TorchScript file, a torch.export file (.pt2), or timm:NAME. These are programs, which are run:
    take in only what you trust.
    """
    from ndc_core.conversion.convert import convert as convert_model
    from pipeline.hub import is_hub
    from pipeline.named_functions import is_function
    from pipeline.progress import show

    named = source
    if is_hub(source):
        from pipeline.model_tools.hub_sources import local_source

        local, named = local_source(source)
        source = str(local)
    if classifier:
        from pipeline.model_tools.convert_classifier import take_in

        shape = image_shape and tuple(int(size) for size in image_shape)
        if shape and (len(shape) != 3 or min(shape) < 1):
            raise click.UsageError("--image-shape is channels, height and width, as 3,32,32.")
        taken = take_in(source, out, image_shape=shape or None, mean=mean, std=std)  # type: ignore[arg-type]
        click.echo(f"{out}: {taken.kind}, {taken.num_classes} classes, images of {taken.image_shape}")
        return
    if image_shape or mean or std:
        raise click.UsageError("--image-shape, --mean and --std are for --classifier.")
    if is_function(source):
        raise click.UsageError(f"{source} is a function, which needs no conversion: give it as --model.")
    description = convert_model(Path(source), out, named=named if is_hub(named) else None, say=show)
    click.echo(
        f"{out}: {description['network']}, {description['num_classes']} classes, "
        f"images of {description['image_shape']}, "
        f"{'knows' if description['knows_no_label'] else 'does not know'} images without a label"
    )
    for remark in description["notes"]["remarks"]:
        click.echo(f"note: {remark}")


@click.command()
@click.argument("model")
@click.argument("data")
@click.option(
    "--sigma-pixel", type=float, multiple=True, default=(0.125, 0.25, 0.5), show_default=True, help="As in a run."
)
@click.option(
    "--classifier",
    "classifiers",
    type=click.Choice(["epndc", "apndc", "apndc-ensemble"]),
    multiple=True,
    default=("epndc", "apndc"),
    show_default=True,
    help="To choose from. The ensemble takes as many passes again for each --sigma-pixel.",
)
@click.option("--unconditional", default="null_label", show_default=True, help="As in a run: a name or a checkpoint.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    default=("edm", "elbo"),
    show_default=True,
    help="Weights of levels in the score, to choose from.",
)
@click.option(
    "--budget", type=click.IntRange(min=1), default=10, show_default=True, help="Levels to evaluate, at most."
)
@click.option(
    "--limit", type=click.IntRange(min=8), default=64, show_default=True, help="Images, spread over the data."
)
@click.option("--draws", type=click.IntRange(min=1), default=4, show_default=True, help="Noise draws of an image.")
@SEED
@FORMAT
@CLASSES
@LABEL_ORDER
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to [default: runs/diagnose-<model>].")
def diagnose(
    model: str,
    data: str,
    data_format: str | None,
    classes: str | None,
    label_order: Any,
    limit: int,
    out: Path | None,
    **settings: Any,
) -> None:
    """See at which noise levels MODEL tells the classes of DATA apart, and have a run proposed: its classifier, weight,
    levels and race, as a TOML file.

    MODEL is a checkpoint, or module:function. The training split is taken where the data have one: nothing should be
    chosen on the images it is tested on.
    """
    from pipeline.data.classes import class_order
    from pipeline.data.datasets import DatasetSpec
    from pipeline.model_tools.diagnose import DiagnosisSettings, diagnose_model
    from pipeline.model_tools.diagnosis_report import report, write

    order = class_order(classes) if classes else None
    images = DatasetSpec(data, format=data_format, split="train", limit=limit, classes=order, label_order=label_order)
    out = out or Path("runs") / f"diagnose-{Path(model.rstrip('/')).name}"
    diagnosis = diagnose_model(model, images, DiagnosisSettings(**settings), say=click.echo)
    write(diagnosis, out)
    report(diagnosis, out, click.echo)
