"""Runs by the names people use: `best-lang-1`, a unique beginning of it, `@last`."""

from __future__ import annotations

import difflib
import sys

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.errors import NotFound
from engine.store.locks import serialise
from engine.store.names import handle_name
from engine.store.tables import Run
from engine.store.upsert import dialect_of

LAST = "@last"


def next_number(session: Session, name: str) -> int:
    """The next counter under `name`; nobody else gets one until this transaction ends."""
    serialise(session, f"run:{name}")
    newest = session.scalar(select(func.max(Run.number)).where(Run.name == name))
    return (newest or 0) + 1


def find(session: Session, handle: str) -> Run:
    """The run that `handle` means. Raises NotFound, with what may have been meant."""
    if handle == LAST:
        run = session.scalars(select(Run).order_by(Run.submitted_at.desc(), Run.number.desc()).limit(1)).one_or_none()
        if run is None:
            raise NotFound("there is no run yet: `rlx submit SPEC` starts one")
        return run
    wanted = handle_name(handle)
    exact = session.scalars(select(Run).where(Run.handle == wanted)).one_or_none()
    if exact is not None:
        return exact
    begins = select(Run.handle)
    if wanted:
        begins = begins.where(Run.handle.startswith(wanted, autoescape=True))
        if dialect_of(session) == "sqlite":  # whose LIKE looks at every handle; it compares texts by their code points
            begins = begins.where(Run.handle.between(wanted, wanted + chr(sys.maxunicode)))
    candidates = list(session.scalars(begins.order_by(Run.submitted_at.desc()).limit(6)))
    if len(candidates) == 1:
        return session.scalars(select(Run).where(Run.handle == candidates[0])).one()
    if candidates:
        shown = ", ".join(candidates[:5]) + (", …" if len(candidates) > 5 else "")
        raise NotFound(f"{handle!r} begins the handles of several runs: {shown}. Write more of the one you mean.")
    recent = list(session.scalars(select(Run.handle).order_by(Run.submitted_at.desc()).limit(1000)))
    close = difflib.get_close_matches(wanted, recent, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "`rlx ls` lists them."
    raise NotFound(f"no run is called {handle!r}. {hint}")
