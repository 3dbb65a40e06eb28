"""What `pipeline.workers.memory.keep_freed_memory` brings: rows per second of the digits denoiser with and without it.

.venv/bin/python -m tests.bench.allocator [--pairs 5] [--rows 128]
"""

import statistics

import click

from tests.bench.bare import MODEL, bare_rate


@click.command()
@click.option("--pairs", default=5, show_default=True)
@click.option("--rows", default=128, show_default=True)
def main(pairs: int, rows: int) -> None:
    if not MODEL.is_dir():
        raise click.ClickException(f"{MODEL} is missing; run `make demo` first")
    ratios = []
    for _ in range(pairs):
        without, with_it = bare_rate(rows, keep_memory=False), bare_rate(rows, keep_memory=True)
        ratios.append(with_it / without)
        click.echo(f"without {without:,.0f}/s, with {with_it:,.0f}/s, {ratios[-1]:.2f}")
    click.echo(f"with / without: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
