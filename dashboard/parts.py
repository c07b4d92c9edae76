"""What every page uses: the store, opened for reading alone; statuses, facts and empty states that look the same.

What a model or a user wrote goes through `shown` (a block of plain text) or `wording.plain`: it is never heard as
HTML or Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pandas as pd
import streamlit as st
from sqlalchemy.orm import Session

from dashboard import queries, state, wording
from dashboard.charts import INKS, Chart, Ink
from engine.clock import utc_now
from engine.errors import RlxError, Unreachable
from engine.settings import Settings, read_settings
from engine.store.session import Database, open_database


def settings() -> Settings:
    """Where the store is: read from the environment, as every `rlx` command does."""
    return read_settings()


def now() -> datetime:
    """The current time."""
    return utc_now()


def ink() -> Ink:
    """Colours for what is drawn by hand, in the reader's theme."""
    return INKS[state.theme()]


@contextmanager
def reading() -> Iterator[Session]:
    """A session that can only read. What goes wrong with the store is explained, and the page ends there."""
    try:
        place = settings().database_url
        with _database(place, _identity(place)).read() as session:
            yield session
    except RlxError as error:
        explain(error)
        st.stop()


@st.cache_resource(show_spinner=False, max_entries=4)
def _database(url: str, identity: int) -> Database:
    return open_database(url, create=False)


def _identity(url: str) -> int:
    """The file's number, so that a store made anew under the same name is opened anew."""
    prefix, _, file = url.partition("sqlite:///")
    path = Path(file)
    return path.stat().st_ino if not prefix and file and path.exists() else 0


def named_by_url(session: Session, name: str, besides: Sequence[str]) -> list[str]:
    """The run that a query parameter names, where it is not among `besides`; a beginning or `@last` is written out.

    Says so where the parameter names nothing.
    """
    given = state.parameter(name)
    if given is None or given in besides:
        return []
    meant = queries.resolve(session, given)
    if meant is None:
        if besides:
            st.warning(f"No run is called {wording.plain(given)}; here is another one.")
        return []
    st.session_state[name] = meant
    return [] if meant in besides else [meant]


def explain(error: RlxError) -> None:
    """Say what is wrong with the store and which command mends it."""
    unreachable = isinstance(error, Unreachable)
    st.subheader("The store does not answer" if unreachable else "No store to read")
    shown(str(error))
    if unreachable:
        st.write(
            "Start the database, or point `RLX_DATABASE_URL` elsewhere, and reload this page. To see what is wrong:"
        )
        command("rlx doctor")
    else:
        st.write("The dashboard only reads. A first run makes the store:")
        command("rlx submit specs/best_lang.yaml")
        st.write("One that is there, but of another version, is brought up to date by:")
        command("rlx db upgrade")
    st.caption(wording.plain(f"Looked in {settings().home}; RLX_HOME names another folder."))


def shown(text: str, *, height: int | None = None, language: str | None = None, wrap: bool = True) -> None:
    """A block of text as it stands, to be read and copied."""
    st.code(text, language=language, wrap_lines=wrap, height=height or "content")


def said(text: str) -> None:
    """What a user wrote about something: plain, in the page's own type."""
    st.text(text)


def facts(table: pd.DataFrame) -> None:
    """A small table of names and values, all plain text."""
    st.dataframe(
        table,
        hide_index=True,
        height="content",
        column_config={
            "what": st.column_config.TextColumn("What", width=170),
            "value": st.column_config.TextColumn("Value", width=260),
        },
    )


def command(line: str) -> None:
    """A command to copy."""
    st.code(line, language=None)


def empty(says: str, *commands: str) -> None:
    """Nothing to show yet, and what to type for there to be something."""
    with st.container(border=True):
        st.write(says)
        for line in commands:
            command(line)


def status_badge(status: str) -> None:
    """A status by its icon, its word and its colour."""
    look = wording.look(status)
    st.badge(status, icon=look.icon, color=look.badge)


def tag_badges(tags: Sequence[str]) -> None:
    """The user's tags."""
    for tag in tags:
        st.badge(wording.plain(tag), color="gray")


def tiles(facts: Sequence[tuple[str, str, str | None]]) -> None:
    """Facts in a row of tiles: label, value, and what it means."""
    for column, (label, value, meaning) in zip(st.columns(len(facts), gap="small"), facts, strict=True):
        column.metric(label, value, help=meaning, border=True)


def chart(drawn: Chart, key: str, alt: str, *, fixed: bool = False) -> None:
    """A chart as wide as its place, or as wide as it was drawn."""
    st.altair_chart(drawn, width="content" if fixed else "stretch", key=key, alt=alt)
