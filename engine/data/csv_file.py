"""CSV with a header line; every value is text, and an empty one is empty text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from engine.data.rows import Row, decoded, row
from engine.errors import DataError

_MAX_FIELD = 1 << 24


def read(content: bytes, name: str) -> Iterator[Row]:
    """Places are the lines on which rows end; empty lines are skipped."""
    csv.field_size_limit(_MAX_FIELD)
    lines = csv.reader(io.StringIO(decoded(content, name), newline=""), strict=True)
    try:
        header = next(lines, None)
        if header is None:
            raise DataError(f"{name}:1: empty; the first line must name the columns")
        repeated = sorted({column for column in header if header.count(column) > 1})
        if repeated:
            raise DataError(f"{name}:1: the column {repeated[0]!r} stands twice in the header")
        for values in lines:
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{name}:{lines.line_num}: {len(values)} values for {len(header)} columns; "
                    "is a comma or a quote missing its quotes?"
                )
            yield row(f"{name}:{lines.line_num}", dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name}:{lines.line_num}: not CSV: {error}") from None
