"""INSERT … ON CONFLICT for whichever of the two databases a session is on."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Session


def insert(session: Session, table: Any) -> Any:
    """An `insert` of the session's dialect, which has `on_conflict_do_update` and `on_conflict_do_nothing`."""
    target = getattr(table, "__table__", table)
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # here: SQLite's users need not pay for it

        return postgresql.insert(target)
    return sqlite.insert(target)
