"""What a mirror reads: the points behind its marks, and which of those before them have changed. Only reads.

A series is a metric's key in a stage, or an evaluation's means over its steps. Of each the mirror remembers a span: the
last step that it has seen, how many points there were up to it, and the time of the newest. A stage that resumes
reports what came after its checkpoint again, so counts and times tell whether anything before the mark is new.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.store import metrics, runs
from engine.store.tables import Evaluation, Metric, Run, RunId, Stage
from engine.store.transitions import ENDED
from engine.tracking.bridge import About, Point

_LONGEST = 500
"""Characters of a parameter: prompts and functions are cut."""


@dataclass(frozen=True)
class Span:
    """How far a series has been mirrored."""

    step: int
    time: float
    count: int


@dataclass(frozen=True)
class Track:
    """A series with what is new in it."""

    stage: str
    key: str
    series: int | None
    """Of a metric; None for an evaluation."""

    @property
    def name(self) -> str:
        """Under which its span is remembered."""
        return f"{self.stage}\t{self.key}"


def about(session: Session, run_id: RunId) -> About:
    """The run as it stands now."""
    run = runs.get(session, run_id)
    return About(
        id=str(run.id),
        handle=run.handle,
        spec=str(run.resolved.get("name", run.name)),
        status=run.status,
        params={name: value for name, value in flat(run.resolved) if not name.startswith("tracking.")},
        tags=tuple(str(tag) for tag in run.tags),
        notes=run.notes,
        user=run.user,
        submitted=run.submitted_at.timestamp(),
        finished=None if run.finished_at is None else run.finished_at.timestamp(),
    )


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of JSON data under dotted names; lists and long texts as text."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flat(value, f"{path}.{key}" if path else str(key))
        return
    text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
    if isinstance(tree, str | list | Mapping):
        yield path, text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    else:
        yield path, tree


def states(session: Session, run_id: RunId) -> dict[str, list[Any]]:
    """Of each stage its attempt, and whether it has ended: only where this changes can points have been replaced."""
    found = session.execute(select(Stage.name, Stage.attempt, Stage.status).where(Stage.run_id == run_id))
    return {name: [attempt, status in ENDED[Stage]] for name, attempt, status in found}


def over(session: Session, run_id: RunId) -> bool:
    """Whether the run has ended."""
    return session.scalars(select(Run.status).where(Run.id == run_id)).one() in ENDED[Run]


def tracks(session: Session, run_id: RunId) -> list[Track]:
    """Every series of the run."""
    measured = [Track(info.stage, info.key, info.id) for info in metrics.series(session, run_id)]
    scored = session.execute(
        select(Stage.name, Evaluation.metric, Evaluation.split)
        .join(Stage, Stage.id == Evaluation.stage_id)
        .where(Evaluation.run_id == run_id)
        .group_by(Stage.name, Stage.position, Evaluation.metric, Evaluation.split)
        .order_by(Stage.position, Evaluation.metric, Evaluation.split)
    )
    return measured + [Track(stage, f"evaluation/{metric}/{split}", None) for stage, metric, split in scored]


def news(session: Session, run_id: RunId, spans: Mapping[str, Span], most: int) -> list[Point]:
    """Up to `most` points behind the spans: of one series after another, by step."""
    found: list[Point] = []
    for track in tracks(session, run_id):
        span = spans.get(track.name)
        after = None if span is None else span.step
        found += points(session, run_id, track, after=after, most=most - len(found))
        if len(found) >= most:
            break
    return found


def points(
    session: Session,
    run_id: RunId,
    track: Track,
    *,
    after: int | None = None,
    until: int | None = None,
    most: int | None = None,
) -> list[Point]:
    """Points of a series by step: those after one step, and up to another."""
    if track.series is not None:
        step: Any = Metric.step
        query = select(Metric.step, Metric.value, Metric.time).where(Metric.series_id == track.series)
    else:
        step = Evaluation.step
        query = _scores(run_id, track)
    if after is not None:
        query = query.where(step > after)
    if until is not None:
        query = query.where(step <= until)
    rows = session.execute(query.order_by(step).limit(most))
    return [
        Point(track.stage, track.key, at, math.nan if value is None else value, _seconds(time))
        for at, value, time in rows
    ]


def changed(session: Session, run_id: RunId, spans: Mapping[str, Span]) -> list[tuple[Track, Span | None]]:
    """The series of which points up to the mark are no longer those that were read; the span as it is now, if any."""
    known = {track.name: track for track in tracks(session, run_id)}
    found = []
    for name, span in spans.items():
        stage, _, key = name.partition("\t")
        track = known.get(name, Track(stage, key, None))
        now = _span(session, run_id, track, span.step)
        if now != span:
            found.append((track, now))
    return found


def _span(session: Session, run_id: RunId, track: Track, until: int) -> Span | None:
    if track.series is not None:
        query: Any = select(func.max(Metric.step), func.max(Metric.time), func.count()).where(
            Metric.series_id == track.series, Metric.step <= until
        )
    else:
        scores = _scores(run_id, track).where(Evaluation.step <= until).subquery()
        query = select(func.max(scores.c.step), func.max(scores.c.created_at), func.count()).select_from(scores)
    step, time, count = session.execute(query).one()
    return None if step is None else Span(step, _seconds(time), count)


def _scores(run_id: RunId, track: Track) -> Any:
    metric, _, split = track.key.removeprefix("evaluation/").rpartition("/")
    return (
        select(Evaluation.step, Evaluation.mean, Evaluation.created_at)
        .join(Stage, Stage.id == Evaluation.stage_id)
        .where(
            Evaluation.run_id == run_id,
            Stage.name == track.stage,
            Evaluation.metric == metric,
            Evaluation.split == split,
        )
    )


def _seconds(time: Any) -> float:
    return float(time.timestamp()) if hasattr(time, "timestamp") else float(time)
