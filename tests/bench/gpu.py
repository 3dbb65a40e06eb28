"""What a GPU gives, in one script of at most eight minutes: first whether results are right, then how fast they come.

    python -m tests.bench.gpu --out FOLDER [--seconds 440] [--data slice.parquet]     # on a GPU
    python -m tests.bench.gpu --out FOLDER --device cpu --tiny                        # the same parts, tiny networks

Each part is a process of its own, with a share of the time, and a module that can be run alone: `device_exactness`
(golden outputs, rows at other places), `gpu_network` (golden outputs, ways to run EDM's networks), `gpu_votes` (votes
again, in another order and company, then the vote loop), and with --data `gpu_training`. What they print is kept in
FOLDER/NAME.txt, their rows in FOLDER/NAME.json. Needs torch, triton, numpy, scipy, safetensors, jaxtyping and click;
with --data pyarrow and pillow too.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

SECONDS_TO_END = 15  # a part ends by itself when its time is over; what hangs is killed after so many more


@dataclass(frozen=True)
class Part:
    module: str
    share: float  # of the time
    arguments: tuple[str, ...]
    json: bool = True


def parts(*, device: str, tiny: bool, seconds: float, data: Path | None) -> list[Part]:
    size = ("--device", device, *(("--tiny",) if tiny else ()))
    exactness = ("--rows", "4", "--seconds", "0.01") if tiny else ("--rows", "256", "--seconds", "0.1")
    chosen = [
        Part("device_exactness", 0.1, exactness, json=False),
        Part("gpu_network", 0.35, (*size, "--budget", str(0.3 * seconds))),
        Part("gpu_votes", 0.35, (*size, "--seconds", str(0.3 * seconds))),
    ]
    if data:
        chosen.append(Part("gpu_training", 0.2, (*size, "--data", str(data), "--seconds", str(0.1 * seconds))))
    return chosen


def run(part: Part, out: Path, *, seconds: float) -> str:
    """Runs a part and says how it ended; its output goes to the terminal and to its file."""
    command = [sys.executable, "-m", f"tests.bench.{part.module}", *part.arguments]
    if part.json:
        command += ["--out", str(out / f"{part.module}.json")]
    started = time.perf_counter()
    with (out / f"{part.module}.txt").open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
            ended = "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            ended = "took too long"
    return f"{part.module}: {ended}, {time.perf_counter() - started:.0f} s"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Networks of a few channels, for a machine without a GPU.")
@click.option("--seconds", default=440.0, show_default=True, help="For all parts together.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Images to train on.")
def main(out: Path, device: str, tiny: bool, seconds: float, data: Path | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for part in parts(device=device, tiny=tiny, seconds=seconds, data=data):
        said = run(part, out, seconds=part.share * seconds + SECONDS_TO_END)
        click.echo(f"== {said}\n{(out / f'{part.module}.txt').read_text()}")


if __name__ == "__main__":
    main()
