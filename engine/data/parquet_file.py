"""Parquet, through pyarrow, which is imported when the first such file is read."""

from __future__ import annotations

from collections.abc import Iterator

from engine.data.rows import Row, row
from engine.errors import DataError


def read(content: bytes, name: str) -> Iterator[Row]:
    """Rows are numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        number = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield row(f"{name}:{number}", values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a Parquet file that we read: {error}") from None
