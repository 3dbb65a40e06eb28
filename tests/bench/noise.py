"""What integer noise costs in place of floating-point noise: votes of the demo, turn by turn.

.venv/bin/python -m tests.bench.noise [--pairs 7]
"""

import statistics
import time

import click
import torch

from ndc_core.voting import count_votes
from pipeline.declaration.toml_files import load_config
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.models import build_classifier
from tests.bench.bare import MODEL
from tests.support.small_runs import digits

VOTES = 1000


@click.command()
@click.option("--pairs", default=7, show_default=True)
def main(pairs: int) -> None:
    if not MODEL.is_dir():
        raise click.ClickException(f"{MODEL} is missing; run `make demo` first")
    keep_freed_memory()
    torch.set_num_threads(1)
    classifier = build_classifier(load_config("demo"), device="cpu")
    image = digits("test")[0].image

    def seconds(noise: str, pair: int) -> float:
        started = time.perf_counter()
        count_votes(
            classifier,
            image,
            sigma_pixel=0.25,
            noise=noise,
            seed=pair,
            image_id="a",
            phase="estimation",
            draws=range(VOTES),
        )
        return time.perf_counter() - started

    seconds("integer", 0)
    ratios = []
    for pair in range(pairs):
        first, second = ("integer", "float") if pair % 2 else ("float", "integer")
        taken = {first: seconds(first, pair), second: seconds(second, pair)}
        ratios.append(taken["integer"] / taken["float"])
        click.echo(f"{pair + 1}: integer {taken['integer']:.3f} s, float {taken['float']:.3f} s for {VOTES:,} votes")
    click.echo(f"integer / float: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
