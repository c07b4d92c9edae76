"""What follows from a change in a run: which stages become ready, come from the cache, or can never run, and
whether the run has ended.

`advance` is called, under the run's lock, by everything that changes a stage's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from engine.plan.hashing import cache_key
from engine.plan.stage import Stage as PlannedStage
from engine.store import artifacts, events, outbox
from engine.store.columns import table_of
from engine.store.tables import Artifact, Run, RunId, Stage, StageInput
from engine.store.transitions import ENDED, RunStatus, StageStatus, move

_DEAD = (StageStatus.FAILED, StageStatus.CANCELLED)


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
_STATUSES = select(_S.c.id, _S.c.status).where(_S.c.run_id == bindparam("run")).order_by(_S.c.position)
_PRODUCER = table_of(Stage).alias("producer")
_INPUTS = (
    select(StageInput.name, Artifact.sha256, Artifact.uri)
    .join(_PRODUCER, _PRODUCER.c.id == StageInput.producer_id)
    .join(Artifact, Artifact.id == _PRODUCER.c.artifact_id)
    .where(StageInput.stage_id == bindparam("stage"))
    .order_by(StageInput.name)
)


def advance(session: Session, run: LockedRun, *, now: datetime) -> RunStatus:
    """Ready what can run, cancel what never can, and end the run if nothing is left; its status afterwards.

    `run` was locked by the caller (`lock_run`).
    """
    rows = session.execute(_STATUSES, {"run": run.id}).all()
    statuses = {stage_id: StageStatus(status) for stage_id, status in rows}
    waiting = [stage_id for stage_id, status in statuses.items() if status is StageStatus.WAITING]
    if waiting:
        producers = _producers(session, waiting)
        for stage_id in waiting:  # in plan order, so that one pass settles chains of cached or dead stages
            inputs = {name: statuses[producer] for name, producer in producers[stage_id].items()}
            if run.stop_requested or any(status in _DEAD for status in inputs.values()):
                move(session, Stage, stage_id, StageStatus.CANCELLED, expect=[StageStatus.WAITING], finished_at=now)
                statuses[stage_id] = StageStatus.CANCELLED
            elif all(status is StageStatus.SUCCEEDED for status in inputs.values()):
                statuses[stage_id] = make_ready(session, run, stage_id, now=now)
    return _settle(session, run, list(statuses.values()), now)


def settle(session: Session, run_id: RunId, *, now: datetime) -> RunStatus:
    """`advance` for a run that the caller has not locked."""
    return advance(session, lock_run(session, run_id), now=now)


def make_ready(session: Session, run: LockedRun, stage_id: UUID, *, now: datetime) -> StageStatus:
    """Take a waiting stage whose inputs are all there to `ready` and into the outbox, or to its end from the cache."""
    stage = session.scalars(select(Stage).where(Stage.id == stage_id).execution_options(populate_existing=True)).one()
    key = key_of(stage, run.seed, input_hashes(session, stage_id))
    if stage.cache and (found := artifacts.take(session, key)) is not None:
        take_from_cache(session, stage, found, key=key, expect=StageStatus.WAITING, now=now)
        return StageStatus.SUCCEEDED
    move(
        session,
        Stage,
        stage_id,
        StageStatus.READY,
        expect=[StageStatus.WAITING],
        cache_key=key,
        ready_at=now,
        announce_after=now + outbox.AGAIN_AFTER,
    )
    outbox.announce(session, stage_id, queue=stage.queue, priority=stage.priority, due_at=now)
    return StageStatus.READY


def take_from_cache(
    session: Session, stage: Stage, artifact: Artifact, *, key: str, expect: StageStatus, now: datetime
) -> bool:
    """End a stage with the artifact that its cache key already has. False where its status is not `expect`."""
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


def key_of(stage: Stage, seed: int, hashes: Mapping[str, str]) -> str:
    """The cache key of a stored stage, whose inputs' content hashes are known."""
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


def input_hashes(session: Session, stage_id: UUID) -> dict[str, str]:
    """Input name -> content hash of the artifact that answers it."""
    return {name: sha256 for name, (sha256, _) in input_artifacts(session, stage_id).items()}


def input_artifacts(session: Session, stage_id: UUID) -> dict[str, tuple[str, str]]:
    """Input name -> (content hash, uri) of the artifact that answers it."""
    return {name: (sha256, uri) for name, sha256, uri in session.execute(_INPUTS, {"stage": stage_id})}


def _producers(session: Session, stage_ids: list[UUID]) -> dict[UUID, dict[str, UUID]]:
    found: dict[UUID, dict[str, UUID]] = {stage_id: {} for stage_id in stage_ids}
    rows = session.execute(
        select(StageInput.stage_id, StageInput.name, StageInput.producer_id)
        .join(Stage, Stage.id == StageInput.stage_id)
        .where(Stage.run_id == select(Stage.run_id).where(Stage.id == stage_ids[0]).scalar_subquery())
    )
    for stage_id, name, producer_id in rows:
        if stage_id in found:
            found[stage_id][name] = producer_id
    return found


def _settle(session: Session, run: LockedRun, statuses: list[StageStatus], now: datetime) -> RunStatus:
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
