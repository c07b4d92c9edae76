"""Runs as `rlx ls` and the dashboard list them: one frozen row each, in three queries however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.store.handles import handle_name
from engine.store.tables import Evaluation, Run, RunId, Spec, Stage
from engine.store.transitions import StageStatus

SCORE = "score"
"""The evaluation metric that stands for a run in a list."""


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
    session: Session,
    *,
    name: str | None = None,
    status: str | Sequence[str] | None = None,
    tag: str | None = None,
    limit: int | None = 50,
) -> list[RunSummary]:
    """Runs, newest first; of one name (a spec's or a handle's), in one of some states, with a tag."""
    query = (
        select(
            Run.id,
            Run.handle,
            Run.name,
            Run.status,
            Run.user,
            Run.seed,
            Run.priority,
            Run.tags,
            Run.notes,
            Run.overrides,
            Run.tiny,
            Run.submitted_at,
            Run.started_at,
            Run.finished_at,
            Spec.name.label("spec_name"),
            Spec.revision,
        )
        .join(Spec, Spec.id == Run.spec_id)
        .order_by(Run.submitted_at.desc(), Run.number.desc())
    )
    if name is not None:
        query = query.where(Run.name == handle_name(name))
    if status is not None:
        query = query.where(Run.status.in_([status] if isinstance(status, str) else [str(one) for one in status]))
    if limit is not None and tag is None:
        query = query.limit(limit)
    rows = session.execute(query).all()
    if tag is not None:
        rows = [row for row in rows if tag in row.tags][:limit]
    summaries = {
        row.id: RunSummary(
            id=RunId(row.id),
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


def _add_progress(session: Session, summaries: dict[UUID, RunSummary]) -> None:
    stages: dict[UUID, list[_StageRow]] = {}
    columns = (Stage.run_id, Stage.name, Stage.status, Stage.done, Stage.total, Stage.note, Stage.cause, Stage.error)
    for row in session.execute(
        select(*columns).where(Stage.run_id.in_(summaries)).order_by(Stage.run_id, Stage.position)
    ):
        stages.setdefault(row.run_id, []).append(_StageRow(*row[1:]))
    for run_id, rows in stages.items():
        current = _current(rows)
        summaries[run_id] = replace(
            summaries[run_id],
            stages=len(rows),
            stages_done=sum(row.status == StageStatus.SUCCEEDED for row in rows),
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


_INTEREST = (
    StageStatus.FAILED,
    StageStatus.RUNNING,
    StageStatus.READY,
    StageStatus.CANCELLED,
    StageStatus.WAITING,
)


def _current(rows: Sequence[_StageRow]) -> _StageRow | None:
    """The stage that says most about where the run is; None where all succeeded."""
    for status in _INTEREST:
        for row in rows:
            if row.status == status:
                return row
    return None


def _part(row: _StageRow) -> float:
    if row.status == StageStatus.SUCCEEDED:
        return 1.0
    return min(1.0, max(0.0, row.done / row.total)) if row.total > 0 else 0.0


def _add_scores(session: Session, summaries: dict[UUID, RunSummary]) -> None:
    """First, best and last mean of the score on one split: `train` where it was evaluated, else the first by name."""
    curves: dict[UUID, dict[str, list[float]]] = {}
    rows = session.execute(
        select(Evaluation.run_id, Evaluation.split, Evaluation.mean)
        .where(Evaluation.run_id.in_(summaries), Evaluation.metric == SCORE)
        .order_by(Evaluation.id)
    )
    for run_id, split, mean in rows:
        curves.setdefault(run_id, {}).setdefault(split, []).append(mean)
    for run_id, splits in curves.items():
        split = "train" if "train" in splits else min(splits)
        means = splits[split]
        summaries[run_id] = replace(
            summaries[run_id], score_split=split, score_first=means[0], score_best=max(means), score_last=means[-1]
        )
