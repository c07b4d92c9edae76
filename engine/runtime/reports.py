"""What a stage reports, as values: each knows how to write itself in a transaction, and what it is as JSON.

Each may be written twice and is there once: samples are numbered, evaluations and checkpoints have keys.
Getting them to the store is `delivery`'s, keeping them meanwhile `spool`'s. Metrics go a way of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sqlalchemy.orm import Session

from engine.errors import ResumeError, StaleAttempt
from engine.runtime.manifest import read_manifest
from engine.store import checkpoints, evaluations, fingerprints, samples, stages
from engine.store.fingerprints import Fingerprint, Layer
from engine.store.tables import RunId, StageId
from engine.store.values import finite, storable_json

if TYPE_CHECKING:  # numpy comes with it, and whoever only passes reports on need not pay for that
    from engine.runtime.context import Evaluation, Sample


_NOTES_A_SAMPLE = 16
"""So many fingerprints take about the room of a sample."""


@dataclass(frozen=True)
class Reporter:
    """The attempt that a report is from."""

    run_id: RunId
    stage_id: StageId
    number: int


class Report(Protocol):
    """One report. `write` expects that the transaction holds the reporter's fence."""

    kind: ClassVar[str]

    @property
    def size(self) -> int:
        """How much it is, in samples."""

    def write(self, session: Session, reporter: Reporter) -> None: ...

    def as_data(self) -> dict[str, Any]:
        """JSON data for the `from_data` of its class."""


class _Single:
    """A report of one thing."""

    size: ClassVar[int] = 1


@dataclass(frozen=True)
class Sampled:
    """Samples, of which the attempt had reported `first` before."""

    kind: ClassVar[str] = "samples"
    first: int
    samples: tuple[Sample, ...]

    @property
    def size(self) -> int:
        return len(self.samples)

    def write(self, session: Session, reporter: Reporter) -> None:
        samples.add(session, **_of(reporter), first=self.first, samples=self.samples, fence=stages.held)

    def as_data(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "samples": [
                {
                    "step": int(one.step),
                    "text": one.text,
                    "score": None if one.score is None else finite(float(one.score)),
                    "item": None if one.item is None else int(one.item),
                    "split": one.split,
                    "kind": one.kind,
                    "data": storable_json(one.data),
                }
                for one in self.samples
            ],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Sampled:
        from engine.runtime.context import Sample

        return cls(data["first"], tuple(Sample(**one) for one in data["samples"]))


@dataclass(frozen=True)
class Evaluated(_Single):
    """An evaluation made at `time`, and the interval of its mean."""

    kind: ClassVar[str] = "evaluation"
    evaluation: Evaluation
    interval: tuple[float, float]
    time: datetime

    def write(self, session: Session, reporter: Reporter) -> None:
        evaluations.record(
            session,
            **_of(reporter),
            evaluation=self.evaluation,
            now=self.time,
            interval=lambda _: self.interval,
            fence=stages.held,
        )

    def as_data(self) -> dict[str, Any]:
        made = self.evaluation
        return {
            "step": int(made.step),
            "metric": made.metric,
            "items": [[int(one.item), [float(score) for score in one.scores]] for one in made.items],
            "split": made.split,
            "functions_hash": made.functions_hash,
            "cost": storable_json(made.cost),
            "interval": list(self.interval),
            "time": self.time.isoformat(),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Evaluated:
        from engine.runtime.context import Evaluation, ItemScore

        made = dict(data)
        low, high = made.pop("interval")
        time = datetime.fromisoformat(made.pop("time"))
        items = [ItemScore(item, tuple(scores)) for item, scores in made.pop("items")]
        return cls(Evaluation(items=items, **made), (low, high), time)


@dataclass(frozen=True)
class Checkpointed(_Single):
    """A checkpoint that is whole on the disk; it counts once this is written, after all that was reported before."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    labels: tuple[str, ...]
    uri: str
    sha256: str
    bytes: int
    time: datetime

    def write(self, session: Session, reporter: Reporter) -> None:
        if not self.is_there():
            return  # retention let it go, or a newer one of the same step took its place: the record of that follows
        checkpoints.record(
            session,
            **_of(reporter),
            step=self.step,
            labels=self.labels,
            uri=self.uri,
            sha256=self.sha256,
            size=self.bytes,
            now=self.time,
            fence=stages.held,
        )

    def is_there(self) -> bool:
        """Whether the folder holds the checkpoint that is meant; its files are not read."""
        try:
            return read_manifest(Path(self.uri)).sha256 == self.sha256
        except ResumeError:
            return False

    def as_data(self) -> dict[str, Any]:
        return {**asdict(self), "time": self.time.isoformat()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Checkpointed:
        return cls(**{**data, "labels": tuple(data["labels"]), "time": datetime.fromisoformat(data["time"])})


@dataclass(frozen=True)
class Rewound(_Single):
    """The attempt goes on after the first `sampled` samples of `attempt` (0: from the very beginning)."""

    kind: ClassVar[str] = "rewind"
    attempt: int
    sampled: int

    def write(self, session: Session, reporter: Reporter) -> None:
        samples.rewind(
            session,
            stage_id=reporter.stage_id,
            number=reporter.number,
            attempt=self.attempt,
            sampled=self.sampled,
            fence=stages.held,
        )

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Rewound:
        return cls(**data)


@dataclass(frozen=True)
class Noted:
    """Neighbouring fingerprints of the stage's stream."""

    kind: ClassVar[str] = "fingerprints"
    entries: tuple[Fingerprint, ...]

    @property
    def size(self) -> int:
        return -(-len(self.entries) // _NOTES_A_SAMPLE)

    def write(self, session: Session, reporter: Reporter) -> None:
        fingerprints.add(
            session, stage_id=reporter.stage_id, number=reporter.number, entries=self.entries, fence=stages.held
        )

    def as_data(self) -> dict[str, Any]:
        return {"entries": [[one.place, one.step, str(one.layer), one.value] for one in self.entries]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Noted:
        rows = data["entries"]
        return cls(tuple(Fingerprint(place, step, Layer(layer), value) for place, step, layer, value in rows))


@dataclass(frozen=True)
class TraceRewound(_Single):
    """The stage goes on noting fingerprints from `place`."""

    kind: ClassVar[str] = "rewind fingerprints"
    place: int

    def write(self, session: Session, reporter: Reporter) -> None:
        fingerprints.rewind(
            session, stage_id=reporter.stage_id, number=reporter.number, place=self.place, fence=stages.held
        )

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> TraceRewound:
        return cls(**data)


@dataclass(frozen=True)
class Progressed(_Single):
    """How far the stage is; of no interest once the attempt is over."""

    kind: ClassVar[str] = "progress"
    done: float
    total: float
    note: str
    time: datetime

    def write(self, session: Session, reporter: Reporter) -> None:
        with suppress(StaleAttempt):
            stages.progress(
                session,
                reporter.stage_id,
                reporter.number,
                done=self.done,
                total=self.total,
                note=self.note,
                now=self.time,
            )

    def as_data(self) -> dict[str, Any]:
        return {**asdict(self), "done": float(self.done), "total": float(self.total), "time": self.time.isoformat()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Progressed:
        return cls(**{**data, "time": datetime.fromisoformat(data["time"])})


_KINDS = {cls.kind: cls for cls in (Sampled, Evaluated, Checkpointed, Rewound, Noted, TraceRewound, Progressed)}


def dump(report: Report) -> str:
    """The report as one line of JSON, without its end."""
    return json.dumps([report.kind, report.as_data()], separators=(",", ":"))


def load(line: str | bytes) -> Report:
    """The report that `dump` made a line of. Raises ValueError for what is none."""
    try:
        kind, data = json.loads(line)
        return _KINDS[kind].from_data(data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a report: {line[:80]!r}") from error


def write_all(session: Session, reporter: Reporter, reports: Iterable[Report]) -> None:
    """Write reports in their order; samples that follow each other in one statement."""
    for report in _joined(list(reports)):
        report.write(session, reporter)


def _joined(reports: Sequence[Report]) -> list[Report]:
    joined: list[Report] = []
    for report in reports:
        last = joined[-1] if joined else None
        if isinstance(report, Sampled) and isinstance(last, Sampled) and last.first + last.size == report.first:
            joined[-1] = Sampled(last.first, last.samples + report.samples)
        else:
            joined.append(report)
    return joined


def _of(reporter: Reporter) -> dict[str, Any]:
    return {"run_id": reporter.run_id, "stage_id": reporter.stage_id, "number": reporter.number}
