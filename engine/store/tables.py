"""What is remembered: the tables of the store, on SQLite and PostgreSQL alike.

Repositories beside this module own the queries; `transitions` owns the states; relationships are not
mapped, so that no page or command loads rows by accident.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NewType
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from engine.store.columns import Base
from engine.store.types import BigId

RunId = NewType("RunId", UUID)
StageId = NewType("StageId", UUID)
WorkerId = NewType("WorkerId", UUID)


class Spec(Base):
    """One revision of a spec, as the user wrote it and as it was resolved."""

    __tablename__ = "specs"
    __table_args__ = (UniqueConstraint("name", "revision"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    revision: Mapped[int]
    content_hash: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(Text)
    resolved: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Run(Base):
    """One submission of one spec revision, with its overrides and seed."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("name", "number"), Index("ix_runs_submitted_at", "submitted_at"))

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    handle: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    """The handle without its counter: `best-lang`."""
    number: Mapped[int]
    spec_id: Mapped[int] = mapped_column(ForeignKey("specs.id"))
    status: Mapped[str] = mapped_column(String(16), index=True)
    stop_requested: Mapped[bool] = mapped_column(default=False)
    """Set by `rlx cancel`; supervisors see it within a heartbeat."""
    stop_grace_s: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    """Seconds that its stages have from then for a checkpoint, before they are killed."""
    seed: Mapped[int] = mapped_column(BigInteger)
    overrides: Mapped[list[Any]]
    resolved: Mapped[dict[str, Any]]
    """The resolved spec with overrides applied; secrets stay unresolved."""
    priority: Mapped[int] = mapped_column(default=0)
    tags: Mapped[list[Any]]
    notes: Mapped[str] = mapped_column(Text, default="")
    user: Mapped[str] = mapped_column(default="")
    code: Mapped[dict[str, Any]]
    """`{version, commit, dirty, diff_sha256}` of the code that submitted it."""
    packages: Mapped[dict[str, Any]]
    """Installed versions, `{name: version}`."""
    hardware: Mapped[dict[str, Any]]
    tiny: Mapped[bool] = mapped_column(default=False)
    functions_hash: Mapped[str] = mapped_column(String(64), default="")
    submitted_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Stage(Base):
    """One node of a run's plan: the unit of queueing, caching and retry."""

    __tablename__ = "stages"
    __table_args__ = (
        UniqueConstraint("run_id", "name"),
        # Of what is ready alone: it stays small however many stages have ended. `queue` walks along it. There is none
        # on the status beside it: PostgreSQL would prefer that one while its statistics lag behind the queue. The same
        # condition on PostgreSQL stands in the migration only: named here, it has every command import that dialect.
        Index(
            "ix_stages_ready",
            *("queue", "priority", "user", "gpus", "slots", "ready_at", "id"),
            sqlite_where=text("status = 'ready'"),
        ),
    )

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    position: Mapped[int]
    """Its place in the plan's order."""
    name: Mapped[str]
    kind: Mapped[str]
    version: Mapped[int]
    entry: Mapped[str]
    """`package.module:function`."""
    config: Mapped[dict[str, Any]]
    extra: Mapped[dict[str, Any]]
    resources: Mapped[dict[str, Any]]
    queue: Mapped[str] = mapped_column(String(64), default="default")
    priority: Mapped[int] = mapped_column(default=0)
    user: Mapped[str] = mapped_column(default="", server_default="")
    """The run's: within one priority, users share alike."""
    slots: Mapped[int] = mapped_column(default=1, server_default="1")
    gpus: Mapped[int] = mapped_column(default=0, server_default="0")
    """What an attempt leases, worked out from `resources`; of each of its nodes."""
    nodes: Mapped[int] = mapped_column(default=1, server_default="1")
    """Workers that carry it out together."""
    status: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the newest attempt: the fencing token. 0 before the first."""
    failures: Mapped[int] = mapped_column(default=0)
    """Attempts that failed or were lost since the stage was submitted or resumed; a preempted one does not count."""
    max_attempts: Mapped[int] = mapped_column(default=3)
    retries: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the spec says about retries beside `max_attempts`."""
    alone: Mapped[bool] = mapped_column(default=False)
    """Workers died under it: it gets its next one for itself."""
    not_before: Mapped[datetime | None]
    """Back-off: not to be claimed earlier."""
    announce_after: Mapped[datetime | None]
    """While it is ready: when to announce it once more, in case the broker lost the message."""
    cache: Mapped[bool] = mapped_column(default=True)
    """False under `--no-cache`."""
    cache_key: Mapped[str | None] = mapped_column(String(64), index=True)
    cached: Mapped[bool] = mapped_column(default=False)
    """True where the artifact came from the cache and nothing ran."""
    artifact_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"), index=True)
    done: Mapped[float] = mapped_column(Float, default=0.0)
    total: Mapped[float] = mapped_column(Float, default=0.0)
    note: Mapped[str] = mapped_column(default="")
    progress_at: Mapped[datetime | None]
    cause: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(Text)
    ready_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class StageInput(Base):
    """An edge of the plan: `stage` reads the artifact of `producer` under `name`."""

    __tablename__ = "stage_inputs"

    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    producer_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), index=True)


class Attempt(Base):
    """One try at a stage, by one worker."""

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("stage_id", "number"),)

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    worker_id: Mapped[UUID | None] = mapped_column(ForeignKey("workers.id"))
    status: Mapped[str] = mapped_column(String(16), index=True)
    pid: Mapped[int | None]
    pid_started: Mapped[float | None]
    """The process's start time as the kernel tells it, so that a reused pid is not mistaken for it."""
    cause: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(Text)
    detail: Mapped[dict[str, Any]]
    """Autopsy: error type, traceback, stacks, suggested next step."""
    spent: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Where its time went; see `spent`."""
    log_path: Mapped[str | None] = mapped_column(Text)
    log_tail: Mapped[str] = mapped_column(Text, default="")
    lease_expires_at: Mapped[datetime | None] = mapped_column(index=True)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Lease(Base):
    """The right of one attempt to one device (or one slot) of a worker; it ends when the attempt's own lease does."""

    __tablename__ = "leases"
    __table_args__ = (UniqueConstraint("worker_id", "device"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), index=True)
    worker_id: Mapped[UUID] = mapped_column(ForeignKey("workers.id"))
    device: Mapped[str] = mapped_column(String(64))
    """`slot:0`, `gpu:3`."""


class Member(Base):
    """One node of an attempt that several workers carry out together; node 0 is the one that claimed it."""

    __tablename__ = "members"
    __table_args__ = (Index("ix_members_worker_id_state", "worker_id", "state"),)

    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    node: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[UUID] = mapped_column(ForeignKey("workers.id"))
    state: Mapped[str] = mapped_column(String(16))
    """`called`, `running` or `ended`; over in any case once its attempt is."""
    lease_expires_at: Mapped[datetime | None] = mapped_column(index=True)
    """None for node 0, whose lease is the attempt's, and once it has ended."""
    address: Mapped[str] = mapped_column(default="", server_default="")
    port: Mapped[int | None]
    """Where the nodes meet, in the row of node 0."""
    token: Mapped[str] = mapped_column(String(64))
    """What a node shows to be let in there."""


class Worker(Base):
    """A Celery worker process on a host, and what it lends."""

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    pid_started: Mapped[float | None]
    queues: Mapped[list[Any]]
    slots: Mapped[int]
    gpus: Mapped[list[Any]]
    status: Mapped[str] = mapped_column(String(16))
    run_id: Mapped[UUID | None]
    """Set on a worker that `rlx submit` started for one run alone."""
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime] = mapped_column(index=True)
    drain: Mapped[str] = mapped_column(String(16), default="", server_default="")
    """Set by `rlx worker drain`: how the worker is to leave. It sees it at its next heartbeat."""


class Reservation(Base):
    """A worker keeps what is free of its devices for a stage that needs more than that; it lapses with its worker."""

    __tablename__ = "reservations"

    worker_id: Mapped[UUID] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), index=True)
    """One of several nodes may have as many workers keep for it."""
    expires_at: Mapped[datetime]


class Series(Base):
    """A metric's key, interned per stage, so that a point is three numbers and a time."""

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("stage_id", "key"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"))
    key: Mapped[str]
    shift: Mapped[int | None] = mapped_column(SmallInteger)
    """log2 of the steps that its narrowest buckets span; None while it has none."""
    mark: Mapped[int | None] = mapped_column(BigInteger)
    """Points at lower steps are in buckets too."""


class Metric(Base):
    """One point of a series; a repeated step (after a resume) replaces the earlier point."""

    __tablename__ = "metrics"
    __table_args__ = ({"sqlite_with_rowid": False},)

    # No foreign key: checking it for every point costs PostgreSQL a third of the writer's speed. Whoever deletes a
    # series deletes its points first.
    series_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    value: Mapped[float | None] = mapped_column(Float(53))
    """None stands for a value that was not finite."""
    time: Mapped[float] = mapped_column(Float(53))
    """Seconds since the epoch, UTC."""


class MetricBucket(Base):
    """The points of a series over 2^(shift + 5 level) steps, summed up; see `metric_buckets`. No foreign key either."""

    __tablename__ = "metric_buckets"
    __table_args__ = ({"sqlite_with_rowid": False},)

    series_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    level: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    bucket: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    """Steps divided by its width, rounded down."""
    last_step: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int] = mapped_column(BigInteger)
    low: Mapped[float | None] = mapped_column(Float(53))
    """None where no value was finite; so is `high`."""
    high: Mapped[float | None] = mapped_column(Float(53))


class Checkpoint(Base):
    """A resumable training state inside a stage."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("stage_id", "step"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    step: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[list[Any]]
    uri: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class Artifact(Base):
    """A stage's output: an immutable, hashed directory. `id` is unique; equal content shares its `uri`."""

    __tablename__ = "artifacts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    uri: Mapped[str] = mapped_column(Text)
    kind: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    created_at: Mapped[datetime]


class CacheEntry(Base):
    """A stage's cache key and the artifact that answers it."""

    __tablename__ = "cache_entries"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    artifact_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"), index=True)
    stage_id: Mapped[UUID | None]
    """The stage that computed it."""
    created_at: Mapped[datetime]


class Sample(Base):
    """One generated text or trajectory with its scores."""

    __tablename__ = "samples"
    __table_args__ = (
        Index("ix_samples_run_id_step", "run_id", "step"),
        UniqueConstraint("stage_id", "attempt", "sequence"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    sequence: Mapped[int]
    """Counter of the attempt: delivered twice, it is still stored once."""
    step: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(64))
    split: Mapped[str] = mapped_column(String(64))
    item: Mapped[int | None]
    score: Mapped[float | None] = mapped_column(Float(53))
    text: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class Evaluation(Base):
    """One metric over one dataset split: mean, count, interval, and the per-item scores behind them."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("stage_id", "metric", "split", "step"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(BigInteger)
    metric: Mapped[str]
    split: Mapped[str] = mapped_column(String(64))
    mean: Mapped[float] = mapped_column(Float(53))
    count: Mapped[int]
    low: Mapped[float] = mapped_column(Float(53))
    high: Mapped[float] = mapped_column(Float(53))
    """95 % bootstrap interval of the mean."""
    items: Mapped[list[Any]]
    """`[[item, [score, …]], …]`."""
    functions_hash: Mapped[str] = mapped_column(String(64))
    cost: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class FingerprintBlock(Base):
    """Neighbouring entries of a stage's stream of fingerprints; see `engine.store.fingerprints`."""

    __tablename__ = "fingerprints"
    __table_args__ = ({"sqlite_with_rowid": False},)

    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), primary_key=True)
    first: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    """Place of the first entry in the stream."""
    entries: Mapped[bytes] = mapped_column(LargeBinary)


class Certificate(Base):
    """What `rlx verify-resume` found out about a method."""

    __tablename__ = "certificates"
    __table_args__ = (Index("ix_certificates_method_created_at", "method", "created_at"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    method: Mapped[str]
    versions: Mapped[dict[str, Any]]
    """`{kind: version}` of the plan's stages."""
    spec: Mapped[str]
    """Name of the spec whose tiny twin ran."""
    spec_hash: Mapped[str] = mapped_column(String(64))
    """Of the twin as it was resolved."""
    outcome: Mapped[str] = mapped_column(String(16))
    """`identical`, `parted` or `failed`."""
    kills: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    """Of the choice of the moments to kill at."""
    weights_sha256: Mapped[str | None] = mapped_column(String(64))
    """Content hash of the trained models, where both runs agree."""
    code: Mapped[dict[str, Any]]
    packages: Mapped[dict[str, Any]]
    hardware: Mapped[dict[str, Any]]
    detail: Mapped[dict[str, Any]]
    """Each stage's count of fingerprints and where it parted; each kill."""
    created_at: Mapped[datetime]


class Event(Base):
    """Something that happened to a run, a stage, an attempt or a worker, in one sentence."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    time: Mapped[datetime] = mapped_column(index=True)
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    stage_id: Mapped[UUID | None]
    attempt: Mapped[int | None]
    worker_id: Mapped[UUID | None]
    kind: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class Outbox(Base):
    """What is still to be announced to the broker, written in the transaction that caused it."""

    __tablename__ = "outbox"
    # Never an id again: a slow publisher must not strike off a row that took the place of its own.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    stage_id: Mapped[UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), index=True)
    queue: Mapped[str] = mapped_column(String(64))
    priority: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime] = mapped_column(index=True)
    """Not to be announced earlier: a retry waits for its back-off here."""
    taken_until: Mapped[datetime | None]
    """A publisher is sending it; past this time another may. Once sent, the row is deleted."""


class Lock(Base):
    """A named lock with an owner and an end: housekeeping takes `housekeeping`."""

    __tablename__ = "locks"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str]
    expires_at: Mapped[datetime]


METADATA = Base.metadata
"""All of the above, for migrations and for the check that they lead here."""
