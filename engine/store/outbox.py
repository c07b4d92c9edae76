"""What is to be announced to the broker: written with its cause, sent afterwards, at least once.

A message only says that a stage is ready; sent twice, or lost by the broker, it does no harm, for a claim
is a compare-and-swap and `announce_again` repeats what nobody has claimed. How to send is the caller's. Whoever hears
one takes all that fits, so no more are sent at once than there are slots to hear them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.orm import Session

from engine.store import workers
from engine.store.columns import table_of
from engine.store.queue import READY
from engine.store.session import Database
from engine.store.tables import Outbox, Stage, StageId

_ADD = insert(table_of(Outbox))

AGAIN_AFTER = timedelta(seconds=60)
_LONGEST_PAUSE = timedelta(seconds=600)
_TAKEN_FOR = timedelta(seconds=30)


@dataclass(frozen=True)
class OutboxMessage:
    """One announcement: that `stage_id` is ready, for workers of `queue`."""

    id: int
    stage_id: StageId
    queue: str
    priority: int


def announce(session: Session, stage_id: UUID, *, queue: str, priority: int, due_at: datetime) -> None:
    """Put a stage that becomes ready into the outbox, in the transaction that makes it so."""
    session.execute(_ADD, {"stage_id": stage_id, "queue": queue, "priority": priority, "due_at": due_at})


def announce_all(session: Session, stages: Sequence[Any], *, due_at: datetime) -> None:
    """`announce` for rows of stages."""
    if stages:
        rows = [
            {"stage_id": stage.id, "queue": stage.queue, "priority": stage.priority, "due_at": due_at}
            for stage in stages
        ]
        session.execute(_ADD, rows)


def publish(db: Database, send: Callable[[OutboxMessage], None], *, now: datetime, limit: int = 1000) -> int:
    """Announce what is due, highest priority first; of how many stages.

    Of each queue so many messages are sent as its living workers have slots, all where no worker is known. Several may
    publish at once: each takes rows that no other has. `send` runs with no transaction open. What it raises rises,
    after what was announced is struck off and the rest is handed back.
    """
    due = (Outbox.due_at <= now) & or_(Outbox.taken_until.is_(None), Outbox.taken_until <= now)
    with db.read() as session:
        if session.scalar(select(Outbox.id).where(due).limit(1)) is None:
            return 0
    with db.write() as session:
        # By WITH it is read once. In a plain subquery PostgreSQL may read it anew for every row, and each time go on
        # past what this very statement has updated: it would take all there is.
        chosen = (
            select(Outbox.id)
            .where(due)
            .order_by(Outbox.priority.desc(), Outbox.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("chosen")
        )
        rows = session.execute(
            update(Outbox)
            .where(Outbox.id.in_(select(chosen.c.id)))
            .values(taken_until=now + _TAKEN_FOR)
            .returning(Outbox.id, Outbox.stage_id, Outbox.queue, Outbox.priority)
            .execution_options(synchronize_session=False)
        ).all()
        hearers = workers.slots_by_queue(session, now)
    messages = sorted(
        (OutboxMessage(row.id, StageId(row.stage_id), row.queue, row.priority) for row in rows),
        key=lambda message: (-message.priority, message.id),
    )
    done: list[int] = []
    told: Counter[str] = Counter()
    try:
        for message in messages:
            if told[message.queue] < hearers.get(message.queue, len(messages)):
                send(message)
                told[message.queue] += 1
            done.append(message.id)
    finally:
        _settle(db, done, [message.id for message in messages[len(done) :]])
    return len(done)


def _settle(db: Database, done: Collection[int], left: Collection[int]) -> None:
    if not done and not left:
        return
    with db.write() as session:
        if done:
            session.execute(delete(Outbox).where(Outbox.id.in_(done)))
        if left:
            session.execute(update(Outbox).where(Outbox.id.in_(left)).values(taken_until=None))


def announce_again(session: Session, now: datetime, *, limit: int = 1000) -> int:
    """Announce once more what has been ready for a while and still is; the number of stages.

    The pause doubles each time, up to ten minutes: a long queue of stages that merely wait for a free worker
    does not fill the broker, and a message that the broker lost is never missed for longer than that.
    """
    rows = session.execute(
        select(Stage.id, Stage.queue, Stage.priority, Stage.ready_at)
        .where(Stage.status == READY, Stage.announce_after <= now)
        .where(Stage.id.not_in(select(Outbox.stage_id)))
        .order_by(Stage.announce_after)
        .limit(limit)
    ).all()
    for stage_id, queue, priority, ready_at in rows:
        pause = min(max(AGAIN_AFTER, now - (ready_at or now)), _LONGEST_PAUSE)
        session.execute(update(Stage).where(Stage.id == stage_id).values(announce_after=now + pause))
        announce(session, stage_id, queue=queue, priority=priority, due_at=now)
    return len(rows)
