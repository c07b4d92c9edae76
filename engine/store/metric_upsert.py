"""Points into SQL, the fastest way that each of the two databases has; a step that is there already is replaced.

One statement takes many rows: it runs without the interpreter's lock from end to end, where `executemany` would beg for
the lock back after every row, and wait long for it beside a busy training loop. `metric_writer` owns the transaction.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from engine.store.pace import give_way, patient

if TYPE_CHECKING:
    from psycopg.adapt import Dumper

CHUNK, SLICE = 512, 128
"""Rows that are prepared at once, holding the interpreter's lock; the fewer beside a training loop."""
_ROWS = (512, 128, 16, 4, 1)
"""Rows a statement on SQLite, which takes as many parameters as that."""

_UPSERT = " ON CONFLICT (series_id, step) DO UPDATE SET value = excluded.value, time = excluded.time"
_INTO = "INSERT INTO metrics (series_id, step, value, time) "
_SQLITE = {rows: _INTO + "VALUES " + ", ".join(["(?, ?, ?, ?)"] * rows) + _UPSERT for rows in _ROWS}
_POSTGRESQL = (
    _INTO
    + "SELECT series_id, step, nullif(value, 'NaN'), time"
    + " FROM unnest(%s, %s, %s, %s) AS point (series_id, step, value, time)"
    + _UPSERT
)
_BIGINT, _BIGINT_ARRAY, _FLOAT8, _FLOAT8_ARRAY = 20, 1016, 701, 1022
"""PostgreSQL's type numbers, the same on every server."""


class Steps(NamedTuple):
    """Points of one series. No object a point: a thousand new ones would set off the garbage collector, which
    holds up a process with a few large libraries for fifty milliseconds."""

    values: dict[int, float | None]
    times: dict[int, float]
    """Of the same steps, in the same order."""


class Columns(NamedTuple):
    """Rows of the table, column by column."""

    series_id: list[int]
    step: list[int]
    value: list[float | None]
    time: list[float]


def upsert(session: Session, points: Iterable[tuple[int, Steps]]) -> None:
    """Store the points of each series."""
    connection = session.connection()
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        _know_arrays(connection)
    for columns in _chunks(points):
        if postgresql:
            connection.exec_driver_sql(_POSTGRESQL, _arrays(columns))
        else:
            flat = _flat(columns)
            begin = 0
            for size in _ROWS:
                while len(flat) - begin >= 4 * size:
                    connection.exec_driver_sql(_SQLITE[size], tuple(flat[begin : begin + 4 * size]))
                    begin += 4 * size
        give_way()


def _chunks(points: Iterable[tuple[int, Steps]]) -> Iterator[Columns]:
    """A few hundred rows at a time; series that are short share one."""
    most = SLICE if patient() else CHUNK
    columns = Columns([], [], [], [])
    for series_id, (values, times) in points:
        steps, numbers, moments = list(values), list(values.values()), list(times.values())
        begin = 0
        while begin < len(values):
            end = min(len(values), begin + most - len(columns.step))
            columns.series_id.extend(repeat(series_id, end - begin))
            columns.step.extend(steps[begin:end])
            columns.value.extend(numbers[begin:end])
            columns.time.extend(moments[begin:end])
            begin = end
            if len(columns.step) == most:
                yield columns
                columns = Columns([], [], [], [])
    if columns.step:
        yield columns


def _flat(columns: Columns) -> list[Any]:
    """Row after row in one list."""
    flat: list[Any] = [None] * (4 * len(columns.step))
    flat[0::4], flat[1::4], flat[2::4], flat[3::4] = columns.series_id, columns.step, columns.value, columns.time
    return flat


class _Array:
    """An array as the server takes it, so that the driver need not look at every number."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Bigints(_Array): ...


class _Floats(_Array): ...


def _arrays(columns: Columns) -> tuple[_Array, ...]:
    values = [math.nan if value is None else value for value in columns.value]
    return (
        _Bigints(_packed(_BIGINT, "q", columns.series_id)),
        _Bigints(_packed(_BIGINT, "q", columns.step)),
        _Floats(_packed(_FLOAT8, "d", values)),
        _Floats(_packed(_FLOAT8, "d", columns.time)),
    )


def _packed(element: int, code: str, values: list[int] | list[float]) -> bytes:
    """PostgreSQL's binary array: one dimension, no nulls, its element's type, length, first index; (size, element) …"""
    sized: list[int | float] = [8] * (2 * len(values))
    sized[1::2] = values
    return struct.pack(">5i", 1, 0, element, len(values), 1) + struct.pack(">" + f"i{code}" * len(values), *sized)


@cache
def _dumpers() -> tuple[type[Dumper], type[Dumper]]:
    """psycopg's side of both arrays: it hands them on as they are. Here, since SQLite's users may not have it."""
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class Bigints(Dumper):
        format, oid = Format.BINARY, _BIGINT_ARRAY

        def dump(self, obj: _Array) -> bytes:
            return obj.data

    class Floats(Bigints):
        oid = _FLOAT8_ARRAY

    return Bigints, Floats


def _know_arrays(connection: Connection) -> None:
    """Once for every connection of the driver."""
    if "rlx_arrays" in connection.info:
        return
    driver: Any = connection.connection.driver_connection
    for array, dumper in zip((_Bigints, _Floats), _dumpers(), strict=True):
        driver.adapters.register_dumper(array, dumper)
    connection.info["rlx_arrays"] = True
