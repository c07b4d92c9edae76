"""Accepted specs and their revisions. A revision is entered by `runs.submit`, never by itself."""

from __future__ import annotations

import difflib

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.errors import NotFound
from engine.store.tables import Spec


def listing(session: Session) -> list[Spec]:
    """Every revision, by name and then newest first."""
    return list(session.scalars(select(Spec).order_by(Spec.name, Spec.revision.desc())))


def find(session: Session, name: str, revision: int | None = None) -> Spec:
    """A revision of the spec `name`, the newest where none is given. Raises NotFound, with what there is."""
    query = select(Spec).where(Spec.name == name).order_by(Spec.revision.desc()).limit(1)
    found = session.scalars(query if revision is None else query.where(Spec.revision == revision)).one_or_none()
    if found is not None:
        return found
    newest = session.scalars(query).one_or_none()
    if newest is not None:
        raise NotFound(f"{name} has no revision {revision}: its newest is {name}@{newest.revision}")
    close = difflib.get_close_matches(name, session.scalars(select(Spec.name).distinct()).all(), n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "`rlx specs` lists them."
    raise NotFound(f"no spec is called {name!r}. {hint}")
