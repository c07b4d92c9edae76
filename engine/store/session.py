"""Transactions on the store: `write` for one that changes it, `read` and `look` for one that cannot.

Repositories take the session that these hand out; the edge decides where a transaction begins and ends.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from engine.errors import NotFound, Refused
from engine.settings import Settings
from engine.store import schema
from engine.store.connection import READING, make_engine, may_retry, sqlite_file, translated

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")
_ATTEMPTS = 6
_OPEN: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """One store. Usable from many threads; a forked child gets connections of its own."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = make_engine(url)
        self.url = url
        if self.engine.dialect.name == "postgresql":
            options = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        else:
            options = {READING: True}
        # Shares the pool; what it reads in one transaction is one moment of the store.
        self._reader = self.engine.execution_options(**options)
        _OPEN.add(self)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one transaction: committed at the end, rolled back if an exception leaves the block.

        Raises Unreachable where the database does not answer, DiskError where its disk is full.
        """
        from sqlalchemy.orm import Session  # here, as below: `look` does without

        with translated(self.engine.url), Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.connection()  # waits for SQLite's write lock here, before anything was read
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent moment of the store and can change nothing."""
        from sqlalchemy.orm import Session

        with translated(self.engine.url), Session(self._reader, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """As `read`, for queries that need no objects: importing their mapper takes as long as all else in `rlx ls`."""
        with translated(self.engine.url), self._reader.connect() as connection:
            yield connection

    def transact(self, work: Callable[[Session], T]) -> T:
        """`work` in a write transaction, run again where it lost against another (a deadlock, PostgreSQL only)."""
        for attempt in range(_ATTEMPTS):
            try:
                with self.write() as session:
                    return work(session)
            except DBAPIError as error:
                if not may_retry(error) or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.01 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def watch(self) -> Callable[[], bool] | None:
        """A glance: whether anybody has committed anything since the last one. None where a glance costs a query.

        SQLite counts commits in a page that all processes share. For one thread.
        """
        file = sqlite_file(self.url)
        if file is None:
            return None
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        seen = None

        def glance() -> bool:
            nonlocal seen
            try:
                before, seen = seen, connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error:
                return True  # whoever looks will be told what is wrong
            return bool(before != seen)

        return glance

    def close(self) -> None:
        """Close every pooled connection. The next use opens new ones."""
        self.engine.dispose()


def open_database(place: Settings | str, *, create: bool = True) -> Database:
    """The store at `place`, at the newest revision of its schema.

    An SQLite store is created or upgraded on the way, by one process while others wait for it; with
    `create=False` that is refused instead. A server's schema is only ever changed by `rlx db upgrade`.
    Raises NotFound, Refused (outdated, or made by a newer rlx) or Unreachable.
    """
    url = place.database_url if isinstance(place, Settings) else place
    file = sqlite_file(url)
    if file is not None and not file.exists():
        if not create:
            raise NotFound(f"there is no store at {file}: `rlx submit SPEC` or `rlx db upgrade` makes one")
        file.parent.mkdir(parents=True, exist_ok=True)
        schema.upgrade(url)
    database = Database(url)
    with translated(database.engine.url), database.engine.execution_options(**{READING: True}).connect() as connection:
        revision = schema.stored_revision(connection)
    if revision == schema.HEAD:
        return database
    if file is None or not create:
        database.close()
        raise Refused(schema.explain(revision))
    schema.upgrade(url)  # raises Refused for a revision that only a newer rlx knows
    return database


def _after_fork() -> None:
    """Forget the parent's connections: two processes on one socket or one SQLite handle corrupt each other."""
    for database in list(_OPEN):
        database.engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)
