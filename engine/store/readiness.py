"""What follows from a change in a run: which stages become ready, come from the cache, or can never run, and
whether the run has ended.

`advance` is called, under the run's lock, by everything that changes a stage's status.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from engine.plan.hashing import cache_key
from engine.plan.stage import Stage as PlannedStage
from engine.store import artifacts, events, outbox
from engine.store.columns import table_of
from engine.store.tables import Artifact, CacheEntry, Run, RunId, Stage, StageInput
from engine.store.transitions import ENDED, RunStatus, StageStatus, move, move_all

_DEAD = frozenset({StageStatus.FAILED, StageStatus.CANCELLED})


@dataclass(frozen=True)
class LockedRun:
    """What has to be known of a run to move its stages; the run is locked until the transaction ends."""

    id: RunId
    handle: str
    status: RunStatus
    stop_requested: bool
    seed: int
    started_at: datetime | None


def lock_run(session: Session, run_id: UUID) -> LockedRun:
    """Lock the run, so that no other transaction that moves its stages may pass before this one ends.

    Taken before any stage is touched, by everybody and in this order, so that nobody waits in a circle.
    """
    row = session.execute(_LOCK, {"run": run_id}).one()
    return LockedRun(RunId(row.id), row.handle, RunStatus(row.status), row.stop_requested, row.seed, row.started_at)


# Statements of every claim and every ending are built once: building them costs more than SQLite takes to run them.
# NO KEY: rows that merely refer to the run (metrics, samples) may still be written while it is locked.
_R, _S = table_of(Run), table_of(Stage)
_LOCK = (
    select(_R.c.id, _R.c.handle, _R.c.status, _R.c.stop_requested, _R.c.seed, _R.c.started_at)
    .where(_R.c.id == bindparam("run"))
    .with_for_update(key_share=True)
)
_FOUND = select(_S.c.status).where(_S.c.run_id == bindparam("run")).distinct()
_STATUSES = select(_S.c.id, _S.c.status).where(_S.c.run_id == bindparam("run")).order_by(_S.c.position)
_EDGES = (
    select(StageInput.stage_id, StageInput.producer_id)
    .join(_S, _S.c.id == StageInput.stage_id)
    .where(_S.c.run_id == bindparam("run"))
)
_PLANNED = select(
    *(_S.c.id, _S.c.run_id, _S.c.name, _S.c.kind, _S.c.version, _S.c.entry, _S.c.config, _S.c.extra),
    *(_S.c.cache, _S.c.queue, _S.c.priority),
)
_PLANNED = _PLANNED.where(_S.c.id.in_(bindparam("stages", expanding=True))).order_by(_S.c.position)
_KNOWN = select(CacheEntry.key).where(CacheEntry.key.in_(bindparam("keys", expanding=True)))
_PRODUCER = table_of(Stage).alias("producer")
_INPUTS = (
    select(StageInput.name, Artifact.sha256, Artifact.uri)
    .join(_PRODUCER, _PRODUCER.c.id == StageInput.producer_id)
    .join(Artifact, Artifact.id == _PRODUCER.c.artifact_id)
    .where(StageInput.stage_id == bindparam("stage"))
    .order_by(StageInput.name)
)
_HASHES = (
    select(StageInput.stage_id, StageInput.name, Artifact.sha256)
    .join(_PRODUCER, _PRODUCER.c.id == StageInput.producer_id)
    .join(Artifact, Artifact.id == _PRODUCER.c.artifact_id)
    .where(StageInput.stage_id.in_(bindparam("stages", expanding=True)))
    .order_by(StageInput.name)
)
_MANY = 500
"""Stages a statement."""


def advance(session: Session, run: LockedRun, *, now: datetime) -> RunStatus:
    """Ready what can run, cancel what never can, and end the run if nothing is left; its status afterwards.

    `run` was locked by the caller (`lock_run`).
    """
    found = {StageStatus(status) for status in session.scalars(_FOUND, {"run": run.id})}
    if StageStatus.WAITING in found:
        found = _advance_waiting(session, run, now)
    return _settle(session, run, found, now)


def settle(session: Session, run_id: RunId, *, now: datetime) -> RunStatus:
    """`advance` for a run that the caller has not locked."""
    return advance(session, lock_run(session, run_id), now=now)


def _advance_waiting(session: Session, run: LockedRun, now: datetime) -> set[StageStatus]:
    """The states of the run's stages once what waits has been looked at; in few statements, however many these are."""
    statuses = {row.id: StageStatus(row.status) for row in session.execute(_STATUSES, {"run": run.id})}
    producers = _producers(session, run.id)
    waiting = [stage_id for stage_id, status in statuses.items() if status is StageStatus.WAITING]
    dead: list[UUID] = []
    while waiting:
        complete: list[UUID] = []
        left: list[UUID] = []
        for stage_id in waiting:  # in plan order, so that one pass settles chains of dead stages
            inputs = {statuses[producer] for producer in producers.get(stage_id, ())}
            if run.stop_requested or inputs & _DEAD:
                statuses[stage_id] = StageStatus.CANCELLED
                dead.append(stage_id)
            else:
                (complete if inputs <= {StageStatus.SUCCEEDED} else left).append(stage_id)
        cached = _make_ready(session, run, complete, now)
        statuses |= {
            stage_id: StageStatus.SUCCEEDED if stage_id in cached else StageStatus.READY for stage_id in complete
        }
        waiting = left if cached else []  # what came from the cache may be what others wait for
    move_all(
        session,
        Stage,
        StageStatus.CANCELLED,
        expect=[StageStatus.WAITING],
        rows={stage_id: {"finished_at": now} for stage_id in dead},
    )
    return set(statuses.values())


def _make_ready(session: Session, run: LockedRun, stage_ids: Sequence[UUID], now: datetime) -> set[UUID]:
    """Take waiting stages whose inputs are all there to `ready` and into the outbox, or to their end from the cache.

    Which came from the cache.
    """
    cached: set[UUID] = set()
    for first in range(0, len(stage_ids), _MANY):
        some = list(stage_ids[first : first + _MANY])
        hashes: dict[UUID, dict[str, str]] = {}
        for row in session.execute(_HASHES, {"stages": some}):
            hashes.setdefault(row.stage_id, {})[row.name] = row.sha256
        planned: Sequence[Any] = session.execute(_PLANNED, {"stages": some}).all()
        keys = {stage.id: key_of(stage, run.seed, hashes.get(stage.id, {})) for stage in planned}
        known = set(session.scalars(_KNOWN, {"keys": [keys[stage.id] for stage in planned if stage.cache]}))
        ready = []
        for stage in planned:
            key = keys[stage.id]
            artifact = artifacts.take(session, key) if stage.cache and key in known else None
            if artifact is None:
                ready.append(stage)
            else:
                take_from_cache(session, stage, artifact, key=key, expect=StageStatus.WAITING, now=now)
                cached.add(stage.id)
        new = {"ready_at": now, "announce_after": now + outbox.AGAIN_AFTER}
        rows = {stage.id: {"cache_key": keys[stage.id], **new} for stage in ready}
        move_all(session, Stage, StageStatus.READY, expect=[StageStatus.WAITING], rows=rows)
        outbox.announce_all(session, ready, due_at=now)
    return cached


def take_from_cache(
    session: Session, stage: Any, artifact: Artifact, *, key: str, expect: StageStatus, now: datetime
) -> bool:
    """End a stage, given as `key_of` takes it, with the artifact that its cache key already has.

    False where its status is not `expect`.
    """
    taken = move(
        session,
        Stage,
        stage.id,
        StageStatus.SUCCEEDED,
        expect=[expect],
        cache_key=key,
        cached=True,
        artifact_id=artifact.id,
        done=1.0,
        total=1.0,
        started_at=now,
        finished_at=now,
    )
    if taken:
        events.add(
            session,
            "stage.cached",
            f"{stage.name} was taken from the cache",
            now=now,
            run_id=stage.run_id,
            stage_id=stage.id,
            data={"key": key, "sha256": artifact.sha256},
        )
    return taken


def key_of(stage: Any, seed: int, hashes: Mapping[str, str]) -> str:
    """The cache key of a stored stage, or of a row with its columns, whose inputs' content hashes are known."""
    planned = PlannedStage(
        name=stage.name,
        kind=stage.kind,
        version=stage.version,
        run=stage.entry,
        reads=(),
        inputs={name: name for name in hashes},
        config=stage.config,
        extra=stage.extra,
    )
    return cache_key(planned, seed, hashes)


def input_artifacts(session: Session, stage_id: UUID) -> dict[str, tuple[str, str]]:
    """Input name -> (content hash, uri) of the artifact that answers it."""
    return {name: (sha256, uri) for name, sha256, uri in session.execute(_INPUTS, {"stage": stage_id})}


def _producers(session: Session, run_id: UUID) -> dict[UUID, set[UUID]]:
    """Stage -> the stages whose artifacts it reads, of those that read any."""
    found: dict[UUID, set[UUID]] = {}
    for row in session.execute(_EDGES, {"run": run_id}):
        found.setdefault(row.stage_id, set()).add(row.producer_id)
    return found


def _settle(session: Session, run: LockedRun, statuses: Collection[StageStatus], now: datetime) -> RunStatus:
    before = run.status
    if before in ENDED[Run] or any(status not in ENDED[Stage] for status in statuses):
        return before
    if all(status is StageStatus.SUCCEEDED for status in statuses):
        to = RunStatus.SUCCEEDED
    elif run.stop_requested:
        to = RunStatus.CANCELLED
    else:
        to = RunStatus.FAILED
    move(session, Run, run.id, to, expect=[before], finished_at=now, started_at=run.started_at or now)
    events.add(session, f"run.{to}", f"{run.handle} {_ENDINGS[to]}", now=now, run_id=run.id)
    return to


_ENDINGS = {
    RunStatus.SUCCEEDED: "succeeded",
    RunStatus.FAILED: "failed: `rlx show` says why, `rlx resume` tries what is left again",
    RunStatus.CANCELLED: "was cancelled; `rlx resume` takes it up again",
}
