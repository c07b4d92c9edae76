"""What one run left behind, read from the store: curves, evaluations, checkpoints, logs, events.

Rows as frozen dataclasses; nothing of Streamlit. Statistics over them are `engine.compare`'s; what the policy wrote is
in `trajectories`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dashboard.queries import RunDetail
from dashboard.wording import AXES
from engine.compare.report import Evaluated, Subject
from engine.store import checkpoints, evaluations, events, listing, members, metrics, stages
from engine.store.tables import RunId, StageId, Worker

TAIL_BYTES = 64 * 1024
"""How much of a log's end a page shows."""


@dataclass(frozen=True)
class Point:
    """One place of a curve; `low` and `high` are the extremes of the bucket that it stands for."""

    step: int
    value: float
    low: float
    high: float
    seconds: float
    """Since the run's first point."""


@dataclass(frozen=True)
class SeriesRow:
    """One metric of one stage, thinned to what a chart can show."""

    key: str
    stage: str
    position: int
    """Place of its stage in the plan."""
    points: tuple[Point, ...]
    exact: bool
    """True where every point stored is drawn."""


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation with its interval and the cost until then."""

    step: int
    stage: str
    position: int
    metric: str
    split: str
    mean: float
    low: float
    high: float
    count: int
    items: tuple[tuple[int, tuple[float, ...]], ...]
    cost: Mapping[str, float]
    functions_hash: str

    def at(self, axis: str) -> float | None:
        """Where it lies on an axis; None where that cost was not recorded."""
        found = self.step if axis == "step" else self.cost.get(axis)
        return None if found is None else float(found)


@dataclass(frozen=True)
class CheckpointRow:
    """One resumable state."""

    stage: str
    step: int
    labels: tuple[str, ...]
    bytes: int
    sha256: str
    uri: str
    created_at: datetime


@dataclass(frozen=True)
class AttemptRow:
    """One try at a stage."""

    stage: str
    number: int
    status: str
    worker: str
    cause: str | None
    error: str | None
    detail: Mapping[str, Any]
    log_path: str | None
    log_tail: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class EventRow:
    """Something that happened, in one sentence."""

    time: datetime
    kind: str
    message: str


def series_of(session: Session, run_id: RunId, *, buckets: int = 300) -> list[SeriesRow]:
    """Every metric of the run by stage and key, as many buckets as a chart has room for."""
    found = [
        (info, metrics.curve(session, run_id, info.key, stage=info.stage, buckets=buckets))
        for info in metrics.series(session, run_id)
    ]
    start = min((curve.points[0].time for _, curve in found if curve.points), default=None)
    positions = {stage.name: stage.position for stage in stages.for_run(session, run_id)}
    return [
        SeriesRow(info.key, info.stage, positions[info.stage], _points(curve, start), curve.exact)
        for info, curve in found
    ]


def _points(curve: metrics.Curve, start: datetime | None) -> tuple[Point, ...]:
    """What can be drawn: values that were not finite have no place on a chart."""
    return tuple(
        Point(point.step, point.value, point.low, point.high, (point.time - start).total_seconds())
        for point in curve.points
        if start is not None and point.value is not None and point.low is not None and point.high is not None
    )


def evaluations_of(session: Session, run_id: RunId) -> list[EvaluationRow]:
    """Every evaluation of the run, by stage and step."""
    places = {stage.id: stage for stage in stages.for_run(session, run_id)}
    rows = [
        EvaluationRow(
            step=row.step,
            stage=places[row.stage_id].name,
            position=places[row.stage_id].position,
            metric=row.metric,
            split=row.split,
            mean=row.mean,
            low=row.low,
            high=row.high,
            count=row.count,
            items=tuple((int(item), tuple(float(score) for score in scores)) for item, scores in row.items),
            cost={str(key): float(value) for key, value in row.cost.items()},
            functions_hash=row.functions_hash,
        )
        for row in evaluations.of_run(session, run_id)
    ]
    return sorted(rows, key=lambda row: (row.position, row.step, row.metric, row.split))


def leading(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Those that stand for the run in a list: of its leading metric, on `train` or else the first split by name."""
    metric = listing.leading(row.metric for row in rows)
    scores = [row for row in rows if row.metric == metric]
    splits = {row.split for row in scores}
    split = "train" if "train" in splits else min(splits, default="")
    return [row for row in scores if row.split == split]


def costs(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """What the run had cost by its costliest evaluation."""
    return {key: max(row.cost.get(key, 0.0) for row in rows) for key in {key for row in rows for key in row.cost}}


def curves(rows: Iterable[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """Learning curves by `metric on split`, leading ones first: each from the stage that was evaluated most often."""
    groups: dict[tuple[str, str], dict[str, list[EvaluationRow]]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.split), {}).setdefault(row.stage, []).append(row)
    ordered = sorted(groups, key=lambda key: (key[0] != "score", key[0], key[1] != "train", key[1]))
    return {f"{metric} on {split}": max(groups[metric, split].values(), key=len) for metric, split in ordered}


def axes(*runs: Iterable[EvaluationRow]) -> list[str]:
    """The costs that all of these evaluations were recorded over, `step` first."""
    shared = {axis for axis in AXES if all(row.at(axis) is not None for rows in runs for row in rows)}
    return [axis for axis in AXES if axis in shared]


def subject(run: RunDetail, rows: Iterable[EvaluationRow]) -> Subject:
    """A run as `engine.compare` takes it."""
    return Subject(
        handle=run.handle,
        spec=run.resolved,
        code=run.code,
        packages=run.packages,
        hardware=run.hardware,
        evaluations=[
            Evaluated(
                metric=row.metric,
                split=row.split,
                step=row.step,
                stage=row.stage,
                position=row.position,
                scores=dict(row.items),
                functions_hash=row.functions_hash,
                cost=row.cost,
            )
            for row in rows
        ],
    )


def same_items(a: RunDetail, b: RunDetail) -> bool:
    """Whether item 3 of the one is item 3 of the other: both specs name the same dataset items."""
    return all(_dataset(a).get(key) == _dataset(b).get(key) for key in ("file", "items", "splits"))


def _dataset(run: RunDetail) -> Mapping[str, Any]:
    found = run.resolved.get("dataset")
    return found if isinstance(found, Mapping) else {}


def checkpoints_of(session: Session, run_id: RunId) -> list[CheckpointRow]:
    """The run's checkpoints, newest first."""
    names = {stage.id: stage.name for stage in stages.for_run(session, run_id)}
    return [
        CheckpointRow(
            stage=names[row.stage_id],
            step=row.step,
            labels=tuple(str(label) for label in row.labels),
            bytes=row.bytes,
            sha256=row.sha256,
            uri=row.uri,
            created_at=row.created_at,
        )
        for row in reversed(checkpoints.of_run(session, run_id))
    ]


def attempts_of(session: Session, run_id: RunId) -> list[AttemptRow]:
    """Every try at the run's stages, the newest first."""
    found = [
        (stage, row) for stage in stages.for_run(session, run_id) for row in stages.attempts(session, StageId(stage.id))
    ]
    workers = select(Worker.id, Worker.name).where(Worker.id.in_({row.worker_id for _, row in found}))
    names = {row.id: row.name for row in session.execute(workers)}
    several = [row.id for stage, row in found if stage.nodes > 1]
    nodes = members.of(session, several) if several else {}
    rows = [
        AttemptRow(
            stage=stage.name,
            number=row.number,
            status=row.status,
            worker=", ".join(it.worker for it in nodes[row.id])
            if row.id in nodes
            else names.get(row.worker_id, "")
            if row.worker_id is not None
            else "",
            cause=row.cause,
            error=row.error,
            detail=dict(row.detail),
            log_path=row.log_path,
            log_tail=row.log_tail,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        for stage, row in found
    ]
    return rows[::-1]


def log_end(attempt: AttemptRow, logs: Path) -> str:
    """The end of an attempt's log: of its file where that lies under `logs` on this machine, else what SQL kept."""
    path = None if attempt.log_path is None else Path(attempt.log_path).resolve()
    if path is None or not path.is_relative_to(logs.resolve()):
        return attempt.log_tail
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - TAIL_BYTES)
            file.seek(start)
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return attempt.log_tail
    return text if start == 0 else "…\n" + text.partition("\n")[2]


def events_of(session: Session, run_id: RunId, limit: int = 200) -> list[EventRow]:
    """What happened to the run, newest first."""
    return [EventRow(row.time, row.kind, row.message) for row in reversed(events.of_run(session, run_id, limit=limit))]
