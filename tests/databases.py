"""PostgreSQL databases for tests: fresh ones, and one that many tests have in turn, emptied in between."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import NullPool, create_engine, make_url

from engine.store.schema import upgrade
from engine.store.tables import METADATA

POSTGRES = os.environ.get("RLX_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")

_SHAPE = """
    SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM (
        SELECT concat_ws(' ', relname, attname, attnum, atttypid, attnotnull) AS line
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT version_num FROM alembic_version
    ) AS lines
"""
_EMPTY = "; ".join(
    [
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid != pg_backend_pid()",
        *(f'DELETE FROM "{table.name}"' for table in reversed(METADATA.sorted_tables)),
        "SELECT setval(quote_ident(sequencename)::regclass, 1, false) FROM pg_sequences WHERE schemaname = 'public'",
    ]
)


@contextmanager
def fresh_database() -> Iterator[str]:
    """The URL of a new, empty database; dropped afterwards."""
    name = f"rlx_test_{uuid.uuid4().hex[:12]}"
    _ask(POSTGRES, f'CREATE DATABASE "{name}"')
    try:
        yield make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    finally:
        _ask(POSTGRES, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class SharedDatabase:
    """A database at the newest revision for one test after another. Close it, or use it in a `with` block.

    Emptying one takes milliseconds, making and dropping one half a second. A test may do to it what it likes: where
    it has changed the schema, the next one gets a new database.
    """

    def __init__(self) -> None:
        self._database = ExitStack()
        self._url = self._shape = ""

    def empty(self) -> str:
        """Its URL, once nothing is in it and nobody is connected to it."""
        if not self._url or _ask(self._url, _SHAPE) != self._shape:
            self._database.close()
            self._url = self._database.enter_context(fresh_database())
            upgrade(self._url)
            self._shape = _ask(self._url, _SHAPE)
        _ask(self._url, _EMPTY)
        return self._url

    def __enter__(self) -> SharedDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _ask(url: str, statements: str) -> str:
    """Carry them out; the first value that comes back."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args={"connect_timeout": 30})
    with engine.connect() as connection:
        answer = connection.exec_driver_sql(statements)
        return str(answer.scalar()) if answer.returns_rows else ""
