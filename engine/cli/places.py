"""Where this command line works: settings read once, the store opened where there is one.

The edge of the program: below it, settings and databases are arguments.
"""

from __future__ import annotations

import atexit
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakSet

from engine.errors import NotFound
from engine.settings import Settings, read_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from engine.store.session import Database

_OPEN: WeakSet[Engine] = WeakSet()
"""Their engines: these are in cycles, and outlive what refers to them."""


@cache
def the_settings() -> Settings:
    """The settings of this process."""
    return read_settings()


def store() -> Database:
    """The store, made if this is the embedded default's first use."""
    from engine.store.session import open_database

    opened = open_database(the_settings())
    _OPEN.add(opened.engine)
    return opened


@atexit.register
def _close() -> None:
    """Close what is still open: SQLite then folds its log into the file, and nobody collects it (see `app.main`)."""
    for engine in list(_OPEN):
        engine.dispose()


def existing_store() -> Database | None:
    """The store, or None where nothing was ever submitted: looking around leaves no folder behind."""
    from engine.store.connection import sqlite_file

    file = sqlite_file(the_settings().database_url)
    return None if file is not None and not file.exists() else store()


def required_store() -> Database:
    """The store that must be there, since a handle is looked for in it. Raises NotFound."""
    found = existing_store()
    if found is None:
        raise NotFound(
            f"nothing was submitted here yet: there is no store at {the_settings().home}. "
            "`rlx submit SPEC` starts a run; RLX_HOME names another place."
        )
    return found


def shown_url(url: str) -> str:
    """A URL without its password."""
    head, at, tail = url.rpartition("@")
    if not at or ":" not in head.split("//", 1)[-1]:
        return url
    return f"{head.rpartition(':')[0]}:***@{tail}"
