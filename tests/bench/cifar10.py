"""The paper's experiment on CIFAR-10 with a small model: every number of docs/cifar10.md.

    python -m tests.bench.cifar10 TEACHER TRAIN TEST --out FOLDER [--parts plain,heads,votes,certify]  # one GPU
    python -m tests.bench.cifar10 TEACHER TRAIN TEST --out FOLDER --cpu --parts certify           # fewer, on two cores

TEACHER is a conditional checkpoint, TRAIN and TEST are CIFAR-10 in any format that a run reads
(shared/models/cifar10-small, shared/data/cifar10-jpeg-train.parquet and -test.parquet). Parts may be run one after the
other, with the same FOLDER:

  plain    image classifiers trained without noise and with that of each level (`ndc train --classifier`);
  heads    class heads distilled from TEACHER (`ndc distill`), and these tuned for the preset fast-cifar10 (`ndc tune`);
  votes    how often one vote is right (`tests.bench.cifar10_votes`);
  certify  the same test images certified by each method (`ndc certify`), beside each other, until --seconds are over,
           and a report of what is complete by then.

Two cores make some ten evaluations a second. With --cpu, `certify` takes two to three hours for a few images with few
votes, one method after the other, all of them complete (--method chooses); it needs a FOLDER with the models that a GPU
made, since an hour of two cores is not enough to train them. All settings were chosen before any test image was looked
at. What a part prints is in FOLDER/NAME.txt.
"""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click

from ndc_core.radius_curves import interval_of

SIGMAS = (0.125, 0.25, 0.5)
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
PRESET = "fast-cifar10"
SECONDS_TO_STOP = 45


@dataclass(frozen=True)
class Size:
    """The work for a kind of machine."""

    heads_seconds: float
    tuning_seconds: float
    classifier_seconds: float
    batch: int
    images_of_heads: int
    images_of_teacher: int
    compute: tuple[str, ...]
    by_teacher: tuple[str, ...]  # how its certificates differ from the preset
    by_heads: tuple[str, ...] = ()
    by_all: tuple[str, ...] = ()
    certify_seconds: float = math.inf
    farthest: float = 3.0  # the largest radius to declare, in multiples of sigma
    images_to_train: tuple[str, ...] = ()


GPU = Size(
    heads_seconds=130,
    tuning_seconds=120,
    classifier_seconds=25,
    batch=128,
    images_of_heads=512,
    images_of_teacher=64,
    compute=("compute.precision='float16'", "compute.channels_last=true", "compute.rows_per_pass=2048"),
    by_teacher=("--set", "votes.estimation=250", "--radii", "0,0.25,0.5"),
    certify_seconds=200,
)
CPU = Size(
    heads_seconds=900,
    tuning_seconds=900,
    classifier_seconds=120,
    batch=16,
    images_of_heads=20,
    images_of_teacher=8,
    compute=("compute.channels_last=true", "compute.rows_per_pass=32"),
    by_teacher=(
        *("--sigma-pixel", "0.25", "--radii", "0", "--set", "certificate.method='cohen'"),
        *("--set", "votes.selection=5", "--set", "votes.estimation=20"),
    ),
    by_heads=("--set", "classifier.grid.points=4"),
    by_all=("--radii", "0,0.25,0.5", "--set", "votes.selection=20", "--set", "votes.estimation=250"),
    farthest=1.7,
    images_to_train=("--limit", "10000"),
)
TINY = replace(
    CPU,
    heads_seconds=20,
    tuning_seconds=20,
    classifier_seconds=5,
    batch=8,
    images_of_heads=2,
    images_of_teacher=1,
    images_to_train=("--limit", "500"),
)


@dataclass(frozen=True)
class Bench:
    teacher: Path
    train: Path
    test: Path
    out: Path
    size: Size

    @property
    def heads(self) -> Path:
        return self.out / "heads"

    @property
    def tuned(self) -> Path:
        return self.out / "tuned"

    def classifier(self, noise: float) -> Path:
        return self.out / f"classifier-{noise:g}"

    def ndc(self, name: str, *arguments: object) -> subprocess.Popen[str]:
        """A command of ours, under way; what it prints goes to FOLDER/NAME.txt."""
        return self.python(name, "pipeline.cli", *arguments)

    def python(self, name: str, module: str, *arguments: object) -> subprocess.Popen[str]:
        log = (self.out / f"{name}.txt").open("w")
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def waited(name: str, process: subprocess.Popen[str], started: float) -> None:
    code = process.wait()
    click.echo(f"{name}: {'done' if code == 0 else f'ended with {code}'}, {time.perf_counter() - started:.0f} s")


def train_classifiers(bench: Bench) -> None:
    """In parallel: none of them fills a GPU."""
    size, started = bench.size, time.perf_counter()
    classifiers = {
        f"classifier-{noise:g}": bench.ndc(
            f"classifier-{noise:g}",
            *("train", bench.train, "--classifier", "--noise", noise, "--channels", 64, "--batch", 256),
            *("--augment", "flip-and-shift", "--steps", 20000, "--max-seconds", size.classifier_seconds),
            *("--out", bench.classifier(noise), *size.images_to_train),
        )
        for noise in (0.0, *SIGMAS)
    }
    for name, process in classifiers.items():
        waited(name, process, started)


def make_heads(bench: Bench) -> None:
    size, started = bench.size, time.perf_counter()
    heads = bench.ndc(
        "distill",
        *("distill", bench.teacher, bench.train, bench.heads, "--batch", size.batch),
        *("--max-seconds", size.heads_seconds, *size.images_to_train),
    )
    waited("distill", heads, started)
    tuned = bench.ndc(
        "tune",
        *("tune", PRESET, bench.tuned, "--model", bench.heads, "--data", bench.train, "--batch", size.batch),
        *("--augment", "flip-and-shift", "--steps", 20000, "--max-seconds", size.tuning_seconds),
        *size.images_to_train,
    )
    waited("tune", tuned, started)


def count_votes(bench: Bench) -> None:
    started = time.perf_counter()
    process = bench.python(
        "votes",
        "tests.bench.cifar10_votes",
        *(bench.teacher, bench.heads, bench.tuned, bench.test, "--out", bench.out / "votes.json"),
        *("--images", 2 * bench.size.images_of_heads, "--teacher-images", 4 * bench.size.images_of_teacher),
        *(argument for noise in (0.0, *SIGMAS) for argument in ("--classifier", bench.classifier(noise))),
    )
    waited("votes", process, started)
    click.echo((bench.out / "votes.txt").read_text())


def methods(bench: Bench) -> dict[str, tuple[str, ...]]:
    """The settings that differ from the preset, by method."""
    size, teacher = bench.size, ("--model", str(bench.teacher))
    many = ("--limit", str(size.images_of_heads), *size.by_all)
    few = (*teacher, "--limit", str(size.images_of_teacher), *size.by_teacher)
    plain = {}
    for noise in SIGMAS:
        radii = ",".join(f"{radius:g}" for radius in RADII if radius < size.farthest * noise)
        own = ("--model", str(bench.classifier(noise)), "--sigma-pixel", f"{noise:g}", "--radii", radii)
        plain[f"rs-{noise:g}"] = (*many, *own, "--set", "classifier={name='plain'}")
    denoised = f"classifier={{name='denoise', network='{bench.classifier(0.0)}'}}"
    return {
        **plain,
        "tuned": (*many, *size.by_heads, "--model", str(bench.tuned)),
        "denoise": (*many, *teacher, "--set", denoised),
        "ensemble": few,
        "epndc": (*few, "--set", "classifier.name='epndc'"),
        "heads": (*many, *size.by_heads, "--model", str(bench.heads)),
    }


def certify(bench: Bench, names: list[str], seconds: float) -> None:
    """All methods in parallel on a GPU, one after the other on a CPU."""
    chosen = names or [*methods(bench)]
    for together in [chosen] if bench.size is GPU else [[name] for name in chosen]:
        certify_together(bench, together, seconds)
    click.echo(table_of(bench, chosen))


def table_of(bench: Bench, names: list[str]) -> str:
    """What the runs certified of their complete images, with 95 % intervals of Clopper and Pearson."""
    lines = [
        "| method | sigma | images | votes | evaluations | seconds | " + " | ".join(f"r = {r:g}" for r in RADII) + " |",
        "|---" * (6 + len(RADII)) + "|",
    ]
    for name in names:
        summary = bench.out / "runs" / name / "partial" / "summary.json"
        for level in json.loads(summary.read_text())["levels"] if summary.exists() else ():
            shares, images = level["certified_accuracy"], level["images"]
            cells = [with_interval(shares[str(radius)], images) if str(radius) in shares else "" for radius in RADII]
            cost = [f"{level[f'{what}_per_image']:,.0f}" for what in ("votes", "evaluations", "seconds")]
            lines.append("| " + " | ".join([name, level["name"], str(images), *cost, *cells]) + " |")
    return "\n".join(lines)


def with_interval(share: float, images: int) -> str:
    low, high = interval_of(round(share * images), images)
    return f"{100 * share:.0f} ({100 * low:.0f}-{100 * high:.0f})"


def certify_together(bench: Bench, names: list[str], seconds: float) -> None:
    """A run that is not complete in time is stopped, and reported as far as it is."""
    started, under_way = time.perf_counter(), {}
    settings = [argument for key in (*bench.size.compute, "tracking='none'") for argument in ("--set", key)]
    if bench.size is GPU:
        share = f"compute.gpus_per_actor={0.98 / len(names):.2f}"
        settings += ["--set", share, "--set", "compute.actors=1"]
    for name in names:
        run = ("--run", bench.out / "runs" / name, "--data", bench.test)
        under_way[name] = bench.ndc(f"certify-{name}", "certify", PRESET, *run, *settings, *methods(bench)[name])
    while any(process.poll() is None for process in under_way.values()) and time.perf_counter() - started < seconds:
        time.sleep(0.5)
    for process in under_way.values():
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for name, process in under_way.items():
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
        waited(f"certify-{name}", process, started)
    reports = {
        name: bench.ndc(f"report-{name}", "report", bench.out / "runs" / name, "--partial") for name in under_way
    }
    for name, process in reports.items():
        waited(f"report-{name}", process, started)
        click.echo((bench.out / f"report-{name}.txt").read_text())


@click.command(help=__doc__)
@click.argument("teacher", type=click.Path(path_type=Path))
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("test", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--parts", default="plain,heads,votes,certify", show_default=True)
@click.option("--cpu", "machine", flag_value="cpu", help="Fewer images and votes, for two cores.")
@click.option("--tiny", "machine", flag_value="tiny", help="A trial of the script.")
@click.option("--seconds", type=float, help="For the part `certify`: then runs are stopped.  [200 on a GPU]")
@click.option("--method", "names", multiple=True, help="For the part `certify`, instead of all.")
def main(
    teacher: Path,
    train: Path,
    test: Path,
    out: Path,
    parts: str,
    machine: str | None,
    seconds: float | None,
    names: tuple[str, ...],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(teacher, train, test, out, {"cpu": CPU, "tiny": TINY}.get(machine or "", GPU))
    for part in parts.split(","):
        if part == "plain":
            train_classifiers(bench)
        elif part == "heads":
            make_heads(bench)
        elif part == "votes":
            count_votes(bench)
        elif part == "certify":
            certify(bench, [*names], seconds or bench.size.certify_seconds)
        else:
            raise click.UsageError(f"no part {part!r}: plain, heads, votes or certify")


if __name__ == "__main__":
    main()
