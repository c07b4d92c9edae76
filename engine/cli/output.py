"""How answers look: JSON and tables from the same rows, colours where wanted, text that cannot steer a terminal.

Answers go to stdout, talk goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import typer

Row = Any
"""A mapping or a dataclass: a column knows how to read it."""

STATUS_COLOURS = {
    "succeeded": "green",
    "running": "cyan",
    "ready": "blue",
    "queued": "blue",
    "waiting": "bright_black",
    "stopping": "yellow",
    "cancelled": "yellow",
    "failed": "red",
    "lost": "red",
    "better": "green",
    "worse": "red",
    "alive": "green",
    "draining": "yellow",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}


@dataclass(frozen=True)
class Column:
    """One column of a table: its title, what it shows of a row, and whether it may be cut on a narrow terminal."""

    title: str
    value: Callable[[Row], Any]
    right: bool = False
    flexible: bool = False
    coloured: bool = False
    """Colour the cell by STATUS_COLOURS."""


def answer(text: str = "") -> None:
    """One line of the answer, on stdout."""
    typer.echo(text)


def talk(text: str = "") -> None:
    """One line of talk, on stderr."""
    typer.echo(text, err=True)


def answer_json(value: Any) -> None:
    """The answer as JSON, on stdout."""
    answer(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """JSON data: times in ISO 8601, ids and paths as text, numbers that are not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(value)


def wants_colour(stream: Any) -> bool:
    """NO_COLOR wins, then FORCE_COLOR, then whether the stream is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def style(text: str, colour: str | None, *, bold: bool = False, err: bool = False) -> str:
    """`text` in a colour, where the stream it is meant for takes colours."""
    if not wants_colour(sys.stderr if err else sys.stdout):
        return text
    return typer.style(text, fg=colour, bold=bold or None)


def status(text: str, *, err: bool = False) -> str:
    """A status in its colour."""
    return style(text, STATUS_COLOURS.get(text), err=err)


def printable(text: str) -> str:
    """`text` with control characters made visible: what a model wrote must not move our cursor or set our title."""
    return "".join(ch if ch in "\n\t" or unicodedata.category(ch) not in ("Cc", "Cf") else _escaped(ch) for ch in text)


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def one_line(text: str) -> str:
    """`text` on one line, with line ends shown as ⏎."""
    return printable(text).replace("\n", "⏎").replace("\t", " ")


def table(columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Print rows as an aligned table: as wide as it needs to be in a pipe, as wide as the window on a terminal."""
    cells = [[_cell(column.value(row)) for column in columns] for row in rows]
    widths = [max([_width(column.title), *(_width(line[i]) for line in cells)]) for i, column in enumerate(columns)]
    if sys.stdout.isatty():
        widths = _fitted(columns, widths, shutil.get_terminal_size().columns)
    shown = [(column, width) for column, width in zip(columns, widths, strict=True) if width > 0]
    kept = [i for i, width in enumerate(widths) if width > 0]
    answer(_line([_aligned(column.title, width, column.right) for column, width in shown], style_as="bright_black"))
    for line in cells:
        parts = []
        for (column, width), i in zip(shown, kept, strict=True):
            text = _aligned(line[i], width, column.right)
            parts.append(style(text, STATUS_COLOURS.get(line[i])) if column.coloured else text)
        answer(_line(parts))


def _line(parts: Sequence[str], style_as: str | None = None) -> str:
    text = "  ".join(parts).rstrip()
    return style(text, style_as) if style_as else text


def _fitted(columns: Sequence[Column], widths: Sequence[int], window: int) -> list[int]:
    """Cut flexible columns first (down to 12), then leave out columns from the right, never the first."""
    fitted = list(widths)

    def excess() -> int:
        shown = [width for width in fitted if width > 0]
        return sum(shown) + 2 * (len(shown) - 1) - window

    for i, column in enumerate(columns):
        if column.flexible and excess() > 0:
            fitted[i] = max(min(12, fitted[i]), fitted[i] - excess())
    for i in range(len(columns) - 1, 0, -1):
        if excess() <= 0:
            break
        fitted[i] = 0
    return fitted


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return one_line(str(value))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(ch) in "WF" else 0 if unicodedata.combining(ch) else 1 for ch in text)


def _aligned(text: str, width: int, right: bool) -> str:
    if _width(text) > width:
        while text and _width(text) > max(width - 1, 0):
            text = text[:-1]
        text += "…"
    padding = " " * (width - _width(text))
    return padding + text if right else text + padding


def number(value: float) -> str:
    """Four significant digits, without an exponent where that reads well."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value)) if abs(value) >= 1000 else f"{value:.1f}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}".replace(",", "")


def seconds(value: float | None) -> str:
    """`41s`, `3m 05s`, `2h 10m`, `3d 4h`."""
    if value is None or not math.isfinite(value):
        return "-"
    whole = max(0, round(value))
    if whole < 60:
        return f"{value:.1f}s" if value < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def ago(time: datetime | None, now: datetime) -> str:
    """How long ago, in one unit."""
    if time is None:
        return "-"
    elapsed = (now - time).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if elapsed >= size:
            return f"{int(elapsed // size)}{unit} ago"
    return "just now" if elapsed < 5 else f"{int(elapsed)}s ago"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def path(value: Path | str) -> str:
    """A path as one would type it from here: relative where it is below the working folder."""
    try:
        return str(Path(value).resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(value)
