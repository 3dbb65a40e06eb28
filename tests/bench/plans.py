"""What `ndc plan` says beside what the run then takes: evaluations, and seconds of votes.

    .venv/bin/python -m tests.bench.plans [--only fast ...]

Five runs on the embedded digits, with the models of `make demo`. Seconds are from the start of a run's first unit to
the end of its last: a plan knows nothing of how long Ray takes to start.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.store.run_store import RunStore

RUNS = {
    "fast, 40 images": ("fast", "--limit", "40"),
    "fast, 500 votes each": ("fast", "--limit", "40", "--certificate", "cohen", "--set", "votes.estimation=500"),
    "demo, 4 images": ("demo", "--limit", "4"),
    "sequential, 6 images": ("sequential", "--limit", "6"),
    "lipschitz, 4 images": ("lipschitz", "--limit", "4"),
}


def ndc(*arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--set", "tracking='none'"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def votes_of(folder: Path) -> tuple[int, float]:
    """Evaluations of a run, and the seconds from its first unit to its last."""
    store = RunStore(folder)
    evidence = [*store.all_evidence(fingerprint=store.manifest()["fingerprint"])]
    first = min(item.finished_unix - item.seconds for item in evidence)
    return sum(item.evaluations for item in evidence), max(item.finished_unix for item in evidence) - first


def compared(name: str, plan: dict[str, Any], evaluations: int, seconds: float) -> str:
    expected, low, high = (3600 * plan["wall_hours"][key] for key in ("expected", "low", "high"))
    counted = plan["evaluations"]
    return (
        f"| {name} | {counted['expected']:,.0f} ({counted['low']:,.0f} to {counted['high']:,.0f}) | {evaluations:,} "
        f"| {expected:,.0f} ({low:,.0f} to {high:,.0f}) | {seconds:,.0f} |"
    )


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Presets, instead of all.")
def main(only: tuple[str, ...]) -> None:
    click.echo("| run | evaluations planned | evaluations | seconds planned | seconds |\n|---|---|---|---|---|")
    for name, arguments in RUNS.items():
        if only and arguments[0] not in only:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            plan = json.loads(ndc("plan", *arguments, "--run", str(folder), "--json"))
            ndc("certify", *arguments, "--run", str(folder))
            click.echo(compared(name, plan, *votes_of(folder)))


if __name__ == "__main__":
    main()
