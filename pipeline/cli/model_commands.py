"""Commands about models: train, distil, convert, diagnose. Heavy imports wait for the command that needs them."""

from pathlib import Path
from typing import Any

import click


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return [float(part) for part in value.split(",") if part] if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not of the form 0.5,0.5,0.5", parameter, context)


NUMBERS = Numbers()


@click.command()
@click.option("--dataset", required=True, help="A data set by name: digits or mnist.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new checkpoint.")
@click.option("--heads", type=click.Choice(["classes"]), help="An output for each class instead of a label as input.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps, instead of the default.")
@click.option("--max-seconds", type=click.FloatRange(min=0, min_open=True), help="End at this time, if it comes first.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random.")
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
    dataset: str, out: Path, heads: str | None, classifier: bool, noise: tuple[float, ...], **settings: Any
) -> None:
    """Train the small embedded denoiser, or a small image classifier to compare with."""
    from pipeline.model_tools.train import train_classifier_on, train_on

    if classifier and heads:
        raise click.UsageError("--heads is of denoisers; leave it out, or --classifier.")
    if noise and not classifier:
        raise click.UsageError("--noise is for --classifier: denoisers are trained at all levels of noise.")
    given = {name: value for name, value in settings.items() if value is not None}
    if classifier:
        train_classifier_on(dataset, out, settings=given | ({"noise": noise} if noise else {}))
    else:
        train_on(dataset, out, settings=given, heads=heads == "classes")
    click.echo(f"trained {out}")


@click.command()
@click.argument("teacher")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--data", default="digits", show_default=True, help="Images to learn on: digits, or a path or URI.")
@click.option("--format", "data_format", help="Format of the data, instead of the one guessed.")
@click.option("--limit", type=click.IntRange(min=1), help="At most N images.")
@click.option("--channels", type=click.IntRange(min=8), help="Width of the network, instead of the default.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps, instead of the default.")
@click.option("--max-seconds", type=click.FloatRange(min=0, min_open=True), help="End earlier on a slow machine.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random.")
def distill(
    teacher: str, out: Path, data: str, data_format: str | None, limit: int | None, **settings: float | None
) -> None:
    """Teach a small network with an output for each class what TEACHER, a checkpoint of any kind, says of each.

    The classes are TEACHER's, in its order. Labels of the images play no part.
    """
    from pipeline.data.datasets import DatasetSpec
    from pipeline.model_tools.distill import distill as distill_model

    images = DatasetSpec(data, format=data_format, split="train", limit=limit)
    given = {name: value for name, value in settings.items() if value is not None}
    distill_model(teacher, out, data=images, settings=given, say=click.echo)
    click.echo(f"distilled {out}")


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--classifier", is_flag=True, help="SOURCE is an image classifier, for baselines.")
@click.option("--image-shape", type=NUMBERS, help="Of the classifier's images: channels, height, width, as 3,32,32.")
@click.option("--mean", type=NUMBERS, default="", help="Taken from pixels in [0, 1], as 0.5,0.5,0.5 [default: 0.5].")
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

    With --classifier a TorchScript file, a torch.export file (.pt2), or timm:NAME. These are programs, which are run:
    take in only what you trust.
    """
    from ndc_core.conversion.convert import convert as convert_model

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
    found = convert_model(Path(source), out)
    click.echo(
        f"{out}: {found['network']}, {found['num_classes']} classes, images of {found['image_shape']}, "
        f"{'knows' if found['knows_no_label'] else 'does not know'} images without a label"
    )
    for remark in found["notes"]["remarks"]:
        click.echo(f"note: {remark}")


@click.command()
@click.argument("model")
@click.argument("data")
@click.option(
    "--sigma-pixel", type=float, multiple=True, default=(0.125, 0.25, 0.5), show_default=True, help="As in a run."
)
@click.option(
    "--classifier", type=click.Choice(["apndc", "epndc"]), default="apndc", show_default=True, help="As in a run."
)
@click.option("--unconditional", default="null_label", show_default=True, help="As in a run: a name or a checkpoint.")
@click.option("--weight", default="edm", show_default=True, help="Weight of a level in the score.")
@click.option(
    "--budget", type=click.IntRange(min=1), default=10, show_default=True, help="Levels to evaluate, at most."
)
@click.option(
    "--limit", type=click.IntRange(min=4), default=64, show_default=True, help="Images, spread over the data."
)
@click.option("--draws", type=click.IntRange(min=1), default=4, show_default=True, help="Noise draws of an image.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random.")
@click.option("--format", "data_format", help="Format of the data, instead of the one guessed.")
@click.option("--classes", help="As a run's dataset.classes: sorted, numeric, or a file with a name on each line.")
@click.option("--label-order", type=click.Choice(["devkit", "sorted"]), help="As a run's dataset.label_order.")
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
    """See at which noise levels MODEL tells the classes of DATA apart, and have a grid of levels proposed.

    The training split is taken where the data have one: a grid should not be chosen on the images it is tested on.
    """
    from pipeline.data.classes import class_order
    from pipeline.data.datasets import DatasetSpec
    from pipeline.model_tools.diagnose import DiagnosisSettings, diagnose_model

    order = class_order(classes) if classes else None
    images = DatasetSpec(data, format=data_format, split="train", limit=limit, classes=order, label_order=label_order)
    out = out or Path("runs") / f"diagnose-{Path(model.rstrip('/')).name}"
    diagnose_model(model, images, DiagnosisSettings(**settings), out=out, say=click.echo)
