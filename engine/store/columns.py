"""The types of the store's columns, and the base of its tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Integer, MetaData, String, Table
from sqlalchemy.orm import DeclarativeBase
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


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[Any]: Json,
        str: String(255),
    }


def table_of(row_type: type[Base]) -> Table:
    """The table behind a class, for statements that need no objects and are run often."""
    table = row_type.__table__
    assert isinstance(table, Table)
    return table
