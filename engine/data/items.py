"""Dataset items out of a file or the hub: which reader, which columns, which version.

The dataset block's own shape is the spec's business; this takes its `items` source as plain data.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data import csv_file, hub, json_file, jsonl_file, parquet_file, yaml_file
from engine.data.conversations import messages
from engine.data.rows import Reader, Row
from engine.errors import DataError
from engine.spec.dataset import SUFFIXES

_PREFERENCE = ("chosen", "rejected")
READERS: Mapping[str, Reader] = {
    "yaml": yaml_file.read,
    "json": json_file.read,
    "jsonl": jsonl_file.read,
    "csv": csv_file.read,
    "parquet": parquet_file.read,
}


def read_items(source: Mapping[str, Any], base: Path | None = None) -> list[dict[str, Any]]:
    """The rows behind an items source, as the fields of an `Item`; what else a row has stands in its `columns`.

    `source` has either `file` (with `format`, unless its suffix tells; `.gz` behind it is fine; relative to
    `base`) or `hub` (with `split`, `subset`, `revision`), and for both `columns`, a mapping of our names to
    theirs, `sha256` of the file, and `limit`. Raises DataError naming file and row.
    """
    rows = _file_rows(source, base or Path()) if source.get("file") else _hub_rows(source)
    return [_mapped(row, source.get("columns") or {}) for row in islice(rows, source.get("limit"))]


def _file_rows(source: Mapping[str, Any], base: Path) -> Iterator[Row]:
    path = base / source["file"]
    name = str(source["file"])
    reader = READERS[source.get("format") or _format_of(path)]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    expected, found = source.get("sha256"), hashlib.sha256(content).hexdigest()
    if expected and expected.lower() != found:
        raise DataError(f"{path}: its SHA-256 is {found}, the spec expects {expected}: the file is not the one meant")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file: {error}") from None
    return reader(content, name)


def _format_of(path: Path) -> str:
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: no format goes with {suffix or 'no suffix'!r}; say `format:`, one of {', '.join(READERS)}"
        )
    return SUFFIXES[suffix]


def _hub_rows(source: Mapping[str, Any]) -> Iterator[Row]:
    name = source.get("hub")
    if not name:
        raise DataError("a source of items names either a `file` or a `hub` dataset")
    return hub.read(
        name, subset=source.get("subset"), split=source.get("split") or "train", revision=source.get("revision")
    )


def _mapped(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our names; what no name takes stays under its own in `columns`."""
    written = columns.get("messages", "messages")
    if written in row.values and columns.get("prompt", "prompt") not in row.values:
        rest = {name: value for name, value in row.values.items() if name != written}
        said = messages(row.values[written], f"{row.place}: column {written!r}")
        return {"messages": said, **({"columns": rest} if rest else {})}
    names = _PREFERENCE if {columns.get(name, name) for name in _PREFERENCE} <= set(row.values) else ("answer",)
    theirs = {name: columns.get(name, name) for name in ("prompt", *names, *columns)}
    for name, column in theirs.items():
        if column not in row.values:
            close = get_close_matches(column, row.values, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, row.values)) or 'none'}"
            raise DataError(f"{row.place}: there is no column {column!r} for `{name}`; {hint}")
    found = {name: row.values[column] for name, column in theirs.items()}
    if not isinstance(found["prompt"], str):
        raise DataError(f"{row.place}: the prompt is {found['prompt']!r:.60}, not text")
    ours = {"prompt", *names}
    if names is _PREFERENCE:
        for name in _PREFERENCE:
            if not isinstance(found[name], str):
                raise DataError(f"{row.place}: what was {name} is {found[name]!r:.60}, not text")
        margin = row.values.get(columns.get("margin", "margin"))
        if margin is not None:
            if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
                raise DataError(f"{row.place}: the margin is {margin!r:.60}, not a number of at least 0")
            found["margin"] = float(margin)
            ours.add("margin")
    taken = {*theirs.values(), *([columns.get("margin", "margin")] if "margin" in ours else [])}
    rest = {name: value for name, value in row.values.items() if name not in taken}
    extra = {**rest, **{name: value for name, value in found.items() if name not in ours}}
    return {**{name: found[name] for name in found if name in ours}, **({"columns": extra} if extra else {})}
