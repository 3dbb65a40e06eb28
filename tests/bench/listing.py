"""How long listing a Parquet data set of ImageNet's size takes, and how much memory.

    .venv/bin/python -m tests.bench.listing [--rows 1281167]

Makes one file of 1x1 PNGs with paths in row groups of 1,000, with Hugging Face's columns, in a temporary folder, and
passes over its entries without reading one. Another process writes it, so that the memory counted is the listing's.
"""

import io
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.formats import open_source
from pipeline.locations import location

ROWS_OF_A_GROUP = 1000


def pixel(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((1, 1, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_rows(path: Path, rows: int) -> None:
    images = [pixel(value) for value in range(256)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, ROWS_OF_A_GROUP):
            group = range(first, min(first + ROWS_OF_A_GROUP, rows))
            values = [{"bytes": images[row % 256], "path": f"n{row % 1000:08d}_{row}.JPEG"} for row in group]
            writer.write_table(pa.table({"image": values, "label": [row % 1000 for row in group]}, schema=schema))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@click.command()
@click.option("--rows", default=1_281_167, show_default=True)
def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        writer = multiprocessing.get_context("spawn").Process(target=write_rows, args=(path, rows))
        writer.start()
        writer.join()
        before, started = peak_bytes(), time.monotonic()
        listed = sum(1 for _ in open_source(location(path), format=None, split="train").entries())
        seconds, growth = time.monotonic() - started, peak_bytes() - before
        click.echo(f"{listed:,} rows listed in {seconds:.1f} s; peak memory grew by {growth / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
