"""INSERT … ON CONFLICT for whichever of the two databases a session is on."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Session


def insert(session: Session, table: Any) -> Any:
    """An `insert` of the session's dialect, which has `on_conflict_do_update` and `on_conflict_do_nothing`."""
    return insert_in(dialect_of(session), table)


def insert_in(dialect: str, table: Any) -> Any:
    """The same for a dialect's name, for statements that are kept."""
    target = getattr(table, "__table__", table)
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # here: SQLite's users need not pay for it

        return postgresql.insert(target)
    return sqlite.insert(target)


def dialect_of(session: Session) -> str:
    """`sqlite` or `postgresql`."""
    return session.get_bind().dialect.name
