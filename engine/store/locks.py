"""Named locks in SQL with an owner and an end, for work that one worker at a time should do.

A holder that dies is replaced once its time is up, so whatever is done under such a lock must bear being
done twice. Correctness never rests on these: that is what compare-and-swap is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from engine.clock import Clock, utc_now
from engine.store.session import Database
from engine.store.tables import Lock
from engine.store.upsert import insert


def acquire(session: Session, name: str, owner: str, *, now: datetime, ttl_s: float) -> bool:
    """Take the lock, or keep it if it is ours already; False where another holds it."""
    statement = insert(session, Lock).values(name=name, owner=owner, expires_at=now + timedelta(seconds=ttl_s))
    statement = statement.on_conflict_do_update(
        index_elements=[Lock.name],
        set_={"owner": owner, "expires_at": statement.excluded.expires_at},
        where=or_(Lock.owner == owner, Lock.expires_at <= now),
    )
    return session.execute(statement.returning(Lock.owner)).one_or_none() is not None


def taken(session: Session, name: str, *, now: datetime) -> bool:
    """Whether somebody holds the lock."""
    return session.scalar(select(Lock.name).where(Lock.name == name, Lock.expires_at > now)) is not None


def release(session: Session, name: str, owner: str) -> None:
    """Give the lock back, if it is still ours."""
    session.execute(delete(Lock).where(Lock.name == name, Lock.owner == owner))


@contextmanager
def held(db: Database, name: str, owner: str, ttl_s: float, *, clock: Clock = utc_now) -> Iterator[bool]:
    """`with held(db, "housekeeping", me, 30) as mine:` is true for one owner at a time.

    No transaction is open inside the block. Where another holds the lock, nothing was written to find out.
    """
    with db.read() as session:
        taken = session.scalar(
            select(Lock.name).where(Lock.name == name, Lock.owner != owner, Lock.expires_at > clock())
        )
    if taken is not None:
        yield False
        return
    with db.write() as session:
        mine = acquire(session, name, owner, now=clock(), ttl_s=ttl_s)
    try:
        yield mine
    finally:
        if mine:
            with db.write() as session:
                release(session, name, owner)


def serialise(session: Session, name: str) -> None:
    """Until this transaction ends, no other passes here with the same name. (SQLite has one writer anyway.)"""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


def removal_lock(run_id: UUID) -> str:
    """The name of the lock that keeps a run from being resumed while it is removed."""
    return f"removing:{run_id.hex}"


def tracking_lock(run_id: UUID) -> str:
    """The name of the lock of whoever mirrors a run into other tools."""
    return f"tracking:{run_id.hex}"
