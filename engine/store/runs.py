"""Runs: submitted, stopped and resumed. Found and listed by `handles` and `listing`, whose verbs are handed on here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from engine.errors import Refused
from engine.plan.hashing import sha256_of
from engine.plan.stage import Plan, Resources
from engine.store import events
from engine.store.handles import find, next_number
from engine.store.listing import RunSummary, listing
from engine.store.locks import removal_lock, serialise, taken
from engine.store.names import handle_name
from engine.store.outcomes import expire, lose
from engine.store.processes import provably_gone
from engine.store.readiness import advance, lock_run, settle
from engine.store.tables import Attempt, Run, RunId, Spec, Stage, StageInput, Worker
from engine.store.transitions import ENDED, AttemptStatus, RunStatus, StageStatus, move
from engine.store.values import storable_json

__all__ = [
    "RunSummary",
    "Submission",
    "find",
    "get",
    "listing",
    "request_stop",
    "resume",
    "settle",
    "spec_of",
    "submit",
]

STOP_GRACE_S = 2.0
"""What `rlx cancel` gives a stage for its checkpoint: it is to be gone within three seconds."""
Gone = Callable[[str, int, float | None], bool]
"""Whether the process (host, pid, start time) is certainly no more."""


@dataclass(frozen=True)
class Submission:
    """All that is remembered with a run beside its plan."""

    source: str
    """The spec's text, as the user wrote it."""
    resolved: Mapping[str, Any]
    """The resolved spec with overrides applied; secrets unresolved."""
    overrides: Sequence[str] = ()
    base: Mapping[str, Any] | None = None
    """The resolved spec without overrides, which tells one revision from the next; the source text where it is None."""
    priority: int = 0
    tags: Sequence[str] = ()
    notes: str = ""
    user: str = ""
    code: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    tiny: bool = False
    functions_hash: str = ""
    no_cache: bool = False
    max_attempts: int = 3
    retries: Mapping[str, Any] = field(default_factory=dict)
    """What the spec says about retries beside that; see `retries.Retries`."""


def submit(session: Session, plan: Plan, submission: Submission, *, now: datetime) -> Run:
    """Store the run and its stages; those that need no other are ready, and in the outbox, at once."""
    name = handle_name(plan.name)
    number = next_number(session, name)
    run = Run(
        id=uuid4(),
        handle=f"{name}-{number}",
        name=name,
        number=number,
        spec_id=_revision(session, plan.name, submission, now),
        status=RunStatus.QUEUED,
        stop_requested=False,
        seed=plan.seed,
        overrides=list(submission.overrides),
        resolved=storable_json(submission.resolved),
        priority=submission.priority,
        tags=list(submission.tags),
        notes=submission.notes,
        user=submission.user,
        code=storable_json(submission.code),
        packages=storable_json(submission.packages),
        hardware=storable_json(submission.hardware),
        tiny=submission.tiny,
        functions_hash=submission.functions_hash,
        submitted_at=now,
    )
    session.add(run)
    session.flush()
    _add_stages(session, run.id, plan, submission)
    events.add(session, "run.submitted", f"{run.handle} was submitted", now=now, run_id=run.id)
    advance(session, lock_run(session, run.id), now=now)
    session.refresh(run)
    return run


def _revision(session: Session, name: str, submission: Submission, now: datetime) -> int:
    """The id of the spec's revision: the newest one if nothing changed, else a new one."""
    serialise(session, f"spec:{name}")
    content = sha256_of(submission.source if submission.base is None else submission.base)
    newest = session.execute(
        select(Spec.id, Spec.revision, Spec.content_hash)
        .where(Spec.name == name)
        .order_by(Spec.revision.desc())
        .limit(1)
    ).one_or_none()
    if newest is not None and newest.content_hash == content:
        return int(newest.id)
    spec = Spec(
        name=name,
        revision=1 if newest is None else newest.revision + 1,
        content_hash=content,
        source=submission.source,
        resolved=storable_json(submission.resolved if submission.base is None else submission.base),
        created_at=now,
    )
    session.add(spec)
    session.flush()
    return spec.id


def _add_stages(session: Session, run_id: UUID, plan: Plan, submission: Submission) -> None:
    ids = {stage.name: uuid4() for stage in plan.stages}
    rows = [
        {
            "id": ids[stage.name],
            "run_id": run_id,
            "position": position,
            "name": stage.name,
            "kind": stage.kind,
            "version": stage.version,
            "entry": stage.run,
            "config": storable_json(stage.config),
            "extra": storable_json(stage.extra),
            **_taken_up(stage.resources),
            "priority": submission.priority,
            "user": submission.user,
            "status": StageStatus.WAITING,
            "max_attempts": submission.max_attempts,
            "retries": storable_json(submission.retries),
            "cache": not submission.no_cache,
        }
        for position, stage in enumerate(plan.stages)
    ]
    edges = [
        {"stage_id": ids[stage.name], "name": name, "producer_id": ids[producer]}
        for stage in plan.stages
        for name, producer in stage.inputs.items()
    ]
    if rows:
        session.execute(insert(Stage), rows)
    if edges:
        session.execute(insert(StageInput), edges)


def get(session: Session, run_id: RunId) -> Run:
    """The run's row."""
    return session.get_one(Run, run_id)


def spec_of(session: Session, run: Run) -> Spec:
    """The spec revision that the run was submitted from."""
    return session.get_one(Spec, run.spec_id)


def request_stop(session: Session, run: Run, *, now: datetime, by: str = "", grace_s: float = STOP_GRACE_S) -> bool:
    """Ask the run to stop: what waits is cancelled now, what runs has `grace_s` for a checkpoint, and is killed then.

    Asked again, the shorter time counts. False where the run had ended already; nothing is changed then.
    """
    locked = lock_run(session, run.id)
    if locked.status in ENDED[Run]:
        return False
    if not locked.stop_requested:
        who = f" by {by}" if by else ""
        events.add(session, "run.stopping", f"{run.handle} was asked to stop{who}", now=now, run_id=run.id)
    move(
        session,
        Run,
        run.id,
        RunStatus.STOPPING,
        expect=[RunStatus.QUEUED, RunStatus.RUNNING],
        stop_requested=True,
        stop_grace_s=grace_s,
    )
    session.execute(
        update(Run)
        .where(Run.id == run.id, Run.stop_grace_s > grace_s)
        .values(stop_grace_s=grace_s)
        .execution_options(synchronize_session=False)
    )
    for stage_id in session.scalars(
        select(Stage.id).where(Stage.run_id == run.id, Stage.status.in_([StageStatus.WAITING, StageStatus.READY]))
    ).all():
        move(
            session,
            Stage,
            stage_id,
            StageStatus.CANCELLED,
            expect=[StageStatus.WAITING, StageStatus.READY],
            finished_at=now,
        )
    advance(session, lock_run(session, run.id), now=now)
    session.refresh(run)
    return True


def resume(
    session: Session,
    run: Run,
    *,
    now: datetime,
    gone: Gone = provably_gone,
    resources: Mapping[str, Resources] | None = None,
) -> bool:
    """Queue again whatever of the run has not succeeded; each stage goes on from its last checkpoint.

    `resources` is what its stages, by their names, take from now on.

    Attempts whose lease has run out, or whose processes are `gone`, are ended first, so that nobody waits for
    a lease of the dead. True where something was queued again; False where the run is alive and needs nothing.
    Raises Refused for a run that succeeded, or one that is still stopping.
    """
    requeued = _bury(session, RunId(run.id), now, gone)
    locked = lock_run(session, run.id)
    if taken(session, removal_lock(run.id), now=now):
        raise Refused(f"{run.handle} is being removed: `rlx rm {run.handle}` finishes that")
    if locked.status is RunStatus.SUCCEEDED:
        raise Refused(f"{run.handle} succeeded: there is nothing to resume")
    if locked.status is RunStatus.STOPPING:
        raise Refused(f"{run.handle} is still stopping: wait until it has, then resume it")
    if resources is not None and locked.status not in ENDED[Run]:
        raise Refused(f"{run.handle} is {locked.status}: `rlx cancel` it, then resume it on other hardware")
    if locked.status in ENDED[Run]:
        _rehouse(session, RunId(run.id), resources or {})
        move(
            session,
            Run,
            run.id,
            RunStatus.QUEUED,
            expect=[RunStatus.FAILED, RunStatus.CANCELLED],
            stop_requested=False,
            finished_at=None,
        )
        for stage_id in session.scalars(
            select(Stage.id).where(
                Stage.run_id == run.id, Stage.status.in_([StageStatus.FAILED, StageStatus.CANCELLED])
            )
        ).all():
            move(
                session,
                Stage,
                stage_id,
                StageStatus.WAITING,
                expect=[StageStatus.FAILED, StageStatus.CANCELLED],
                failures=0,
                alone=False,
                not_before=None,
                finished_at=None,
                cause=None,
                error=None,
            )
        events.add(session, "run.resumed", f"{run.handle} was resumed", now=now, run_id=run.id)
        advance(session, lock_run(session, run.id), now=now)
        requeued = True
    session.refresh(run)
    return requeued


def _rehouse(session: Session, run_id: RunId, resources: Mapping[str, Resources]) -> None:
    """Give what has not succeeded of the run other resources."""
    for name, changed in resources.items():
        session.execute(
            update(Stage)
            .where(Stage.run_id == run_id, Stage.name == name, Stage.status != StageStatus.SUCCEEDED)
            .values(**_taken_up(changed))
        )


def _taken_up(resources: Resources) -> dict[str, Any]:
    """The columns of a stage that say what it takes."""
    needs = resources.needs
    taken = {"resources": asdict(resources), "queue": resources.queue, "slots": needs.slots, "gpus": needs.gpus}
    return taken | {"nodes": resources.nodes}


def _bury(session: Session, run_id: RunId, now: datetime, gone: Gone) -> bool:
    """End the run's attempts that cannot be alive; whether there were any."""
    buried = bool(expire(session, now, run_id=run_id))
    rows = session.execute(
        select(Attempt.id, Attempt.pid, Attempt.pid_started, Worker.host, Worker.pid, Worker.pid_started)
        .join(Stage, Stage.id == Attempt.stage_id)
        .join(Worker, Worker.id == Attempt.worker_id)
        .where(Stage.run_id == run_id, Attempt.status == AttemptStatus.RUNNING)
        .order_by(Attempt.id)
    ).all()
    for attempt_id, pid, started, host, worker_pid, worker_started in rows:
        child_gone = pid is None or gone(host, pid, started)
        if child_gone and gone(host, worker_pid, worker_started):
            buried = lose(session, run_id, attempt_id, now=now) is not None or buried
    return buried
