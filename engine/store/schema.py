"""The schema of the store, moved up and down by Alembic with the revisions of the package `migrations`.

Alembic is imported only where something has to move: opening a store that is at `HEAD` stays fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from engine.errors import Refused
from engine.store.connection import make_engine, sqlite_file, translated

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0008"
"""The newest revision; a test holds it to the newest file in `migrations/versions`."""

_ADVISORY_LOCK = 0x726C78
"""`rlx` in ASCII: taken on PostgreSQL so that two upgrades do not meet."""


def stored_revision(connection: Connection) -> str | None:
    """The revision the store is at; None for an empty one."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def explain(revision: str | None) -> str:
    """Why a store at `revision` cannot be used as it is, and what to do."""
    if revision is None:
        return "the database has no rlx tables yet: `rlx db upgrade` makes them"
    if revision not in known_revisions():
        return f"the store is at revision {revision}, which a newer rlx made: upgrade rlx"
    return f"the store is at revision {revision}, this rlx needs {HEAD}: `rlx db upgrade` brings it there"


def known_revisions() -> list[str]:
    """Every revision in this installation, newest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()]


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the store up to `revision`, all of it or nothing. Raises Refused for a store of a newer rlx."""
    from alembic import command

    file = sqlite_file(url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with _migrating(url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the store down to `revision`; `base` leaves no table of ours."""
    from alembic import command

    with _migrating(url) as connection:
        command.downgrade(_config(connection), revision)


def current(url: str) -> str | None:
    """The revision the store is at; None for an empty or absent one."""
    with _reading(url) as connection:
        return None if connection is None else stored_revision(connection)


def check(url: str) -> list[str]:
    """How the store's tables differ from `tables`: one line a difference, none where they agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from engine.store.tables import METADATA

    with _reading(url) as connection:
        if connection is None or (revision := stored_revision(connection)) is None:
            return ["there are no tables"]
        if revision not in known_revisions():
            return [explain(revision)]
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [_line(difference) for difference in compare_metadata(context, METADATA)]


def _line(difference: object) -> str:
    """`add_column runs.notes`, from Alembic's tuples (or lists of them)."""
    if isinstance(difference, list):
        return "; ".join(_line(part) for part in difference)
    return " ".join(str(part) for part in difference) if isinstance(difference, tuple) else str(difference)


def _config(connection: Connection | None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _migrating(url: str) -> Iterator[Connection]:
    """A connection in one transaction that no other migration shares; on SQLite BEGIN IMMEDIATE sees to that."""
    engine = make_engine(url, foreign_keys=False)
    try:
        with translated(engine.url), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            revision = stored_revision(connection)
            if revision is not None and revision not in known_revisions():
                raise Refused(explain(revision))
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _reading(url: str) -> Iterator[Connection | None]:
    file = sqlite_file(url)
    if file is not None and not file.exists():
        yield None  # connecting would make an empty file
        return
    engine = make_engine(url)
    try:
        with translated(engine.url), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
