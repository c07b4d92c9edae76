"""What waits in the queue and why, for people: the same order and the same view of the cluster that workers act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.store import lending, queue
from engine.store.columns import table_of
from engine.store.lending import Lender
from engine.store.queue import READY, WAITING_COLUMNS, Waiting, waiting_of
from engine.store.tables import Run, Stage


class Reason(StrEnum):
    """Why a ready stage does not run yet."""

    BACKING_OFF = "backing_off"
    NO_WORKER = "no_worker"
    NO_SUCH_QUEUE = "no_such_queue"
    DRAINING = "draining"
    TOO_LARGE = "too_large"
    DEVICES = "devices"
    BEHIND = "behind"
    NEXT = "next"


@dataclass(frozen=True)
class InQueue:
    """One stage that waits for a worker."""

    stage: Waiting
    handle: str
    """The run's."""
    position: int | None
    """In its queue, from 1; None while it backs off."""
    not_before: datetime | None
    reason: Reason
    why: str


_S, _R = table_of(Stage), table_of(Run)


def counts(session: Session) -> dict[str, int]:
    """Queue -> how many stages are ready in it."""
    found = (
        select(_S.c.queue, func.count().label("ready"))
        .where(_S.c.status == READY)
        .group_by(_S.c.queue)
        .order_by(_S.c.queue)
    )
    return {row.queue: row.ready for row in session.execute(found)}


def listing(session: Session, queues: Sequence[str], *, now: datetime, limit: int = 50) -> list[InQueue]:
    """What waits in these queues, each in the order in which it comes up, at most `limit` of each; back-offs last."""
    cluster = lending.lenders(session, now)
    handles: dict[UUID, str] = {}
    found: list[InQueue] = []
    for name in queues:
        line = queue.ready(session, queues=[name], now=now, limit=limit, share=partial(lending.share, cluster, [name]))
        resting = _backing_off(session, name, now, limit - len(line))
        _add_handles(session, handles, [*line, *(stage for stage, _, _ in resting)])
        for ahead, stage in enumerate(line):
            higher = sum(other.priority > stage.priority for other in line[:ahead])
            reason, why = explain(stage, cluster, ahead=ahead, higher=higher)
            found.append(InQueue(stage, handles[stage.run_id], ahead + 1, None, reason, why))
        for stage, until, cause in resting:
            why = f"backing off until {until:%H:%M:%S} UTC" + (f" after {cause}" if cause else "")
            found.append(InQueue(stage, handles[stage.run_id], None, until, Reason.BACKING_OFF, why))
    return found


def _backing_off(session: Session, name: str, now: datetime, limit: int) -> list[tuple[Waiting, datetime, str | None]]:
    rows = session.execute(
        select(*WAITING_COLUMNS, _S.c.not_before, _S.c.cause)
        .where(_S.c.status == READY, _S.c.queue == name, _S.c.not_before > now)
        .order_by(_S.c.not_before, _S.c.id)
        .limit(max(0, limit))
    )
    return [(waiting_of(row), row.not_before, row.cause) for row in rows]


def _add_handles(session: Session, handles: dict[UUID, str], stages: Sequence[Waiting]) -> None:
    unknown = {stage.run_id for stage in stages} - handles.keys()
    if unknown:
        rows = session.execute(select(_R.c.id, _R.c.handle).where(_R.c.id.in_(unknown)))
        handles.update((row.id, row.handle) for row in rows)


def explain(stage: Waiting, cluster: Sequence[Lender], *, ahead: int, higher: int) -> tuple[Reason, str]:
    """Why a stage that may run does not, with `ahead` stages before it in its queue, `higher` of higher priority."""
    if not cluster:
        return Reason.NO_WORKER, "no worker is alive: `rlx worker` starts one"
    mine = [it for it in cluster if (stage.queue in it.queues if it.run_id is None else it.run_id == stage.run_id)]
    if not mine:
        return Reason.NO_SUCH_QUEUE, f"no worker serves queue {stage.queue}"
    if not any(lender.open for lender in mine):
        return Reason.DRAINING, f"every worker of queue {stage.queue} is draining"
    able = [lender for lender in mine if lender.serves(stage)]
    if not able:
        largest = max((it for it in mine if it.open), key=lambda lender: (lender.total.gpus, lender.total.slots))
        return Reason.TOO_LARGE, f"needs {stage.needs}; {largest.name}, the largest worker, lends {largest.total}"
    if stage.nodes > 1:
        return _explain_several(stage, able, ahead=ahead, higher=higher)
    fitting = [lender for lender in able if stage.needs.within(lender.free)]
    before = _before(ahead, higher)
    if not fitting:
        return Reason.DEVICES, _short_of(stage, able) + (f", {before}" if higher else "")
    if ahead:
        return Reason.BEHIND, before
    keeper = fitting[0]
    if keeper.keeps is not None and all(lender.keeps is not None for lender in fitting):
        return Reason.DEVICES, f"{keeper.name} keeps its free devices for {keeper.keeps.name} ({keeper.keeps.needs})"
    return Reason.NEXT, f"next: {keeper.name} has room for it"


def _explain_several(stage: Waiting, able: Sequence[Lender], *, ahead: int, higher: int) -> tuple[Reason, str]:
    """The same for a stage of several nodes, which so many workers could take a part in."""
    wants = f"needs {stage.nodes} workers with {stage.needs} each"
    if len(able) < stage.nodes:
        return Reason.TOO_LARGE, f"{wants}; {_workers(len(able))} {'lends' if len(able) == 1 else 'lend'} that"
    fitting = [lender for lender in able if lender.joins(stage)]
    before = _before(ahead, higher)
    if len(fitting) < stage.nodes:
        free = f"{wants}; {len(fitting)} of {len(able)} {'has' if len(fitting) == 1 else 'have'} them free"
        keeps = ", ".join(lender.name for lender in able if lender.keeps_for(stage))
        return Reason.DEVICES, free + (f", kept by {keeps}" if keeps else "") + (f", {before}" if higher else "")
    if ahead:
        return Reason.BEHIND, before
    return Reason.NEXT, f"next: {', '.join(lender.name for lender in fitting[: stage.nodes])} have room for it"


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def _before(ahead: int, higher: int) -> str:
    if higher:
        return f"behind {_stages(higher)} of higher priority"
    return f"behind {_stages(ahead)}"


def _stages(count: int) -> str:
    return f"{count} stage{'s' * (count != 1)}"


def _short_of(stage: Waiting, able: Sequence[Lender]) -> str:
    """`waits for 4 GPUs: w1 has 2 free of 8`, of the worker that lacks least or keeps its devices for the stage."""
    best = min(able, key=lambda lender: (not lender.keeps_for(stage), lender.lacks(stage)))
    gpus, _ = best.lacks(stage)
    kind, wanted, free, total = (
        ("GPU", stage.needs.gpus, best.free.gpus, best.total.gpus)
        if gpus
        else ("slot", stage.needs.slots, best.free.slots, best.total.slots)
    )
    verb = "keeps" if best.keeps_for(stage) else "has"
    return f"waits for {wanted} {kind}{'s' * (wanted != 1)}: {best.name} {verb} {free} free of {total}"
