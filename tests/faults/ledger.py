"""What a run left behind, read from its store and its disk, and what is missing or double beside an undisturbed one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from engine.store import stages
from engine.store.artifact_store import hash_dir
from engine.store.session import Database
from engine.store.tables import Artifact, Attempt, Evaluation, Event, Lease, Metric, Run, RunId, Sample, Series, Stage
from engine.store.transitions import ENDED
from tests.faults.training import WEIGHTS


@dataclass(frozen=True)
class Record:
    """A run's results; equal records, equal runs."""

    status: str
    artifacts: Mapping[str, str]
    """Stage -> content hash, recomputed from the files."""
    weights: Mapping[str, str]
    """Stage -> SHA-256 of its weights file."""
    metrics: Mapping[tuple[str, str], tuple[tuple[int, float | None], ...]]
    """(stage, key) -> (step, value), by step."""
    samples: Mapping[str, tuple[str, ...]]
    """Stage -> texts, in the order in which they were made."""
    evaluations: Mapping[tuple[str, str, int], tuple[float, int]]
    """(stage, metric, step) -> (mean, count)."""

    @property
    def points(self) -> int:
        """How many metric points there are."""
        return sum(map(len, self.metrics.values()))


def read(db: Database, run_id: RunId) -> Record:
    """The run's record."""
    with db.read() as session:
        status = session.get_one(Run, run_id).status
        outputs = session.execute(
            select(Stage.name, Artifact.uri)
            .join(Artifact, Artifact.id == Stage.artifact_id)
            .where(Stage.run_id == run_id)
            .order_by(Stage.position)
        ).all()
        metrics: dict[tuple[str, str], list[tuple[int, float | None]]] = {}
        for stage, key, step, value in session.execute(
            select(Stage.name, Series.key, Metric.step, Metric.value)
            .join(Series, Series.stage_id == Stage.id)
            .join(Metric, Metric.series_id == Series.id)
            .where(Stage.run_id == run_id)
            .order_by(Stage.position, Series.key, Metric.step)
        ):
            metrics.setdefault((stage, key), []).append((step, value))
        texts: dict[str, list[str]] = {}
        for stage, text in session.execute(
            select(Stage.name, Sample.text)
            .join(Sample, Sample.stage_id == Stage.id)
            .where(Stage.run_id == run_id)
            .order_by(Stage.position, Sample.attempt, Sample.sequence)
        ):
            texts.setdefault(stage, []).append(text)
        evaluations = {
            (stage, metric, step): (mean, count)
            for stage, metric, step, mean, count in session.execute(
                select(Stage.name, Evaluation.metric, Evaluation.step, Evaluation.mean, Evaluation.count)
                .join(Evaluation, Evaluation.stage_id == Stage.id)
                .where(Stage.run_id == run_id)
            )
        }
    folders = {name: Path(uri) for name, uri in outputs}
    return Record(
        status=status,
        artifacts={name: hash_dir(folder).sha256 for name, folder in folders.items()},
        weights={
            name: hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
            for name, folder in folders.items()
            if (folder / WEIGHTS).exists()
        },
        metrics={name: tuple(points) for name, points in metrics.items()},
        samples={name: tuple(found) for name, found in texts.items()},
        evaluations=evaluations,
    )


def losses(found: Record, undisturbed: Record) -> list[str]:
    """Everything in which a run differs from the undisturbed one: what is missing, double or of another value."""
    said = []
    if found.status != "succeeded":
        said.append(f"the run {found.status}")
    for what in ("weights", "artifacts"):
        ours, theirs = getattr(found, what), getattr(undisturbed, what)
        said += [f"{what} of {name} differ" for name in theirs if ours.get(name) != theirs[name]]
    for name in sorted(set(undisturbed.metrics) | set(found.metrics)):
        said += _differences(f"metric {'/'.join(name)}", found.metrics.get(name, ()), undisturbed.metrics.get(name, ()))
    for stage in sorted(set(undisturbed.samples) | set(found.samples)):
        ours, theirs = found.samples.get(stage, ()), undisturbed.samples.get(stage, ())
        said += _differences(f"samples of {stage}", ours, theirs)
        if ours != theirs and sorted(ours) == sorted(theirs):
            said.append(f"samples of {stage} are out of order")
    said += _differences("evaluations", tuple(found.evaluations.items()), tuple(undisturbed.evaluations.items()))
    return said


def _differences(what: str, found: tuple[object, ...], expected: tuple[object, ...]) -> list[str]:
    ours, theirs = Counter(found), Counter(expected)
    said = [f"{what}: lost {item} {count} times" for item, count in (theirs - ours).items()]
    return said + [f"{what}: {item} is there {count} times too often" for item, count in (ours - theirs).items()]


def breaches(db: Database, run_id: RunId) -> list[str]:
    """What the rows of a run that has ended say against the engine: ended twice, left running, left leased."""
    said = []
    with db.read() as session:
        run = session.get_one(Run, run_id)
        if run.status not in ENDED[Run]:
            said.append(f"the run is {run.status}")
        counts = Counter(session.scalars(select(Event.kind).where(Event.run_id == run_id)))
        if counts["run.succeeded"] != 1:
            said.append(f"the run succeeded {counts['run.succeeded']} times")
        for stage in stages.for_run(session, run_id):
            attempts = stages.attempts(session, stage.id)
            succeeded = [attempt.number for attempt in attempts if attempt.status == "succeeded"]
            if succeeded != [stage.attempt]:
                said.append(f"{stage.name}: attempts {succeeded} succeeded, the newest is {stage.attempt}")
            if [attempt.number for attempt in attempts] != list(range(1, stage.attempt + 1)):
                said.append(f"{stage.name}: attempts are numbered {[attempt.number for attempt in attempts]}")
            said += [f"{stage.name}: attempt {one.number} is {one.status}" for one in attempts if not one.finished_at]
        leased = session.scalars(
            select(Lease.device)
            .join(Attempt, Attempt.id == Lease.attempt_id)
            .join(Stage, Stage.id == Attempt.stage_id)
            .where(Stage.run_id == run_id)
        ).all()
        said += [f"{device} is still leased" for device in leased]
    return said
