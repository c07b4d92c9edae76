"""How we connect to SQLite and PostgreSQL, and what their failures mean in our words.

`session` builds transactions on these engines, `schema` runs migrations on them. On SQLite every
transaction that may write starts with BEGIN IMMEDIATE, so that it waits for its turn at the beginning
and never fails half-way for having read first.
"""

from __future__ import annotations

import select
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, NoSuchModuleError

from engine.errors import DiskError, Refused, RlxError, Unreachable

BUSY_TIMEOUT_S = 30.0
LONGEST_PAUSE_S = 60.0
"""How long a transaction may wait for its own client, before PostgreSQL ends it: no transaction of ours waits for
anything, so the client is frozen or cut off, and others wait for what it has locked."""
READING = "rlx_reading"
"""Execution option of a connection that only reads."""

_CONNECTION_LOST = ("08", "28", "57P", "25P03", "53300", "3D000")
"""SQLSTATEs, or beginnings of some: no connection, no entry, shut down, idle for too long inside a transaction, too
many connections, no such database."""


def parse_url(url: str) -> URL:
    """The URL with the driver we use. Raises Unreachable for what is no SQLite or PostgreSQL URL."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise Unreachable(
            f"{url!r} is not a database URL such as sqlite:////path/rlx.db or postgresql://host/name"
        ) from error
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise Unreachable("the store needs a file: sqlite:////path/rlx.db (workers are processes of their own)")
        return parsed
    raise Unreachable(f"rlx keeps its store in SQLite or PostgreSQL, not in {backend!r}")


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL, None for another database."""
    parsed = parse_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def make_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """An engine with our settings. Connects lazily; `foreign_keys=False` is for migrations on SQLite."""
    parsed = parse_url(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(
                parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=5, max_overflow=30, pool_timeout=60
            )
            _set_up_sqlite(engine, foreign_keys)
            return engine
        engine = create_engine(
            parsed,
            pool_size=5,
            max_overflow=30,
            pool_timeout=60,
            pool_use_lifo=True,  # one that is used has its statements prepared, and idle ones are few
            connect_args={
                "connect_timeout": 10,
                "application_name": "rlx",
                # A host that vanished without a word is noticed within half a minute, not in two hours.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 20_000,
            },
        )
        _set_up_postgresql(engine)
        return engine
    except ModuleNotFoundError as error:
        raise Unreachable(f"{error.name} is not installed: pip install 'rlx[postgres]'") from error
    except NoSuchModuleError as error:
        raise Unreachable(str(error)) from error


def _set_up_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {int(LONGEST_PAUSE_S * 1000)}")
        connection.commit()

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        """Drop what the server has closed since: `pool_pre_ping` for the price of a glance, not of a round trip."""
        if _has_word(connection.fileno()):  # an idle connection hears nothing but its end
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error


def _has_word(socket: int) -> bool:
    """Whether the other side has sent something, or closed the line."""
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


def _set_up_sqlite(engine: Engine, foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would come too late
        _turn_on_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -16000")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = bool(connection.get_execution_options().get(READING, False))
        if connection.info.get(READING) is not reading:
            connection.exec_driver_sql(f"PRAGMA query_only = {int(reading)}")
            connection.info[READING] = reading
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _turn_on_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; SQLite does not wait for that lock by itself, so we do."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn the driver's failures into ours, `from` the original; what has no translation rises as it is."""
    try:
        yield
    except DBAPIError as error:
        ours = translate(error, url)
        if ours is None:
            raise
        raise ours from error


def translate(error: DBAPIError, url: URL) -> RlxError | None:
    """Our word for a failure of the driver, or None where it is a fault of the query."""
    where = url.render_as_string(hide_password=True)
    text = str(error.orig).strip()
    if isinstance(error.orig, sqlite3.Error):
        return _translate_sqlite(error.orig, where)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state == "53100":
        return DiskError(f"the database's disk is full ({where}): {text}")
    if state in ("42P01", "42703"):
        return _outdated(where, text)
    if error.connection_invalidated or state.startswith(_CONNECTION_LOST):
        return Unreachable(f"the database does not answer ({where}): {text}")
    if not state and type(error.orig).__name__ in ("OperationalError", "InterfaceError"):
        return Unreachable(f"the database does not answer ({where}): {text}")
    return None


def _translate_sqlite(error: sqlite3.Error, where: str) -> RlxError | None:
    text = str(error)
    if not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError):
        return None
    if "disk is full" in text:
        return DiskError(f"the disk is full ({where}): {text}")
    if "locked" in text or "busy" in text:
        return Unreachable(f"another process held the store for {BUSY_TIMEOUT_S:.0f} s ({where}): {text}")
    if "unable to open" in text or "disk I/O error" in text:
        return Unreachable(f"the store's file cannot be opened ({where}): {text}")
    if "not a database" in text or "malformed" in text:
        return Unreachable(f"the store's file is damaged or is not SQLite ({where}): {text}. Restore it from a backup.")
    if "no such table" in text or "no such column" in text:
        return _outdated(where, text)
    return None


def _outdated(where: str, text: str) -> RlxError:
    return Refused(f"the store's schema is not this version's ({where}): {text}. `rlx db upgrade` brings it up to date")


def may_retry(error: DBAPIError) -> bool:
    """Whether the transaction lost against another one and would succeed if run again."""
    return getattr(error.orig, "sqlstate", None) in ("40001", "40P01")
