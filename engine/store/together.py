"""Writes that nobody needs an answer to, carried out in one round trip.

A short stage's claim and its end are a dozen statements, and on PostgreSQL each costs both sides more in messages than
in work. There they become one statement, by WITH; SQLite has no messages to save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Delete, Insert, bindparam
from sqlalchemy.orm import Session

from engine.store.upsert import dialect_of


@dataclass(frozen=True)
class Write:
    """An INSERT of one row with its values, or a DELETE with its parameters, each named as no other write's is."""

    statement: Insert | Delete
    values: Mapping[str, Any]


def together(session: Session, *writes: Write) -> None:
    """Carry them out, as if in this order: none may look at what another of them wrote."""
    if dialect_of(session) != "postgresql":
        for write in writes:
            session.execute(write.statement, write.values)
        return
    parameters: dict[str, Any] = {}
    for place, write in enumerate(writes):
        names = _names(place, write.statement, tuple(write.values))
        parameters |= {names[key]: value for key, value in write.values.items()}
    session.execute(_joined(tuple((write.statement, tuple(write.values)) for write in writes)), parameters)


@lru_cache(maxsize=64)
def _joined(parts: tuple[tuple[Insert | Delete, tuple[str, ...]], ...]) -> Any:
    """Built once: to build it costs more than to carry it out. Statements are compared by identity."""
    *first, last = (
        statement.values(
            {
                key: bindparam(name, type_=statement.table.c[key].type)
                for key, name in _names(place, statement, keys).items()
            }
        )
        if isinstance(statement, Insert)
        else statement
        for place, (statement, keys) in enumerate(parts)
    )
    return last.add_cte(*(statement.cte(f"write_{place}") for place, statement in enumerate(first)))


def _names(place: int, statement: Insert | Delete, keys: tuple[str, ...]) -> dict[str, str]:
    """Parameters by what they are for: columns are the same in many tables."""
    return {key: f"{key}_{place}" if isinstance(statement, Insert) else key for key in keys}
