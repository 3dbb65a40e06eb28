"""Commands that say what there is: presets to copy, and what this machine has."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import PATH_OR_URI

if TYPE_CHECKING:
    from upath import UPath


@click.group(invoke_without_command=True)
@click.pass_context
def presets(context: click.Context) -> None:
    """List the presets of `ndc certify` and of `ndc sweep`."""
    from pipeline.declaration.toml_files import FOLDERS, first_words, packaged_names

    if context.invoked_subcommand is None:
        for command, folder in FOLDERS.items():
            click.echo(f"ndc {command}")
            for name in packaged_names(folder):
                click.echo(f"  {name:18}{first_words(name)}")


@presets.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a preset, to copy: `ndc presets show demo > mine.toml`."""
    from pipeline.declaration.toml_files import packaged_text

    click.echo(packaged_text(name), nl=False)


@click.command()
@click.option("--run", "folder", type=PATH_OR_URI, help="Check that this folder or URI for runs can be written.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(folder: "UPath | None", as_json: bool) -> None:
    """Say what this machine has, and what is missing: versions, GPUs, Ray, MLflow, a folder for runs.

    Starts and writes nothing. Exits with 1 if something would stop a run.
    """
    from pipeline.declaration.toml_files import load_config
    from pipeline.driver.doctor import findings

    listed = list(findings(load_config("demo"), folder))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in listed], indent=2))
    for finding in () if as_json else listed:
        click.echo(f"{finding.what:15}{'cannot be used: ' * finding.trouble}{finding.text}")
    sys.exit(int(any(finding.trouble for finding in listed)))
