"""Stages while they are tried: claimed by one worker, kept by its heartbeat, fenced by the attempt's number.

How an attempt ends is `outcomes`' (its verbs are handed on here); what follows from it is `readiness`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import bindparam, select, update
from sqlalchemy import insert as insert_into
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from engine.errors import Refused, StaleAttempt
from engine.plan.stage import Resources
from engine.store import artifacts, events, members
from engine.store.columns import table_of
from engine.store.members import Gang, Lent
from engine.store.outcomes import Expired, Outcome, expire, finish, lose
from engine.store.queue import READY
from engine.store.readiness import advance, input_artifacts, lock_run, take_from_cache
from engine.store.tables import (
    Attempt,
    CacheEntry,
    Checkpoint,
    Lease,
    Run,
    RunId,
    Stage,
    StageId,
    StageInput,
    WorkerId,
)
from engine.store.together import Write, together
from engine.store.transitions import AttemptStatus, RunStatus, StageStatus, changed, move
from engine.store.values import storable_json, storable_text

__all__ = [
    "Claimed",
    "Expired",
    "Fence",
    "Outcome",
    "Resume",
    "Signal",
    "attempts",
    "claim",
    "expire",
    "fenced",
    "finish",
    "for_run",
    "heartbeat",
    "held",
    "joined",
    "lose",
    "newest",
    "progress",
    "start",
]


class Signal(Enum):
    """What a heartbeat brings back."""

    KEEP = "keep"
    STOP = "stop"


@dataclass(frozen=True)
class Resume:
    """The newest checkpoint that an earlier attempt recorded."""

    step: int
    uri: str
    sha256: str


@dataclass(frozen=True)
class Claimed:
    """One attempt at a stage, and all that is needed to run it."""

    stage_id: StageId
    run_id: RunId
    attempt_id: UUID
    number: int
    """The fencing token."""
    name: str
    kind: str
    entry: str
    config: Mapping[str, Any]
    extra: Mapping[str, Any]
    resources: Resources
    seed: int
    inputs: Mapping[str, tuple[str, str]]
    """Input name -> (content hash, uri)."""
    cache_key: str
    handle: str
    """The run's."""
    cache: bool = True
    """False under `--no-cache`: its output takes the place of what the cache has."""
    resume: Resume | None = None
    gang: Gang | None = None
    """The nodes that carry it out together, where they are several."""

    def as_data(self) -> dict[str, Any]:
        """JSON data for `from_data`, such as the payload of a child process."""
        ids = {"stage_id": str(self.stage_id), "run_id": str(self.run_id), "attempt_id": str(self.attempt_id)}
        return asdict(self) | ids

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Claimed:
        resume, gang = data["resume"], data.get("gang")
        return cls(
            **{
                **data,
                "stage_id": StageId(UUID(data["stage_id"])),
                "run_id": RunId(UUID(data["run_id"])),
                "attempt_id": UUID(data["attempt_id"]),
                "resources": Resources(**data["resources"]),
                "inputs": {name: (sha256, uri) for name, (sha256, uri) in data["inputs"].items()},
                "resume": None if resume is None else Resume(**resume),
                "gang": None if gang is None else Gang.from_data(gang),
            }
        )


_BEGIN = insert_into(table_of(Attempt))
_LEASE = insert_into(table_of(Lease)).inline()
_S, _R, _C, _I = (table_of(table) for table in (Stage, Run, CacheEntry, StageInput))
# One statement locks the run and reads the stage. PostgreSQL may show a stage as it was before the wait for the lock;
# what may have changed since is compared again by the swap.
_CLAIM = (
    select(
        *(_S.c.run_id, _S.c.name, _S.c.kind, _S.c.entry, _S.c.config, _S.c.extra, _S.c.resources, _S.c.attempt),
        *(_S.c.cache, _S.c.cache_key, _S.c.not_before, _S.c.started_at),
        *(_R.c.seed, _R.c.handle, _R.c.status.label("run_status"), _R.c.started_at.label("run_started_at")),
        _C.c.key.label("found"),
        select(_I.c.stage_id).where(_I.c.stage_id == _S.c.id).exists().label("reads"),
    )
    .join(_R, _R.c.id == _S.c.run_id)
    .outerjoin(_C, (_C.c.key == _S.c.cache_key) & _S.c.cache)
    .where(_S.c.id == bindparam("stage"), _S.c.status == READY)
    .with_for_update(key_share=True, of=_R)
)


def claim(
    session: Session,
    stage_id: StageId,
    *,
    worker: WorkerId,
    devices: Sequence[str],
    now: datetime,
    lease_s: float,
) -> Claimed | None:
    """Begin the next attempt at a stage, if it is ready and this caller is the first to say so.

    None where there is nothing to claim (announced twice, cancelled, backing off), or where the cache meanwhile
    knows the stage's output, which ends it here. Nor is there where a stage of several nodes finds too few workers with
    room for it. Raises Refused where one of `devices` is leased already.
    """
    stage = session.execute(_CLAIM, {"stage": stage_id}).one_or_none()
    if stage is None or stage.cache_key is None or (stage.not_before is not None and stage.not_before > now):
        return None
    if stage.found is not None and _cached(session, stage_id, stage.run_id, now):
        return None
    number, run_id = stage.attempt + 1, RunId(stage.run_id)
    resources, others = Resources(**stage.resources), None
    if resources.nodes > 1 and (others := members.find_others(session, stage_id, worker, now)) is None:
        return None
    won = move(
        session,
        Stage,
        stage_id,
        StageStatus.RUNNING,
        expect=[StageStatus.READY],
        newest=stage.attempt,
        attempt=number,
        started_at=stage.started_at or now,
        progress_at=now,
    )
    if not won:
        return None
    claimed = Claimed(
        stage_id=stage_id,
        run_id=run_id,
        attempt_id=uuid4(),
        number=number,
        name=stage.name,
        kind=stage.kind,
        entry=stage.entry,
        config=stage.config,
        extra=stage.extra,
        resources=resources,
        seed=stage.seed,
        inputs=input_artifacts(session, stage_id) if stage.reads else {},
        cache_key=stage.cache_key,
        cache=stage.cache,
        handle=stage.handle,
        resume=_newest_checkpoint(session, stage_id) if number > 1 else None,
    )
    claimed = _begin(session, claimed, worker, devices, now, lease_s, others)
    if stage.run_status == RunStatus.QUEUED:
        started_at = stage.run_started_at or now
        move(session, Run, run_id, RunStatus.RUNNING, expect=[RunStatus.QUEUED], started_at=started_at)
    return claimed


def _cached(session: Session, stage_id: StageId, run_id: UUID, now: datetime) -> bool:
    """End the stage, whose run is locked, from the cache. False where its entry has just been removed."""
    stage = session.get_one(Stage, stage_id, populate_existing=True)
    assert stage.cache_key is not None, "what is ready has its key"
    artifact = artifacts.take(session, stage.cache_key)
    if artifact is None:
        return False
    take_from_cache(session, stage, artifact, key=stage.cache_key, expect=StageStatus.READY, now=now)
    advance(session, lock_run(session, run_id), now=now)
    return True


def _begin(
    session: Session,
    claimed: Claimed,
    worker: WorkerId,
    devices: Sequence[str],
    now: datetime,
    lease_s: float,
    others: Sequence[Lent] | None,
) -> Claimed:
    attempt = Write(
        _BEGIN,
        {
            "id": claimed.attempt_id,
            "stage_id": claimed.stage_id,
            "number": claimed.number,
            "worker_id": worker,
            "status": AttemptStatus.RUNNING,
            "detail": {},
            "spent": {},
            "log_tail": "",
            "lease_expires_at": now + timedelta(seconds=lease_s),
            "started_at": now,
        },
    )
    leases = [
        Write(_LEASE, {"attempt_id": claimed.attempt_id, "worker_id": worker, "device": device}) for device in devices
    ]
    started = events.adding(
        "stage.started",
        f"{claimed.name} started" + (f", attempt {claimed.number}" if claimed.number > 1 else ""),
        now=now,
        run_id=claimed.run_id,
        stage_id=claimed.stage_id,
        attempt=claimed.number,
        worker_id=worker,
        data={"devices": list(devices)}
        | ({} if others is None else {"nodes": [f"{it.node}: {', '.join(it.devices)}" for it in others]}),
    )
    try:
        together(session, attempt, *leases, started)
        if others is None:
            return claimed
        return replace(
            claimed, gang=members.begin(session, claimed.attempt_id, worker, others, now=now, lease_s=lease_s)
        )
    except IntegrityError as error:
        whose = "this worker" if others is None else f"this worker, or what {len(others)} others were to lend"
        raise Refused(f"one of {', '.join(devices)} is leased to another attempt of {whose}") from error


def joined(session: Session, attempt_id: UUID, node: int) -> Claimed:
    """A running attempt as one of its nodes, not the first, sees it. Raises StaleAttempt where it is over."""
    stage = session.execute(
        select(
            *(_S.c.id, _S.c.run_id, _S.c.name, _S.c.kind, _S.c.entry, _S.c.config, _S.c.extra, _S.c.resources),
            *(_S.c.cache, _S.c.cache_key, _R.c.seed, _R.c.handle, Attempt.number),
        )
        .join(_R, _R.c.id == _S.c.run_id)
        .join(Attempt, Attempt.stage_id == _S.c.id)
        .where(Attempt.id == attempt_id, Attempt.status == AttemptStatus.RUNNING)
    ).one_or_none()
    if stage is None:
        raise StaleAttempt("the attempt was over before this node of it began")
    same = ("name", "kind", "entry", "config", "extra", "seed", "cache", "cache_key", "handle", "number")
    return Claimed(
        **{name: getattr(stage, name) for name in same},
        stage_id=StageId(stage.id),
        run_id=RunId(stage.run_id),
        attempt_id=attempt_id,
        resources=Resources(**stage.resources),
        inputs=input_artifacts(session, StageId(stage.id)),
        gang=members.gang_of(session, attempt_id, node),
    )


def _newest_checkpoint(session: Session, stage_id: StageId) -> Resume | None:
    row = session.execute(
        select(Checkpoint.step, Checkpoint.uri, Checkpoint.sha256)
        .where(Checkpoint.stage_id == stage_id)
        .order_by(Checkpoint.step.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Resume(*row)


def start(
    session: Session, claimed: Claimed, *, pid: int, pid_started: float | None = None, log_path: str | None = None
) -> None:
    """Record the attempt's process. Raises StaleAttempt where the attempt is over."""
    _of_running_attempt(session, claimed, pid=pid, pid_started=pid_started, log_path=log_path)


def heartbeat(
    session: Session, claimed: Claimed, *, now: datetime, lease_s: float, spent: Mapping[str, Any] | None = None
) -> Signal:
    """Renew the attempt's lease, and learn whether it should stop. Raises StaleAttempt where it is over.

    `spent` says where its time went so far: should the worker die, that is all that is known of it.
    """
    told = {} if spent is None else {"spent": storable_json(spent)}
    _of_running_attempt(session, claimed, lease_expires_at=now + timedelta(seconds=lease_s), **told)
    stop = session.scalar(select(Run.stop_requested).where(Run.id == claimed.run_id))
    return Signal.STOP if stop else Signal.KEEP


def _of_running_attempt(session: Session, claimed: Claimed, **values: Any) -> None:
    table = table_of(Attempt)
    running = (table.c.id == claimed.attempt_id) & (table.c.status == AttemptStatus.RUNNING)
    if changed(session, update(table).where(running).values(**values)) == 0:
        raise StaleAttempt(f"attempt {claimed.number} at {claimed.name} is over: a newer one may have begun")


def progress(
    session: Session, stage_id: StageId, number: int, *, done: float, total: float, note: str = "", now: datetime
) -> None:
    """How far the current attempt is. Raises StaleAttempt for another one."""
    statement = (
        update(Stage)
        .where(Stage.id == stage_id, Stage.attempt == number, Stage.status == StageStatus.RUNNING)
        .values(done=done, total=total, note=storable_text(note)[:255], progress_at=now)
        .execution_options(synchronize_session=False)
    )
    if changed(session, statement) == 0:
        raise _stale(number)


def fenced(session: Session, stage_id: StageId, number: int) -> None:
    """Hold the fence until this transaction ends: attempt `number` is the current one, or StaleAttempt is raised.

    Every write of a running stage goes behind this in the same transaction.
    """
    if session.execute(_FENCE, {"stage": stage_id, "attempt": number}).one_or_none() is None:
        raise _stale(number)


def newest(session: Session, stage_id: StageId, number: int) -> None:
    """Hold, until this transaction ends, that no attempt after `number` has begun; StaleAttempt where one has.

    For what a dead attempt left on its disk: it may be over, but nobody has begun to report the same again.
    """
    if session.execute(_NEWEST, {"stage": stage_id, "attempt": number}).one_or_none() is None:
        raise _stale(number)


def held(session: Session, stage_id: StageId, number: int) -> None:
    """This transaction holds its fence already: for who writes many things behind one."""


Fence = Callable[[Session, StageId, int], None]
"""`fenced`, `newest` or `held`."""

_NEWEST = (
    select(Stage.attempt)
    .where(Stage.id == bindparam("stage"), Stage.attempt == bindparam("attempt"))
    .with_for_update(read=True)
)
_FENCE = _NEWEST.where(Stage.status == StageStatus.RUNNING)


def _stale(number: int) -> StaleAttempt:
    return StaleAttempt(f"attempt {number} is no longer the current one: what it reports is not recorded")


def for_run(session: Session, run_id: RunId) -> list[Stage]:
    """The stages of a run, in plan order."""
    return list(session.scalars(select(Stage).where(Stage.run_id == run_id).order_by(Stage.position)))


def attempts(session: Session, stage_id: StageId) -> list[Attempt]:
    """Every attempt at a stage, oldest first."""
    return list(session.scalars(select(Attempt).where(Attempt.stage_id == stage_id).order_by(Attempt.number)))
