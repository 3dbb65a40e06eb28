"""Data sets in Parquet, as Hugging Face stores them: encoded images, labels, and maybe each image's path."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from pipeline.data.source import DataError, Entry, Source, Split, checked_label, reading, shards
from pipeline.file_names import COPY, Notes

IMAGE_COLUMNS = ("image", "img", "bytes")
LABEL_COLUMNS = ("label", "labels", "fine_label", "fine_labels")
BUFFER_BYTES = 2**20
LISTED_AT_ONCE = 8192
AT_ONCE = 16  # files of an object store
DECODED_AT_ONCE = 64


@dataclass(frozen=True)
class Columns:
    """Where a file has its images; `path` is None where it has no paths."""

    content: str
    path: str | None
    label: str


@contextmanager
def opened_parquet(shard: UPath) -> Iterator[pq.ParquetFile]:
    """A Parquet file; only its footer is read yet.

    Raises:
        DataError: it is not a Parquet file, or damaged; also while its content is read.
    """
    # Read-ahead would fetch the pixels that lie between two pieces of a small column.
    with (
        reading(shard, pa.ArrowException, UnicodeDecodeError),
        shard.fs.open(shard.path, "rb", cache_type="none") as stream,
        pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False) as file,
    ):
        yield file


def find_columns(schema: pa.Schema, shard: UPath) -> Columns:
    """The columns with images and labels, by their usual names.

    Raises:
        DataError: no column is known to hold images or labels, or several are.
    """
    image, label = only_one(IMAGE_COLUMNS, schema, shard), only_one(LABEL_COLUMNS, schema, shard)
    kind = schema.field(image).type
    if is_bytes(kind):
        return Columns(image, None, label)
    fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
    if "bytes" not in fields or not is_bytes(kind.field("bytes").type):
        raise DataError(f"{shard}: column {image} is {kind}; it must be bytes, or a struct with the field bytes")
    return Columns(f"{image}.bytes", f"{image}.path" if "path" in fields else None, label)


def only_one(known: tuple[str, ...], schema: pa.Schema, shard: UPath) -> str:
    fitting = [name for name in schema.names if name in known]
    if len(fitting) != 1:
        raise DataError(
            f"{shard} has the columns {', '.join(schema.names)}; exactly one must be called {' or '.join(known)}"
        )
    return fitting[0]


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata give the labels."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


class GroupImages:
    """Encoded images of one row group, read on demand, in ascending order only: so few are in memory."""

    def __init__(self, file: pq.ParquetFile, group: int, column: str, shard: UPath) -> None:
        self._batches: Iterator[pa.RecordBatch] = file.iter_batches(
            DECODED_AT_ONCE, row_groups=[group], columns=[column]
        )
        self._shard = shard
        self._images: list[Any] = []
        self._first_row = 0

    def content(self, row: int) -> bytes:
        """The image of a row of the group.

        Raises:
            DataError: the file is damaged, or does not hold this image.
        """
        assert row >= self._first_row, "an entry was read after a later one"
        with reading(self._shard, pa.ArrowException):
            while row >= self._first_row + len(self._images):
                self._first_row += len(self._images)
                self._images = next(self._batches).column(0).to_pylist()
        image = self._images[row - self._first_row]
        content = image["bytes"] if isinstance(image, dict) else image
        if content is None:
            raise DataError(f"{self._shard} has a row without image bytes; store the images in the file")
        return bytes(content)


def paths_and_labels(file: pq.ParquetFile, group: int, columns: Columns) -> Iterator[tuple[str | None, Any]]:
    chosen = [columns.label] if columns.path is None else [columns.path, columns.label]
    for batch in file.iter_batches(LISTED_AT_ONCE, row_groups=[group], columns=chosen):
        labels = batch.column(columns.label).to_pylist()
        if columns.path is None:
            yield from ((None, label) for label in labels)
        else:
            images = batch.column(columns.path.removesuffix(".path")).to_pylist()
            yield from (((image or {}).get("path"), label) for image, label in zip(images, labels, strict=True))


def content_id(path: str | None, content: bytes, label: Any, seen: Counter[str], counts: Counter[str]) -> str:
    """The path, if there is one, and 20 hex digits of SHA-256; the n-th further copy of it has `-n` added.

    The label belongs to the digest, so that the ids of an image that occurs with two labels do not depend on their
    order. A copy has path, content and label in common: which of them is which does not matter.
    """
    digest = hashlib.sha256(f"{label}\n".encode() + content).hexdigest()[:20]
    image_id = f"{path}-{digest}" if path else digest
    further = seen[image_id]
    seen[image_id] += 1
    if not further:
        return image_id
    counts[COPY] += 1
    return f"{image_id}-{further}"


def repeated_paths(shards: Sequence[UPath]) -> pa.Table:
    """The paths that several rows have, in all files together, with their numbers of rows: `values` and `counts`.

    Pixels are not touched.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        paths = pa.chunked_array([chunk for chunks in pool.map(paths_in, shards) for chunk in chunks], pa.string())
    counted = pa.Table.from_struct_array(pc.value_counts(paths.drop_null()))
    return counted.filter(pc.field("counts") > 1)


def paths_in(shard: UPath) -> list[pa.Array]:
    with opened_parquet(shard) as file:
        column = find_columns(file.schema_arrow, shard).path
        if column is None:
            return []
        batches = file.iter_batches(LISTED_AT_ONCE, columns=[column])
        return [pc.struct_field(batch.column(0), "path").cast(pa.string()) for batch in batches]


def parquet(location: UPath, split: Split) -> Source:
    """One Parquet file, or those of a folder or pattern in the order of their names: see `parquet_files`."""
    notes = Notes()
    return parquet_files(list(shards(location, (".parquet",), split, notes).values()), notes)


def parquet_files(files: Sequence[UPath], notes: Notes) -> Source:
    """Parquet files, one after the other.

    An image's id is its path where no other row has that path, and then listing does not touch the pixels. Where
    several rows have it, as after Hugging Face's push_to_hub, which keeps base names only, it is the path and a digest
    of label and content; where a row has none, the digest. All of it stays the same when the rows are stored in another
    order or in other files. Entries hold the rows of one batch, and the paths that repeat.
    """
    with opened_parquet(files[0]) as file:
        names = class_names(file.schema_arrow, find_columns(file.schema_arrow, files[0]).label)

    @cache
    def repeated() -> frozenset[str]:
        table = repeated_paths(files)
        if table.num_rows:
            notes.said["paths"] = (
                f"images that share their path with others (such as {table['values'][0]}): "
                f"{pc.sum(table['counts']).as_py():,}; their ids are the path and a digest of label and content"
            )
        return frozenset(table["values"].to_pylist())

    def entries() -> Iterator[Entry]:
        seen, counts = Counter[str](), notes.of_part("rows")
        for shard in files:
            with opened_parquet(shard) as file:
                columns = find_columns(file.schema_arrow, shard)
                if class_names(file.schema_arrow, columns.label) != names:
                    raise DataError(
                        f"{shard} names other classes than {files[0]}, or none; make the files of a set alike"
                    )
                for group in range(file.num_row_groups):
                    images = GroupImages(file, group, columns.content, shard)
                    for row, (path, label) in enumerate(paths_and_labels(file, group, columns)):
                        if path and path not in repeated():
                            image_id = path
                        else:
                            image_id = content_id(path, images.content(row), label, seen, counts)
                        yield Entry(image_id, checked_label(label, image_id), partial(images.content, row))

    return Source("parquet", entries, names, notes)
