"""The types of the store's columns. Apart from the tables, so that a plain query needs no object mapper."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Integer
from sqlalchemy.types import TypeDecorator, TypeEngine

BigId = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite only numbers rows by itself for a column of plain INTEGER."""


class Json(TypeDecorator[Any]):
    """JSON data; JSONB on PostgreSQL, whose module is imported there only (it is a tenth of what `rlx ls` costs)."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> TypeEngine[Any]:
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())  # type: ignore[no-any-return]  # a dialect is untyped to us
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB())  # type: ignore[no-any-return]  # as above


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite stores it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("times in the store are aware; this one has no time zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
