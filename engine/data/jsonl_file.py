"""JSON Lines: one object a line. Lines end at a line feed only; text may hold U+2028 and its like."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.data import json_file
from engine.data.rows import Row, decoded, row
from engine.errors import DataError


def read(content: bytes, name: str) -> Iterator[Row]:
    """Places are line numbers; empty lines are skipped."""
    for number, line in enumerate(decoded(content, name).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json_file.parse(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{number}:{error.colno}: not JSON: {error.msg}") from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{name}:{number}: not JSON that we read: {error}") from None
        yield row(f"{name}:{number}", value)
