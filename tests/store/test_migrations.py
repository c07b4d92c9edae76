"""Revisions up and down with rows in every table: what both schemas can hold survives, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Column, Connection, MetaData, Table, inspect, select, text
from sqlalchemy.types import Boolean, DateTime, Float, Integer, LargeBinary, String, Uuid

from engine.store import schema
from engine.store.connection import make_engine
from engine.store.session import Database
from engine.store.tables import METADATA
from engine.store.types import Json

Rows = Mapping[str, list[dict[str, Any]]]
SEVERAL = 3
REVISIONS = schema.known_revisions()
"""Newest first."""


def value(column: Column[Any], n: int) -> Any:
    """A value that its type can hold, another one for each row."""
    kind = column.type
    if isinstance(kind, Json):
        return {"n": n, "text": "é", "none": None}
    if isinstance(kind, Uuid):
        return UUID(int=n)
    if isinstance(kind, Boolean):
        return bool(n % 2)
    if isinstance(kind, Integer):
        return n
    if isinstance(kind, Float):
        return n + 0.25
    if isinstance(kind, LargeBinary):
        return bytes([n, 0, 255])
    if isinstance(kind, String):
        return f"{column.name} {n} é"[: kind.length or 100]
    if isinstance(kind, DateTime) or "DateTime" in type(kind).__name__:
        return datetime(2026, 3, n, 12, 30, tzinfo=UTC)
    raise AssertionError(f"no value for {column}: {kind!r}")


def fill(connection: Connection) -> None:
    """Several rows in every table; a foreign key leads to the row of the same number."""
    for table in METADATA.sorted_tables:
        rows = [{column.name: value(column, n) for column in table.columns} for n in range(1, SEVERAL + 1)]
        connection.execute(table.insert(), rows)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def everything(url: str) -> Rows:
    """Every row of every table that there is, as the database itself describes its columns."""
    with connected(url) as connection:
        found = MetaData()
        found.reflect(connection)
        return {
            table.name: [
                dict(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns)).mappings()
            ]
            for table in found.sorted_tables
            if table.name != "alembic_version"
        }


def check_survivors(before: Rows, after: Rows) -> None:
    """What is in both has the same values; a column that is only in one of them does not count."""
    for name in before.keys() & after.keys():
        assert len(after[name]) == len(before[name]), name
        for old, new in zip(before[name], after[name], strict=True):
            shared = old.keys() & new.keys()
            assert {key: new[key] for key in shared} == {key: old[key] for key in shared}, name


@pytest.fixture
def full(db: Database) -> Database:
    with connected(db.url) as connection:
        fill(connection)
    return db


def test_every_table_is_filled(full: Database) -> None:
    assert {name: len(rows) for name, rows in everything(full.url).items()} == dict.fromkeys(METADATA.tables, SEVERAL)


@pytest.mark.parametrize("older", REVISIONS[1:])
def test_down_to_each_revision_and_up_again(full: Database, older: str) -> None:
    newest = everything(full.url)
    schema.downgrade(full.url, older)
    assert schema.current(full.url) == older
    below = everything(full.url)
    check_survivors(newest, below)
    schema.upgrade(full.url)
    assert schema.check(full.url) == []
    again = everything(full.url)
    check_survivors(below, again)
    # What the older schema had is wholly there, and nothing dangles.
    for name in below:
        assert len(again[name]) == SEVERAL
    if full.engine.dialect.name == "sqlite":
        with connected(full.url) as connection:
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []


def test_step_by_step_down_and_up(full: Database) -> None:
    for older in REVISIONS[1:]:
        before = everything(full.url)
        schema.downgrade(full.url, older)
        check_survivors(before, everything(full.url))
    for newer in reversed(REVISIONS[:-1]):
        before = everything(full.url)
        schema.upgrade(full.url, newer)
        check_survivors(before, everything(full.url))
    assert schema.check(full.url) == []


def test_to_nothing_with_rows_in_every_table(full: Database) -> None:
    schema.downgrade(full.url, "base")
    with connected(full.url) as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    schema.upgrade(full.url)
    assert all(rows == [] for rows in everything(full.url).values())
    with connected(full.url) as connection:
        fill(connection)


def test_a_revision_that_fails_half_way_leaves_the_store_as_it_was(
    full: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.operations import Operations

    before = everything(full.url)
    original = Operations.drop_table

    def fails(self: Operations, table_name: str, **more: Any) -> Table | None:
        if table_name == "specs":
            raise RuntimeError("the power went")
        return original(self, table_name, **more)  # type: ignore[return-value]

    monkeypatch.setattr(Operations, "drop_table", fails)
    with pytest.raises(RuntimeError, match="the power went"):
        schema.downgrade(full.url, "base")
    assert schema.current(full.url) == schema.HEAD
    assert everything(full.url) == before
    assert schema.check(full.url) == []
