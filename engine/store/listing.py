"""Runs as `rlx ls` and the dashboard list them: one frozen row each, in three queries however many there are.

The tables stand here with the columns that are shown: with those of `tables`, which are mapped to classes, `rlx ls`
would take half as long again. A test holds them, and the states below, to the store's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Float,
    Integer,
    String,
    Text,
    Uuid,
    column,
    func,
    select,
    table,
)

from engine.store.names import handle_name
from engine.store.types import BigId, Json, UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from engine.store.tables import RunId

LEADING = ("score", "accuracy", "logp")
"""Which evaluation metric stands for a run in a list: the first of these that it has. More of each is better."""


SUCCEEDED = "succeeded"
BY_INTEREST = ("failed", "running", "ready", "cancelled", "waiting")
"""The other states of a stage, the one that says most about its run first."""

RUNS = table(
    "runs",
    column("id", Uuid()),
    column("handle", String()),
    column("name", String()),
    column("number", Integer()),
    column("spec_id", Integer()),
    column("status", String()),
    column("user", String()),
    column("seed", BigInteger()),
    column("priority", Integer()),
    column("tags", Json()),
    column("notes", Text()),
    column("overrides", Json()),
    column("tiny", Boolean()),
    column("submitted_at", UtcDateTime()),
    column("started_at", UtcDateTime()),
    column("finished_at", UtcDateTime()),
)
SPECS = table("specs", column("id", Integer()), column("name", String()), column("revision", Integer()))
STAGES = table(
    "stages",
    column("run_id", Uuid()),
    column("position", Integer()),
    column("name", String()),
    column("status", String()),
    column("done", Float()),
    column("total", Float()),
    column("note", String()),
    column("cause", String()),
    column("error", Text()),
)
EVALUATIONS = table(
    "evaluations",
    column("id", BigId),
    column("run_id", Uuid()),
    column("metric", String()),
    column("split", String()),
    column("mean", Float()),
)


@dataclass(frozen=True)
class RunSummary:
    """One run in a list."""

    id: RunId
    handle: str
    name: str
    spec: str
    """Name and revision of its spec: `best_lang@3`."""
    status: str
    user: str
    seed: int
    priority: int
    tags: tuple[str, ...]
    notes: str
    overrides: tuple[str, ...]
    tiny: bool
    submitted_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    stages: int = 0
    stages_done: int = 0
    stage: str = ""
    """The stage that runs, is next, or failed."""
    note: str = ""
    progress: float = 0.0
    """0 to 1, over all stages."""
    cause: str | None = None
    error: str | None = None
    score_split: str | None = None
    score_first: float | None = None
    score_best: float | None = None
    score_last: float | None = None


def listing(
    session: Session | Connection,
    *,
    name: str | None = None,
    status: str | Sequence[str] | None = None,
    tag: str | None = None,
    limit: int | None = 50,
) -> list[RunSummary]:
    """Runs, newest first; of one name (a spec's or a handle's), in one of some states, with a tag."""
    query = (
        select(RUNS, SPECS.c.name.label("spec_name"), SPECS.c.revision)
        .join(SPECS, SPECS.c.id == RUNS.c.spec_id)
        .order_by(RUNS.c.submitted_at.desc(), RUNS.c.number.desc())
    )
    if name is not None:
        query = query.where(RUNS.c.name == handle_name(name))
    if status is not None:
        query = query.where(RUNS.c.status.in_([status] if isinstance(status, str) else [str(one) for one in status]))
    if tag is not None:
        query = query.where(_tagged(session, tag))
    if limit is not None:
        query = query.limit(limit)
    rows = session.execute(query).all()
    summaries = {
        row.id: RunSummary(
            id=row.id,
            handle=row.handle,
            name=row.name,
            spec=f"{row.spec_name}@{row.revision}",
            status=row.status,
            user=row.user,
            seed=row.seed,
            priority=row.priority,
            tags=tuple(row.tags),
            notes=row.notes,
            overrides=tuple(row.overrides),
            tiny=row.tiny,
            submitted_at=row.submitted_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        for row in rows
    }
    _add_progress(session, summaries)
    _add_scores(session, summaries)
    return list(summaries.values())


def _tagged(session: Session | Connection, tag: str) -> ColumnElement[bool]:
    """Whether a run has the tag, for the database to find out: of many runs it sends those that have it."""
    bound = session if isinstance(session, Connection) else session.get_bind()
    if bound.dialect.name == "postgresql":
        return func.jsonb_exists(RUNS.c.tags, tag)
    each = func.json_each(RUNS.c.tags).table_valued("value")
    return select(each.c.value).where(each.c.value == tag).correlate(RUNS).exists()


def _add_progress(session: Session | Connection, summaries: dict[UUID, RunSummary]) -> None:
    stages: dict[UUID, list[_StageRow]] = {}
    columns = [STAGES.c[name] for name in ("run_id", *_StageRow._fields)]
    for row in session.execute(
        select(*columns).where(STAGES.c.run_id.in_(summaries)).order_by(STAGES.c.run_id, STAGES.c.position)
    ):
        stages.setdefault(row.run_id, []).append(_StageRow(*row[1:]))
    for run_id, rows in stages.items():
        current = _current(rows)
        summaries[run_id] = replace(
            summaries[run_id],
            stages=len(rows),
            stages_done=sum(row.status == SUCCEEDED for row in rows),
            stage="" if current is None else current.name,
            note="" if current is None else current.note,
            progress=sum(_part(row) for row in rows) / len(rows),
            cause=None if current is None else current.cause,
            error=None if current is None else current.error,
        )


class _StageRow(NamedTuple):
    name: str
    status: str
    done: float
    total: float
    note: str
    cause: str | None
    error: str | None


def _current(rows: Sequence[_StageRow]) -> _StageRow | None:
    """The stage that says most about where the run is; None where all succeeded."""
    for status in BY_INTEREST:
        for row in rows:
            if row.status == status:
                return row
    return None


def _part(row: _StageRow) -> float:
    if row.status == SUCCEEDED:
        return 1.0
    return min(1.0, max(0.0, row.done / row.total)) if row.total > 0 else 0.0


def leading(metrics: Iterable[str]) -> str | None:
    """The one of these metrics that stands for their run; None where none does."""
    return min((name for name in metrics if name in LEADING), key=LEADING.index, default=None)


def _add_scores(session: Session | Connection, summaries: dict[UUID, RunSummary]) -> None:
    """First, best and last mean of the leading metric, on `train` or else the first split by name."""
    curves: dict[UUID, dict[str, dict[str, list[float]]]] = {}
    rows = session.execute(
        select(EVALUATIONS.c.run_id, EVALUATIONS.c.metric, EVALUATIONS.c.split, EVALUATIONS.c.mean)
        .where(EVALUATIONS.c.run_id.in_(summaries), EVALUATIONS.c.metric.in_(LEADING))
        .order_by(EVALUATIONS.c.id)
    )
    for run_id, metric, split, mean in rows:
        curves.setdefault(run_id, {}).setdefault(metric, {}).setdefault(split, []).append(mean)
    for run_id, metrics in curves.items():
        splits = metrics[leading(metrics) or LEADING[0]]
        split = "train" if "train" in splits else min(splits)
        means = splits[split]
        summaries[run_id] = replace(
            summaries[run_id], score_split=split, score_first=means[0], score_best=max(means), score_last=means[-1]
        )
