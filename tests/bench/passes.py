"""How full an actor's passes are in a sequential run, by how many images it is sent at a time: counts, no times.

    .venv/bin/python -m tests.bench.passes [--images 64] [--rows 2048]

The preset `fast` on held-out digits, through an actor in this process (`models/digits-heads`), with as many rows a pass
as a GPU takes. A pass costs a GPU the same with few rows of votes as with many: one over the share of full rows is
how many times longer the votes take. Rows that pad a pass are counted here, and not computed.
"""

import tempfile
from typing import Any

import click
import torch

from ndc_core.models import forward_passes as passes
from pipeline.declaration.config import RunConfig
from pipeline.declaration.toml_files import load_config
from pipeline.driver.certify import FILLS_OF_A_CALL, IMAGES_TOGETHER, PASSES_OF_A_GPU, units_of_passes
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.workers.vote_actor import SequentialVoteActor, VoterSettings
from tests.support.small_runs import digits


def share_of_full_rows(config: RunConfig, *, together: int | None, fill: list[int]) -> tuple[int, float]:
    """Passes, and the share of their rows that votes asked for; by default, as many images as a GPU's actor gets."""
    rows, own = list[int](), passes._Gatherer._evaluate

    def evaluate(gatherer: Any, parts: Any) -> Any:
        rows.append(sum(window.stop - window.start for _, window in parts))
        return own(gatherer, parts)

    with tempfile.TemporaryDirectory() as folder:
        run = prepare(config, location(folder))
        RunStore(folder).pictures.write(digits("test", limit=config.dataset.limit), expected=run.records)
        settings = VoterSettings(config, folder, run.declaration, run.fingerprint, run.num_classes)
        record_of = {record.image_id: record for record in run.records}
        first = {unit.cell: unit for unit in reversed(list(run.units.values()))}
        place = {image_id: number for number, image_id in enumerate(record_of)}
        cells = sorted(first.values(), key=lambda unit: (place[unit.image_id], -unit.sigma_pixel))
        fill.append(units_of_passes(run.declaration, passes=PASSES_OF_A_GPU, follows=True))
        actor = SequentialVoteActor(settings)
        ahead, padded = passes.PASSES_AHEAD, passes._padded
        passes._Gatherer._evaluate = evaluate  # type: ignore[method-assign]
        passes.PASSES_AHEAD, passes._padded = {"cpu": ahead["cuda"]}, lambda rows, count: rows
        try:
            size = together or FILLS_OF_A_CALL * fill[-1]
            for begin in range(0, len(cells), size):
                rows_sent = [(unit, record_of[unit.image_id]) for unit in cells[begin : begin + size]]
                for receipt in actor.receipts(rows_sent):
                    assert not receipt.error, receipt.error
        finally:
            passes._Gatherer._evaluate = own  # type: ignore[method-assign]
            passes.PASSES_AHEAD, passes._padded = ahead, padded
    return len(rows), sum(rows) / (len(rows) * (config.compute.rows_per_pass or 1))


@click.command(help=__doc__)
@click.option("--images", default=64, show_default=True)
@click.option("--rows", default=2048, show_default=True)
def main(images: int, rows: int) -> None:
    torch.set_num_threads(1)
    sizes = [f"dataset.limit={images}", f"compute.rows_per_pass={rows}", "votes.per_unit=5000", "tracking='none'"]
    config = load_config("fast", sizes)
    click.echo("| images and noise levels at a time | passes | full rows |\n|---|---|---|")
    fill: list[int] = []
    for together in (IMAGES_TOGETHER, None):
        count, share = share_of_full_rows(config, together=together, fill=fill)
        click.echo(f"| {together or FILLS_OF_A_CALL * fill[-1]:,} | {count:,} | {share:.1%} |")


if __name__ == "__main__":
    main()
