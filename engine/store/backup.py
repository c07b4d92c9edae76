"""The whole store as one file, taken while workers write, and put back when none does.

SQLite is copied by its online backup, PostgreSQL by its own `pg_dump` and `pg_restore`. A backup is checked
before it is called one, and again before it replaces anything; it replaces all or nothing. Artifacts,
checkpoints and logs are files beside the database and are backed up as such.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from sqlalchemy import URL, func, select

from engine.errors import DiskError, NotFound, Refused, Unreachable
from engine.store import schema, workers
from engine.store.connection import BUSY_TIMEOUT_S, parse_url, sqlite_file
from engine.store.processes import provably_gone
from engine.store.session import Database
from engine.store.tables import Artifact, Run, Spec

_SQLITE, _POSTGRESQL = b"SQLite format 3\x00", b"PGDMP"


@dataclass(frozen=True)
class Backup:
    """A backup that was read and found whole."""

    path: Path
    revision: str
    bytes: int


def save(url: str, path: Path, *, replace: bool = False) -> Backup:
    """Write the store at `url`, as it is at one moment, to `path`.

    Raises NotFound where there is no store, Refused where `path` is taken or a tool is missing, Unreachable.
    """
    if path.exists() and not replace:
        raise Refused(f"{path} exists: name another file, or say --yes to replace it")
    revision = schema.current(url)
    if revision is None:
        raise NotFound("there is no store to back up: `rlx submit SPEC` or `rlx db upgrade` makes one")
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    with _disk(path):
        try:
            file = sqlite_file(url)
            if file is None:
                _pg("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={draft}")
            else:
                _copy(file, draft)
                _stand_alone(draft)
            found = examine(draft, url)
            _sync(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return Backup(path, found.revision, found.bytes)


def examine(path: Path, url: str) -> Backup:
    """Read a backup for the database at `url`, and check it.

    Raises NotFound, or Refused: no backup, damaged, for another database, or made by a newer rlx.
    """
    if not path.is_file():
        raise NotFound(f"there is no backup at {path}")
    with path.open("rb") as file:
        head = file.read(16)
    server = sqlite_file(url) is None
    if not head.startswith(_POSTGRESQL if server else _SQLITE):
        kind = "PostgreSQL dump (`rlx db backup` on that database makes one)" if server else "SQLite store"
        raise Refused(f"{path} is no backup of this database: it is not a {kind}")
    revision = _dumped_revision(path, url) if server else _checked_revision(path)
    if revision not in schema.known_revisions():
        raise Refused(f"{path}: {schema.explain(revision)}")
    return Backup(path, revision, path.stat().st_size)


def restore(url: str, path: Path, *, now: datetime, replace: bool = False) -> Backup:
    """Put the store at `url` back to what the backup holds, all of it or nothing.

    Raises Refused while workers are alive, and for a store with content unless `replace`; see `examine`, too.
    The store is then at the backup's revision, which may be older than this rlx.
    """
    found = examine(path, url)
    _refuse_live(url, now)
    content = _content(url)
    if content and not replace:
        raise Refused(f"the store holds {content}: say --yes to replace all of it by {path}")
    file = sqlite_file(url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _disk(file):
            _copy(path, file)
        return found
    _level(url, found.revision)
    options = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
    _pg("pg_restore", url, *options, str(path))
    return found


def damage(url: str) -> list[str]:
    """What SQLite finds wrong with its own file, a line each; nothing for a server, which keeps that to itself."""
    file = sqlite_file(url)
    return [] if file is None or not file.exists() else _damage(file, references=True)


def _damage(file: Path, *, references: bool) -> list[str]:
    try:
        with _reading(file) as connection:
            found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
            broken = connection.execute("PRAGMA foreign_key_check").fetchall() if references else []
    except sqlite3.DatabaseError as error:
        return [str(error)]
    lines = [] if found == ["ok"] else found
    return lines + [f"{table} refers to a row of {parent} that is not there" for table, _, parent, _ in broken]


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that leaves the file as it is, its journal mode included."""
    address = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
        yield connection


def _copy(source: Path, target: Path) -> None:
    """SQLite's online backup: one moment of the source, and in the target all of it or nothing."""
    try:
        with _reading(source) as reading, closing(sqlite3.connect(target, timeout=BUSY_TIMEOUT_S)) as writing:
            reading.backup(writing)
    except sqlite3.Error as error:
        if "full" in str(error):
            raise DiskError(f"copying {source} to {target}: {error}") from error
        raise Unreachable(f"copying {source} to {target}: {error}") from error


def _stand_alone(file: Path) -> None:
    """Leave no need for a write-ahead log beside the file."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _checked_revision(path: Path) -> str:
    if lines := _damage(path, references=False):  # a dangling row is no reason to have no backup
        raise Refused(f"{path} is damaged: {lines[0]}" + (f" ({len(lines)} such lines)" if len(lines) > 1 else ""))
    try:
        with _reading(path) as connection:
            return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    except (sqlite3.OperationalError, TypeError) as error:
        raise Refused(f"{path} holds no rlx store") from error


def _dumped_revision(path: Path, url: str) -> str:
    sql = _run(_tool("pg_restore"), "--data-only", "--table=alembic_version", "--file=-", str(path))
    _run(_tool("pg_restore"), f"--file={os.devnull}", str(path))  # from end to end: a torn one fails
    found = re.search(r"^COPY \S*alembic_version .*\n(\S+)$", sql, re.MULTILINE)
    if found is None:
        raise Refused(f"{path} holds no rlx store")
    return found[1]


def _refuse_live(url: str, now: datetime) -> None:
    if schema.current(url) != schema.HEAD:
        return  # no worker of this version can be at work on it
    with _database(url) as db, db.read() as session:
        alive = [
            f"{worker.name} on {worker.host}"
            for worker in workers.alive(session, now)
            if not provably_gone(worker.host, worker.pid, worker.pid_started)
        ]
    if alive:
        raise Refused(f"workers are alive ({', '.join(alive)}): stop them first, what they report would be lost")


def _content(url: str) -> str:
    """What the store holds, in words; empty where it holds nothing of worth."""
    revision = schema.current(url)
    if revision is None:
        return ""
    if revision not in schema.known_revisions():
        raise Refused(schema.explain(revision))
    with _database(url) as db, db.read() as session:
        counts = {
            kind: session.scalar(select(func.count()).select_from(table.__table__))
            for kind, table in (("run", Run), ("spec", Spec), ("artifact", Artifact))
        }
    return ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count)


def _level(url: str, revision: str) -> None:
    """Take a server's tables to the backup's revision, so that none is left over that the backup does not replace."""
    current, order = schema.current(url), schema.known_revisions()
    if current is None or current == revision:
        return
    if order.index(current) < order.index(revision):
        schema.downgrade(url, revision)
    else:
        schema.upgrade(url, revision)


@contextmanager
def _database(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def _pg(tool: str, url: str, *options: str) -> None:
    """One of PostgreSQL's own tools on a database; the password goes through the environment, where `ps` shows none."""
    parsed = parse_url(url)
    address = URL.create(
        "postgresql",
        username=parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query,
    ).render_as_string()
    _run(_tool(tool), f"--dbname={address}", *options, password=parsed.password)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Refused(f"{name} is not on the PATH: install PostgreSQL's client tools, of the server's version or newer")
    return found


def _run(*line: str, password: str | None = None) -> str:
    environment = os.environ | ({"PGPASSWORD": password} if password else {})
    done = subprocess.run(line, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip()
    name = Path(line[0]).name
    if "No space left" in said:
        raise DiskError(f"{name}: {said}")
    if "could not connect" in said or "connection to server" in said:
        raise Unreachable(f"{name}: {said}")
    raise Refused(f"{name} failed: {said}")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror or error}") from error
