"""Parquet files as bytes."""

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue())


def parquet_table(content: bytes) -> pa.Table:
    """A table whose page checksums fit.

    Raises:
        ValueError: a torn or changed file, or not a Parquet file.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a readable Parquet file ({str(error).splitlines()[0]})") from error
