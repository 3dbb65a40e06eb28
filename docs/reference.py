"""Writes docs/reference.md from the code: every command, key, preset, sweep, exit code and environment variable.

.venv/bin/python -m docs.reference
"""

from collections.abc import Iterator
from importlib import resources
from itertools import takewhile
from pathlib import Path

import click

from docs import environment, keys
from pipeline.cli import main
from pipeline.cli.commands import EXIT_CODES
from pipeline.cli.options import KEY_OF
from pipeline.declaration.config import RunConfig
from pipeline.declaration.toml_files import load_config, preset_names
from pipeline.sweep.file import SweepFile, load_sweep, sweep_names

PAGE = Path(__file__).parent / "reference.md"
LEAD = """\
# Reference

Every command, key, preset, sweep, exit code and environment variable. `make docs` writes this page from the code; a
test fails when it is not current. What the keys do together: [running.md](running.md), [data.md](data.md),
[models.md](models.md), [cost.md](cost.md), [certificates.md](certificates.md)."""
KEYS_LEAD = """\
A run is described by a TOML file. `--set section.key=VALUE` overrides any key; an unknown key is refused. A key without
a default must be given. Sections of which the default is empty are left out unless they are wanted."""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def as_text(help_text: str) -> str:
    """One line of Markdown, in which <x> is not a tag."""
    return " ".join(help_text.split()).replace("<", "\\<")


def paragraphs(help_text: str) -> str:
    return "\n\n".join(as_text(paragraph) for paragraph in help_text.split("\n\n"))


def option_rows(command: click.Command, context: click.Context) -> list[list[str]]:
    rows = []
    sets_keys = any(parameter.name == "assignments" for parameter in command.params)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or isinstance(parameter, click.Argument):  # the usage and the help describe arguments
            continue
        name, meaning = record
        key = KEY_OF.get(parameter.name or "") if sets_keys else None
        rows.append([f"`{name}`", as_text(meaning) + (f" Sets `{key}`." if key else "")])
    return rows


def commands() -> Iterator[str]:
    yield "## Commands"
    with click.Context(main, info_name="ndc") as context:
        yield "`ndc COMMAND --help` prints the same. Before the command:"
        yield table(["option", "meaning"], option_rows(main, context))
        for name, command in main.commands.items():
            with click.Context(command, info_name=name, parent=context) as command_context:
                usage = " ".join(["ndc", name, *command.collect_usage_pieces(command_context)])
                yield f"### ndc {name}"
                yield f"    {usage}"
                yield paragraphs(command.help or "")
                if rows := option_rows(command, command_context):
                    yield table(["option", "meaning"], rows)


def exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    yield table(["code", "meaning"], [[str(code), meaning] for code, meaning in EXIT_CODES.items()])


def configuration() -> Iterator[str]:
    yield "## Keys"
    yield KEYS_LEAD
    for section in keys.sections(RunConfig):
        yield f"### {section.title}"
        yield section.lead
        if section.rows:
            yield table(["key", "type", "default", "meaning"], section.rows)


def presets() -> Iterator[str]:
    yield "## Presets"
    yield "`ndc certify PRESET`; each is a file in `pipeline/presets/`, whose comments say more."
    rows = []
    for name in preset_names():
        config = load_config(name)
        comment = (resources.files("pipeline") / "presets" / f"{name}.toml").read_text()
        levels = ", ".join(f"{sigma:g}" for sigma in config.sigma_pixel)
        rows.append([f"`{name}`", first_sentence(comment), config.classifier.name, config.certificate.method, levels])
    yield table(["preset", "what it is", "classifier", "certificate", "sigma_pixel"], rows)


def first_sentence(toml: str) -> str:
    """The first sentence of the comment at the top of a file."""
    comment = takewhile(lambda line: line.startswith("# "), toml.splitlines())
    sentence, _, _ = " ".join(line[2:] for line in comment).partition(". ")
    return sentence.rstrip(".") + "."


def sweeps() -> Iterator[str]:
    yield "## Sweeps"
    yield "`ndc sweep SWEEP` or a TOML file with these keys; [sweeps.md](sweeps.md) has an example."
    yield as_text(SweepFile.__doc__ or "")
    for section in keys.sections(SweepFile):
        if section.title != "Top level":
            yield f"### {section.title}"
            yield section.lead
        yield table(["key", "type", "default", "meaning"], section.rows)
    yield "Each packaged sweep is a file in `pipeline/presets/sweeps/`:"
    rows = []
    for name in sweep_names():
        comment = (resources.files("pipeline") / "presets/sweeps" / f"{name}.toml").read_text()
        rows.append([f"`{name}`", first_sentence(comment), str(len(load_sweep(name).points))])
    yield table(["sweep", "what it is", "runs"], rows)


def environment_variables() -> Iterator[str]:
    yield "## Environment variables"
    yield environment.LEAD
    yield table(["variable", "meaning", "unless set", "reaches actors"], environment.rows())


def text() -> str:
    parts = [LEAD, *commands(), *exit_codes(), *configuration(), *presets(), *sweeps(), *environment_variables()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
    click.echo(f"wrote {PAGE}")
