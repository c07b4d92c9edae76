"""Runs, stages and specs as the pages show them: rows as frozen dataclasses, nothing of Streamlit.

Queries are the store's own; here are those that only a page needs. Every function takes a session, and pages hand in
one that can only read. What a run left behind (curves, samples, evaluations, logs) is in `evidence`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.errors import NotFound
from engine.store import certificates, handles, listing, runs, specs, spent, stages
from engine.store.listing import LEADING, RunSummary, leading
from engine.store.names import handle_name
from engine.store.spent import Timed, Times
from engine.store.tables import Attempt, Evaluation, Run, RunId, Stage, StageId, StageInput

LISTED = 500
"""Runs that the list shows at most; the filters find the others."""


@dataclass(frozen=True)
class RunRow:
    """One run in the list."""

    summary: RunSummary
    method: str
    model: str
    scores: tuple[float, ...]
    """Means of its `score` evaluations on the leading split, in order."""

    @property
    def handle(self) -> str:
        return self.summary.handle

    def seconds(self, now: datetime) -> float | None:
        """How long it has run, or ran."""
        return _seconds(self.summary.started_at, self.summary.finished_at, now)


@dataclass(frozen=True)
class RunDetail:
    """One run, as its own page shows it."""

    id: RunId
    handle: str
    status: str
    tags: tuple[str, ...]
    notes: str
    user: str
    seed: int
    tiny: bool
    overrides: tuple[str, ...]
    resolved: dict[str, Any]
    spec_name: str
    revision: int
    source: str
    code: dict[str, Any]
    packages: dict[str, Any]
    hardware: dict[str, Any]
    functions_hash: str
    submitted_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def spec(self) -> str:
        return f"{self.spec_name}@{self.revision}"

    @property
    def method(self) -> str:
        return self._name_of("algorithm")

    @property
    def model(self) -> str:
        return self._name_of("model")

    def _name_of(self, block: str) -> str:
        found = self.resolved.get(block)
        return str(found.get("name", "")) if isinstance(found, dict) else str(found or "")

    def seconds(self, now: datetime) -> float | None:
        """How long it has run, or ran."""
        return _seconds(self.started_at, self.finished_at, now)


@dataclass(frozen=True)
class StageRow:
    """One node of a run's plan as it stands now."""

    id: StageId
    name: str
    kind: str
    status: str
    attempt: int
    max_attempts: int
    cached: bool
    done: float
    total: float
    note: str
    cause: str | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None
    inputs: tuple[str, ...]
    """Names of the stages whose artifacts it reads."""
    times: Mapping[str, float] = field(default_factory=dict)
    """Where the time of all its attempts went, in seconds."""

    @property
    def share(self) -> float:
        """How far it is, from 0 to 1."""
        if self.status == "succeeded":
            return 1.0
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0

    def seconds(self, now: datetime) -> float | None:
        """How long it has run, or ran."""
        return _seconds(self.started_at, self.finished_at, now)

    def remaining(self, now: datetime) -> float | None:
        """Seconds it still needs at its pace so far; None where that cannot be said."""
        spent = self.seconds(now)
        if self.status != "running" or spent is None or not 0 < self.share < 1:
            return None
        return spent * (1 - self.share) / self.share


def _seconds(start: datetime | None, end: datetime | None, now: datetime) -> float | None:
    return None if start is None else ((end or now) - start).total_seconds()


def find_runs(
    session: Session,
    *,
    name: str = "",
    statuses: Sequence[str] = (),
    tags: Sequence[str] = (),
    limit: int = LISTED,
) -> list[RunRow]:
    """The newest runs that pass the filters; `name` is looked for in handles and users, tags must all be there."""
    filtered = bool(name or tags)
    found = listing.listing(session, status=list(statuses) or None, limit=None if filtered else limit)
    wanted = handle_name(name.lower())
    found = [
        row
        for row in found
        if (wanted in row.handle or name.lower() in row.user.lower()) and set(tags) <= set(row.tags)
    ][:limit]
    ids = [row.id for row in found]
    scores, names = _scores(session, ids), _names(session, ids)
    return [RunRow(row, *names[row.id], tuple(scores.get(row.id, ()))) for row in found]


def statuses(session: Session) -> dict[str, int]:
    """How many runs there are in each status."""
    rows = session.execute(select(Run.status, func.count()).group_by(Run.status))
    return {row[0]: row[1] for row in rows}


def tags(session: Session) -> list[str]:
    """Every tag that a run carries."""
    return sorted({str(tag) for (row,) in session.execute(select(Run.tags).distinct()) for tag in row})


def newest(session: Session, limit: int = LISTED) -> list[str]:
    """Handles of the newest runs."""
    return list(session.scalars(select(Run.handle).order_by(Run.submitted_at.desc(), Run.number.desc()).limit(limit)))


def resolve(session: Session, handle: str) -> str | None:
    """The handle that is meant by a handle, a unique beginning of one, or `@last`; None where it means nothing."""
    try:
        return handles.find(session, handle).handle
    except NotFound:
        return None


def sibling(session: Session, run: RunDetail) -> str | None:
    """The newest run of the same name that was submitted before this one: what one compares it with."""
    name = handle_name(run.spec_name)
    before = select(Run.handle).where(Run.name == name, Run.submitted_at < run.submitted_at)
    return session.scalars(before.order_by(Run.submitted_at.desc()).limit(1)).one_or_none()


def run(session: Session, handle: str) -> RunDetail:
    """One run. Raises NotFound."""
    found = handles.find(session, handle)
    spec = runs.spec_of(session, found)
    return RunDetail(
        id=RunId(found.id),
        handle=found.handle,
        status=found.status,
        tags=tuple(str(tag) for tag in found.tags),
        notes=found.notes,
        user=found.user,
        seed=found.seed,
        tiny=found.tiny,
        overrides=tuple(str(override) for override in found.overrides),
        resolved=dict(found.resolved),
        spec_name=spec.name,
        revision=spec.revision,
        source=spec.source,
        code=dict(found.code),
        packages=dict(found.packages),
        hardware=dict(found.hardware),
        functions_hash=found.functions_hash,
        submitted_at=found.submitted_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
    )


def stages_of(session: Session, run_id: RunId) -> list[StageRow]:
    """The nodes of the run's plan, each after its inputs."""
    rows = stages.for_run(session, run_id)
    tried: dict[UUID, list[Times]] = defaultdict(list)
    timed = select(Attempt.stage_id, Attempt.status, Attempt.spent, Attempt.started_at, Attempt.finished_at)
    for attempt in session.execute(timed.where(Attempt.stage_id.in_([row.id for row in rows]))):
        tried[attempt.stage_id].append(spent.of_attempt(cast(Timed, attempt)))
    names = {row.id: row.name for row in rows}
    inputs: dict[UUID, list[str]] = defaultdict(list)
    edges = select(StageInput).where(StageInput.stage_id.in_(names)).order_by(StageInput.name)
    for edge in session.scalars(edges):
        inputs[edge.stage_id].append(names[edge.producer_id])
    return [
        StageRow(
            id=StageId(row.id),
            name=row.name,
            kind=row.kind,
            status=row.status,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            cached=row.cached,
            done=row.done,
            total=row.total,
            note=row.note,
            cause=row.cause,
            error=row.error,
            started_at=row.started_at,
            finished_at=row.finished_at,
            inputs=tuple(inputs[row.id]),
            times=spent.added(tried[row.id]),
        )
        for row in rows
    ]


def times(rows: Sequence[StageRow]) -> Times:
    """Where the time of a run's attempts went, in seconds; what was done twice counts twice."""
    return spent.added(row.times for row in rows)


def certificate(session: Session, run: RunDetail) -> str | None:
    """What `rlx verify-resume` found out about the run's method, in a line; None where nobody asked it."""
    found = certificates.for_run(session, run.id, method=run.method, code=run.code)
    return None if found is None else certificates.in_words(found, run.code)


def progress(rows: Sequence[StageRow]) -> float:
    """How far a run is, from 0 to 1: each stage counts the same."""
    return sum(row.share for row in rows) / len(rows) if rows else 0.0


def previous_source(session: Session, name: str, revision: int) -> str | None:
    """The text of the revision before this one; None for the first."""
    return None if revision <= 1 else specs.find(session, name, revision - 1).source


def _names(session: Session, run_ids: Sequence[RunId]) -> dict[RunId, tuple[str, str]]:
    """Each run's method and model, without reading whole specs."""
    method, model = Run.resolved["algorithm"]["name"].as_string(), Run.resolved["model"]["name"].as_string()
    rows = session.execute(select(Run.id, method, model).where(Run.id.in_(run_ids)))
    return {RunId(run_id): (method_name or "", model_name or "") for run_id, method_name, model_name in rows}


def _scores(session: Session, run_ids: Sequence[RunId]) -> dict[RunId, list[float]]:
    """Means of the leading metric over each run, of the metric and on the split that the store's listing takes too."""
    rows = (
        select(Evaluation.run_id, Evaluation.metric, Evaluation.split, Evaluation.mean)
        .join(Stage, Stage.id == Evaluation.stage_id)
        .where(Evaluation.run_id.in_(run_ids), Evaluation.metric.in_(LEADING))
        .order_by(Stage.position, Evaluation.step)
    )
    found: dict[RunId, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run_id, metric, split, mean in session.execute(rows):
        found[RunId(run_id)][metric][split].append(mean)
    chosen = {run_id: metrics[leading(metrics) or LEADING[0]] for run_id, metrics in found.items()}
    return {run_id: splits["train"] if "train" in splits else splits[min(splits)] for run_id, splits in chosen.items()}
