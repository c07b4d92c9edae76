"""How an attempt ends: what its worker reports, what is done about a failure, and what happens when it falls silent.

Every ending is one transaction: attempt, stage, leases, the stages that waited for it, the run, and the
outbox. A report that comes after the stage went to a newer attempt is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, Self
from uuid import UUID

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from engine.errors import Cause, StaleAttempt
from engine.store import artifacts, events, members, outbox, quarantine
from engine.store.artifact_store import StoredArtifact
from engine.store.columns import table_of
from engine.store.quarantine import Verdict
from engine.store.readiness import LockedRun, advance, lock_run
from engine.store.retries import Retries
from engine.store.tables import Attempt, Lease, RunId, Stage, StageId
from engine.store.together import Write, together
from engine.store.transitions import AttemptStatus, StageStatus, move
from engine.store.values import storable_json, storable_text

_FREE = delete(table_of(Lease)).where(Lease.attempt_id == bindparam("attempt"))


class Claim(Protocol):
    """What `stages.Claimed` says of the attempt whose end is reported."""

    @property
    def stage_id(self) -> StageId: ...
    @property
    def run_id(self) -> RunId: ...
    @property
    def attempt_id(self) -> UUID: ...
    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def cache_key(self) -> str: ...
    @property
    def cache(self) -> bool: ...


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, as data, so that a child process can hand it to its supervisor."""

    kind: Literal["succeeded", "failed", "stopped"]
    artifact: StoredArtifact | None = None
    cause: Cause | None = None
    error: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    log_tail: str = ""
    spent: Mapping[str, Any] = field(default_factory=dict)
    """Where the attempt's time went, as its supervisor read it last; see `spent`."""
    pid: int | None = None
    pid_started: float | None = None
    log_path: str | None = None
    """As `stages.start` records them: what ends at once is recorded with its end."""

    @classmethod
    def succeeded(cls, artifact: StoredArtifact, *, log_tail: str = "") -> Self:
        """The stage's output is in the artifact store."""
        return cls("succeeded", artifact=artifact, log_tail=log_tail)

    @classmethod
    def failed(cls, cause: Cause, error: str, *, detail: Mapping[str, Any] | None = None, log_tail: str = "") -> Self:
        """The attempt failed; its cause decides whether there is another."""
        return cls("failed", cause=Cause(cause), error=error, detail=detail or {}, log_tail=log_tail)

    @classmethod
    def stopped(cls, *, log_tail: str = "") -> Self:
        """The stage left when it was asked to, from its checkpoint: cancelled, or its worker has to go."""
        return cls("stopped", log_tail=log_tail)

    def as_data(self) -> dict[str, Any]:
        """JSON data for `from_data`."""
        return storable_json(asdict(self))  # type: ignore[no-any-return]  # a mapping stays a mapping

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        artifact, cause = data.get("artifact"), data.get("cause")
        return cls(
            kind=data["kind"],
            artifact=None if artifact is None else StoredArtifact(**artifact),
            cause=None if cause is None else Cause(cause),
            error=data.get("error", ""),
            detail=data.get("detail", {}),
            log_tail=data.get("log_tail", ""),
            spent=data.get("spent", {}),
            pid=data.get("pid"),
            pid_started=data.get("pid_started"),
            log_path=data.get("log_path"),
        )


@dataclass(frozen=True)
class Expired:
    """An attempt whose lease ran out, and what its stage became."""

    stage_id: StageId
    run_id: RunId
    number: int
    status: StageStatus


def finish(session: Session, claimed: Claim, outcome: Outcome, *, now: datetime) -> StageStatus:
    """Record how the attempt ended; returns what its stage became. Raises StaleAttempt where it ended before."""
    run = lock_run(session, claimed.run_id)
    status, cause = _ATTEMPT_ENDS[outcome.kind], outcome.cause
    if outcome.kind == "stopped" and not run.stop_requested:
        cause = Cause.PREEMPTED
    process = {name: getattr(outcome, name) for name in ("pid", "pid_started", "log_path")}
    ended = move(
        session,
        Attempt,
        claimed.attempt_id,
        status,
        expect=[AttemptStatus.RUNNING],
        finished_at=now,
        lease_expires_at=None,
        cause=None if cause is None else str(cause),
        error=storable_text(outcome.error) or None,
        detail=storable_json(outcome.detail),
        log_tail=storable_text(outcome.log_tail),
        **({"spent": storable_json(outcome.spent)} if outcome.spent else {}),
        **{name: value for name, value in process.items() if value is not None},
    )
    if not ended:
        raise StaleAttempt(f"attempt {claimed.number} at {claimed.name} ended before: its report is not recorded")
    also = [Write(_FREE, {"attempt": claimed.attempt_id})]
    if outcome.kind == "succeeded":
        assert outcome.artifact is not None, "a stage that succeeded has an artifact"
        became = StageStatus.SUCCEEDED
        also.append(_succeed(session, claimed, outcome.artifact, now))
    else:
        stage = session.get_one(Stage, claimed.stage_id, populate_existing=True)
        became = _give_up_or_retry(session, run, stage, cause, outcome.error, now, attempt=claimed.attempt_id)
    together(session, *also, _telling(claimed, became, outcome.error, now))
    advance(session, run, now=now)
    return became


_ATTEMPT_ENDS = {
    "succeeded": AttemptStatus.SUCCEEDED,
    "failed": AttemptStatus.FAILED,
    "stopped": AttemptStatus.CANCELLED,
}


def expire(session: Session, now: datetime, *, run_id: RunId | None = None) -> list[Expired]:
    """End every attempt whose lease ran out (of one run, or of all) as lost; their stages are ready again or fail.

    An attempt of several nodes ends with the lease of any of them.
    """
    overdue = select(Stage.run_id, Attempt.id).join(Stage, Stage.id == Attempt.stage_id)
    overdue = overdue.where(Attempt.status == AttemptStatus.RUNNING, Attempt.lease_expires_at <= now)
    if run_id is not None:
        overdue = overdue.where(Stage.run_id == run_id)
    # Runs in one order: two that expire at once must not wait for each other's locks.
    silent = members.overdue(session, now, run_id=run_id)
    due = {(run, attempt) for run, attempt in session.execute(overdue)}
    lost = []
    for run, attempt in sorted({*silent, *due}):
        error = silent.get((run, attempt), "") if (run, attempt) not in due else ""
        if (expired := lose(session, run, attempt, now=now, overdue=True, node=error)) is not None:
            lost.append(expired)
    return lost


def lose(
    session: Session, run_id: UUID, attempt_id: UUID, *, now: datetime, overdue: bool = False, node: str = ""
) -> Expired | None:
    """End one attempt as lost. None where it is over already, or (`overdue`) its lease was renewed meanwhile.

    Without `overdue` its worker is known to be dead. `node` says what became of a node that is not its worker's own.
    """
    run = lock_run(session, run_id)
    attempt = session.get(Attempt, attempt_id, populate_existing=True)
    if attempt is None or attempt.status != AttemptStatus.RUNNING:
        return None
    stage = session.get_one(Stage, attempt.stage_id, populate_existing=True)
    if node and not members.still_overdue(session, attempt_id, now):
        return None
    verdict = (
        _TRUSTED  # who is judged by is the worker of node 0, and that one lives
        if node
        else quarantine.judge(
            session, stage, _policy(stage).quarantine, ending=attempt_id, certain=not overdue, now=now
        )
    )
    error = node or f"the worker of attempt {attempt.number} fell silent: killed, or cut off from the store"
    said: dict[str, Any] = {"error": node or "its worker fell silent"}
    if verdict.condemned:
        error = verdict.words
        said = {"error": storable_text(error), "detail": _why(verdict)}
    ended = move(
        session,
        Attempt,
        attempt_id,
        AttemptStatus.LOST,
        expect=[AttemptStatus.RUNNING],
        where=[Attempt.lease_expires_at <= now] if overdue and not node else [],
        finished_at=now,
        lease_expires_at=None,
        cause=str(Cause.LOST),
        **said,
    )
    if not ended:
        return None
    session.execute(_FREE, {"attempt": attempt_id})
    became = _give_up_or_retry(session, run, stage, Cause.LOST, error, now, attempt=attempt.id, verdict=verdict)
    events.add(
        session,
        "stage.quarantined" if verdict.condemned else "stage.lost",
        f"{stage.name}: {error}; the stage is {became}",
        now=now,
        run_id=run_id,
        stage_id=stage.id,
        attempt=attempt.number,
        worker_id=attempt.worker_id,
    )
    advance(session, run, now=now)
    return Expired(StageId(stage.id), RunId(run.id), attempt.number, became)


def _succeed(session: Session, claimed: Claim, artifact: StoredArtifact, now: datetime) -> Write:
    """End the stage with its artifact; what lets the cache answer with it."""
    artifact_id = artifacts.record(session, artifact, now=now)
    done = move(
        session,
        Stage,
        claimed.stage_id,
        StageStatus.SUCCEEDED,
        expect=[StageStatus.RUNNING],
        newest=claimed.number,
        artifact_id=artifact_id,
        finished_at=now,
        cause=None,
        error=None,
    )
    if not done:
        raise StaleAttempt(f"attempt {claimed.number} at {claimed.name} is not the current one")
    return artifacts.remembering(
        session, claimed.cache_key, artifact_id, claimed.stage_id, replace=not claimed.cache, now=now
    )


def _why(verdict: Verdict) -> dict[str, Any]:
    """Why the attempt was the last one, for whoever looks at it."""
    died = [{"worker": death.worker, "alone": death.alone} for death in verdict.deaths]
    return {"quarantine": died, "next": quarantine.NEXT_STEP}


_TRUSTED = Verdict(condemned=False, alone=False)


def _give_up_or_retry(
    session: Session,
    run: LockedRun,
    stage: Stage,
    cause: Cause | None,
    error: str,
    now: datetime,
    *,
    attempt: UUID,
    verdict: Verdict = _TRUSTED,
) -> StageStatus:
    """Take a running stage whose attempt did not succeed to where it goes next."""
    error = storable_text(error)
    counts = cause is not None and cause is not Cause.PREEMPTED
    values: dict[str, Any] = {"alone": verdict.alone}
    policy, failures = _policy(stage), _failures(session, stage) if counts else []
    if counts:
        values |= {"failures": stage.failures + 1, "cause": str(cause), "error": error or None}
    if run.stop_requested:
        to = StageStatus.CANCELLED
    elif not counts or (policy.again(failures) and not verdict.condemned):
        to = StageStatus.READY
    else:
        to = StageStatus.FAILED
    if to is StageStatus.READY:
        due = now + timedelta(seconds=policy.wait_s(failures, attempt) if counts else 0.0)
        values |= {"not_before": due, "ready_at": now, "announce_after": due + outbox.AGAIN_AFTER}
        outbox.announce(session, stage.id, queue=stage.queue, priority=stage.priority, due_at=due)
    else:
        values["finished_at"] = now
    moved = move(
        session,
        Stage,
        stage.id,
        to,
        expect=[StageStatus.RUNNING],
        newest=stage.attempt,
        **values,
    )
    assert moved, "a stage with a running attempt is running, and its run is locked"
    return to


def _policy(stage: Stage) -> Retries:
    return Retries.of(stage.max_attempts, stage.retries)


def _failures(session: Session, stage: Stage) -> list[Cause]:
    """Why the stage's attempts failed since it was submitted or resumed, the one that has just ended being the last."""
    newest = (
        select(Attempt.cause)
        .where(Attempt.stage_id == stage.id, Attempt.cause.is_not(None), Attempt.cause != Cause.PREEMPTED)
        .order_by(Attempt.number.desc())
        .limit(stage.failures + 1)
    )
    return [Cause(cause) for cause in session.scalars(newest) if cause is not None][::-1]


def _telling(claimed: Claim, became: StageStatus, error: str, now: datetime) -> Write:
    messages = {
        StageStatus.SUCCEEDED: f"{claimed.name} succeeded",
        StageStatus.FAILED: f"{claimed.name} failed: {error}",
        StageStatus.CANCELLED: f"{claimed.name} was cancelled",
        StageStatus.READY: f"{claimed.name} goes back to the queue{': ' + error if error else ''}",
    }
    return events.adding(
        f"stage.{'requeued' if became is StageStatus.READY else became}",
        messages[became],
        now=now,
        run_id=claimed.run_id,
        stage_id=claimed.stage_id,
        attempt=claimed.number,
    )
