"""Options that several commands share, and the run that they name."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

if TYPE_CHECKING:
    from upath import UPath

    from pipeline.declaration.config import RunConfig

# Flags of `ndc certify` that are short for a key of the configuration.
KEY_OF = {
    "model": "model",
    "dataset": "dataset.name",
    "data_format": "dataset.format",
    "limit": "dataset.limit",
    "every": "dataset.every",
    "offset": "dataset.offset",
    "skip_corrupt": "dataset.skip_corrupt",
}
PRESET_OF = {"cohen": "demo", "sequential": "sequential", "lipschitz": "lipschitz"}


class PathOrUri(click.ParamType):
    """A path, or a URI that fsspec knows."""

    name = "path or URI"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        from pipeline.locations import location

        return location(value) if isinstance(value, str) else value


PATH_OR_URI = PathOrUri()


def run_options(command: Any) -> Any:
    """The options that say which run is meant, for `certify` and `plan`."""
    for option in reversed(
        [
            click.argument("source", metavar="[PRESET_OR_TOML_OR_RUN]", required=False),
            click.option("--certificate", "method", help="cohen, sequential or lipschitz."),
            click.option("--radii", help="Radii of the table, and the sequential certificate's aims, as 0.25,0.5."),
            click.option(
                "--run", "folder", type=PATH_OR_URI, help="Run folder, here or s3://... [default: runs/<preset>]."
            ),
            click.option("--model", help="Folder or URI of a checkpoint, hf://ORG/NAME, or module:function."),
            click.option(
                "--data", "dataset", help="Images: digits, a path or URI (hf://datasets/... too), or module:function."
            ),
            click.option("--format", "data_format", help="Format of the data, instead of the one guessed."),
            click.option("--limit", type=click.IntRange(min=1), help="At most N images."),
            click.option("--every", type=click.IntRange(min=1), help="Only every N-th image."),
            click.option("--offset", type=click.IntRange(min=0), help="Leave out the first N images."),
            click.option("--ids", type=click.File("rb"), help="A file with the ids of the images to take, one a line."),
            click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded."),
            click.option(
                "--sigma-pixel", type=float, multiple=True, help="Noise level for pixels in [0, 1]; repeatable."
            ),
            click.option(
                "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Override a key: votes.estimation=99."
            ),
        ]
    ):
        command = option(command)
    return command


def as_toml(value: Any) -> str:
    """A string, number or list of strings. Escapes are those of JSON, without surrogate pairs, which TOML lacks."""
    return json.dumps(value, ensure_ascii=False)


def chosen_run(
    source: str | None,
    method: str | None,
    radii: str | None,
    folder: "UPath | None",
    ids: BinaryIO | None,
    sigma_pixel: tuple[float, ...],
    assignments: tuple[str, ...],
    **flags: Any,
) -> "tuple[RunConfig, UPath]":
    """The configuration and the folder that the options of `run_options` name."""
    from pipeline.data.datasets import ids_in
    from pipeline.declaration.toml_files import load_config
    from pipeline.locations import exists, location

    source = source or PRESET_OF.get(method or "cohen", "demo")
    if exists(location(source) / "run.toml"):
        source, folder = f"{source.rstrip('/')}/run.toml", folder or location(source)
    folder = folder or location("runs") / Path(source).stem
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    overrides = [f"{KEY_OF[name]}={as_toml(value)}" for name, value in given.items()]
    overrides += [f"certificate.method={as_toml(method)}"] if method else []
    overrides += [f"certificate.radii=[{radii}]"] if radii else []
    overrides += [f"sigma_pixel={list(sigma_pixel)}"] if sigma_pixel else []
    if ids:
        wanted = ids_in(ids.read(), where=f"--ids {ids.name}")
        every_one = ["dataset.offset=0", "dataset.every=1", f"dataset.limit={len(wanted)}"]  # whatever the preset has
        overrides = [f"dataset.ids={as_toml(wanted)}", *every_one, *overrides]
    return load_config(source, [*assignments, *overrides]), folder
