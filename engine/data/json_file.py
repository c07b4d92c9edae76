"""JSON: one list of objects, or an object whose `items` is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from engine.data.rows import Row, decoded, rows_of_document
from engine.errors import DataError


def read(content: bytes, name: str) -> Iterator[Row]:
    """Rows are numbered from 1 in the list's order."""
    text = decoded(content, name)
    try:
        document = parse(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{name}: not JSON that we read: {error}") from None
    yield from rows_of_document(document, name)


def parse(text: str) -> Any:
    """Strict JSON: no NaN or Infinity, no key twice in one object."""
    return json.loads(text, parse_constant=_constant, object_pairs_hook=_object)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)!r} stands twice in one object")
    return found
