"""What every reader gives: rows, each with the place it came from, holding JSON data only.

Readers turn bytes into rows; which columns mean what is decided in `items`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import DataError

MAX_DEPTH = 64


@dataclass(frozen=True)
class Row:
    """One record of a file."""

    place: str
    """For messages: `items.csv:3`, the line where lines are meant, else the number of the row, from 1."""
    values: Mapping[str, Any]


Reader = Callable[[bytes, str], Iterator[Row]]
"""Rows of a file's content; the second argument names the file in messages. Raises DataError."""


def row(place: str, value: Any) -> Row:
    """A record as a Row. Raises DataError where it is no mapping or holds what JSON cannot."""
    if not isinstance(value, Mapping):
        raise DataError(f"{place}: expected a mapping of columns to values, found {_kind(value)}")
    for key in value:
        if not isinstance(key, str):
            raise DataError(f"{place}: the column name {key!r} is not text")
        _check(value[key], f"{place}: column {key!r}", 0)
    return Row(place, value)


def rows_of_document(document: Any, name: str) -> Iterator[Row]:
    """The rows of a parsed document: a list of mappings, or a mapping whose `items` is one."""
    if isinstance(document, Mapping) and "items" in document:
        document = document["items"]
    if not isinstance(document, list):
        raise DataError(f"{name}: expected a list of items, or a mapping with `items`, found {_kind(document)}")
    for number, value in enumerate(document, 1):
        yield row(f"{name}:{number}", value)


def decoded(content: bytes, name: str) -> str:
    """UTF-8 text, a byte order mark dropped. Raises DataError with the offending line."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}:{line}: not UTF-8 text (byte {content[error.start]:#04x}); save the file as UTF-8"
        ) from None


def _check(value: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise DataError(f"{where}: nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise DataError(f"{where}: {str(value)[:20]}… does not fit into 64 bits; write it as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where}: {value} is not a finite number")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DataError(f"{where}: the key {key!r} is not text")
            _check(item, where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, where, depth + 1)
    else:
        raise DataError(f"{where}: {_kind(value)} is not JSON data (text, number, true or false, null, list, mapping)")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
