"""A run's own copy of its images, as they are certified: actors and reports no longer need the data set.

images.parquet             ids, labels, hashes and places, in the order of the data
images-1.parquet           those of a run that has grown once, and so on
images/00000.parquet       pixels of the images with the places 0 to 255, and so on
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count, islice

import numpy as np
import pyarrow as pa
from upath import UPath

from pipeline.data.datasets import Example, ImageRecord
from pipeline.locations import LocationError, publish, read
from pipeline.store.parquet_io import parquet_bytes, parquet_table

IMAGES_OF_A_SHARD = 256
SHARDS_KEPT, IMAGES_KEPT = 4, 512  # an actor comes back to images that it has begun, which may lie in any shard

RECORD_SCHEMA = pa.schema(
    [("index", pa.int64()), ("image_id", pa.string()), ("label", pa.int32()), ("sha256", pa.string())]
)
PIXEL_SCHEMA = pa.schema([("image_id", pa.string()), ("shape", pa.list_(pa.int32())), ("pixels", pa.binary())])


class ChangedImageError(ValueError):
    """An image is not the one that the run was declared with."""


class RunImages:
    """Writes a run's images once, and reads them in any order, from several threads too; the images and shards that
    were read last are kept."""

    def __init__(self, run_folder: UPath) -> None:
        self.folder = run_folder
        self._shard = lru_cache(maxsize=SHARDS_KEPT)(self._read_shard)
        self.pixels = lru_cache(maxsize=IMAGES_KEPT)(self._read_pixels)

    def _shard_path(self, number: int) -> UPath:
        return self.folder / "images" / f"{number:05d}.parquet"

    def _records_path(self, grown: int) -> UPath:
        return self.folder / (f"images-{grown}.parquet" if grown else "images.parquet")

    def write(self, examples: Iterable[Example], *, expected: list[ImageRecord]) -> None:
        """Copies the images, and then lists them.

        Raises:
            ChangedImageError: they are not those that were listed before.
        """
        self.copy(examples, expected=expected)
        self.list_records(expected)

    def copy(self, examples: Iterable[Example], *, expected: Sequence[ImageRecord]) -> None:
        """Copies images shard by shard to the places that their records name: one after the other, from the beginning
        of a shard.

        Raises:
            ChangedImageError: they are not those that were listed before.
        """
        stream, reached = iter(examples), 0
        while shard := list(islice(stream, IMAGES_OF_A_SHARD)):
            wanted = list(expected[reached : reached + len(shard)])
            records = [example.record(record.index) for example, record in zip(shard, wanted, strict=False)]
            if len(shard) != len(wanted) or records != wanted:
                break
            publish(self._shard_path(wanted[0].index // IMAGES_OF_A_SHARD), parquet_bytes(_pixel_table(shard)))
            reached += len(shard)
        if shard or reached != len(expected):
            raise ChangedImageError("the data changed while they were read; run the command again")

    def list_records(self, records: Sequence[ImageRecord], *, grown: int = 0) -> None:
        """Writes the list of the images of a run that has grown `grown` times."""
        table = pa.Table.from_pylist([record.__dict__ for record in records], schema=RECORD_SCHEMA)
        publish(self._records_path(grown), parquet_bytes(table))

    def records(self, *, grown: int = 0) -> list[ImageRecord]:
        """Ids, labels, hashes and places, in the order of the data, of a run that has grown `grown` times.

        Raises:
            LocationError: they are missing or damaged.
        """
        path = self._records_path(grown)
        try:
            return [ImageRecord(**row) for row in parquet_table(read(path)).to_pylist()]
        except (ValueError, TypeError, FileNotFoundError) as error:
            raise LocationError(
                f"{path} is damaged, or of another version of ndc ({error}); restore it, or start the run elsewhere"
            ) from error

    def _read_pixels(self, record: ImageRecord) -> np.ndarray:
        """The pixels of an image, which are read-only.

        Raises:
            ChangedImageError: they are not those that the run was declared with.
        """
        number, row = divmod(record.index, IMAGES_OF_A_SHARD)
        (kept,) = self._shard(number).slice(row, 1).to_pylist()
        image = np.frombuffer(kept["pixels"], np.uint8).reshape(kept["shape"])
        if Example(str(kept["image_id"]), image, record.label).record(record.index) != record:
            raise ChangedImageError(
                f"{self._shard_path(number)}: image {record.image_id} is not the one that the run was declared with; "
                "restore the file"
            )
        return image

    def _read_shard(self, number: int) -> pa.Table:
        return parquet_table(read(self._shard_path(number)))

    def examples(self, records: Iterable[ImageRecord]) -> Iterator[Example]:
        """The images of these records again.

        Raises:
            ChangedImageError: one is not the one that the run was declared with.
        """
        for record in records:
            yield Example(record.image_id, self.pixels(record), record.label)


def placed(before: Sequence[ImageRecord], after: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The images `after` with the places of those that a run has already; the others come behind, in a new shard."""
    place_of = {record.image_id: record.index for record in before}
    last = max(place_of.values(), default=-1)
    free = count(-(-(last + 1) // IMAGES_OF_A_SHARD) * IMAGES_OF_A_SHARD)
    return [
        replace(record, index=place_of[record.image_id] if record.image_id in place_of else next(free))
        for record in after
    ]


def _pixel_table(shard: Sequence[Example]) -> pa.Table:
    rows = [
        {"image_id": example.image_id, "shape": list(example.image.shape), "pixels": example.image.tobytes()}
        for example in shard
    ]
    return pa.Table.from_pylist(rows, schema=PIXEL_SCHEMA)
