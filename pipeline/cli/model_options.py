"""Options that several commands about models share."""

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

AUGMENT = click.option("--augment", help="none, jitter (drawn digits) or flip-and-shift (photographs).")
BATCH = click.option("--batch", type=click.IntRange(min=1), help="Images of a step.")
LEARNING_RATE = click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Its highest value.")
STEPS = click.option("--steps", type=click.IntRange(min=1), help="Training steps, instead of the default.")
MAX_SECONDS = click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), help="End at this time, if it comes first."
)
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random.")
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="auto takes CUDA where torch can use it.",
)
TRACKING = click.option(
    "--tracking",
    type=click.Choice(["mlflow", "none"]),
    default="mlflow",
    show_default=True,
    help="Where loss and rate are logged; training goes on without a server that does not answer.",
)
FORMAT = click.option("--format", "data_format", help="Format of the data, instead of the one guessed.")
LIMIT = click.option("--limit", type=click.IntRange(min=1), help="At most N images.")
RESIZE = click.option("--resize", type=click.IntRange(min=1), help="As a run's dataset.resize, with --filter.")
FILTER = click.option("--filter", "resample", help="As a run's dataset.filter.")
CLASSES = click.option(
    "--classes", help="As a run's dataset.classes: sorted, numeric, or a file with a name on each line."
)
LABEL_ORDER = click.option(
    "--label-order", type=click.Choice(["devkit", "sorted"]), help="As a run's dataset.label_order."
)
