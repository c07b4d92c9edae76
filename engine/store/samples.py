"""Generated texts and trajectories with their scores: delivered at least once, stored once, read in pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from engine.store.stages import Fence, fenced
from engine.store.tables import RunId, Sample, StageId
from engine.store.upsert import insert
from engine.store.values import finite, storable_json, storable_text


class NewSample(Protocol):
    """What a stage reports; `engine.runtime.context.Sample` is one."""

    @property
    def step(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float | None: ...
    @property
    def item(self) -> int | None: ...
    @property
    def split(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


def add(
    session: Session,
    *,
    run_id: RunId,
    stage_id: StageId,
    number: int,
    first: int,
    samples: Sequence[NewSample],
    fence: Fence = fenced,
) -> None:
    """Store samples of attempt `number`; the attempt counts them, and `first` is the count of the first of these.

    Samples that were stored already are left alone. Raises StaleAttempt.
    """
    fence(session, stage_id, number)
    if not samples:
        return
    rows = [
        {
            "run_id": run_id,
            "stage_id": stage_id,
            "attempt": number,
            "sequence": first + place,
            "step": sample.step,
            "kind": sample.kind[:64],
            "split": sample.split[:64],
            "item": sample.item,
            "score": finite(sample.score),
            "text": storable_text(sample.text),
            "data": storable_json(sample.data),
        }
        for place, sample in enumerate(samples)
    ]
    session.execute(insert(session, Sample).on_conflict_do_nothing(), rows)


def rewind(
    session: Session, *, stage_id: StageId, number: int, attempt: int, sampled: int, fence: Fence = fenced
) -> int:
    """Delete what earlier attempts sampled after the point to which attempt `number` has gone back; how many.

    That point is a checkpoint of `attempt` (0: the very beginning), written after its first `sampled` samples.
    What came later will be sampled again, and must not be there twice. Raises StaleAttempt.
    """
    fence(session, stage_id, number)
    later = (Sample.attempt > attempt) | ((Sample.attempt == attempt) & (Sample.sequence >= sampled))
    doomed = (Sample.stage_id == stage_id) & (Sample.attempt < number) & later
    count = session.scalar(select(func.count()).select_from(Sample).where(doomed)) or 0
    if count:
        session.execute(delete(Sample).where(doomed).execution_options(synchronize_session=False))
    return count


def of_run(
    session: Session,
    run_id: RunId,
    *,
    step: int | None = None,
    split: str | None = None,
    kind: str | None = None,
    item: int | None = None,
    limit: int = 50,
    offset: int = 0,
) -> list[Sample]:
    """Samples of a run, newest step first, in the order in which they were made within a step."""
    query = select(Sample).where(Sample.run_id == run_id)
    for column, wanted in ((Sample.step, step), (Sample.split, split), (Sample.kind, kind), (Sample.item, item)):
        if wanted is not None:
            query = query.where(column == wanted)
    return list(session.scalars(query.order_by(Sample.step.desc(), Sample.id).limit(limit).offset(offset)))


def steps(session: Session, run_id: RunId) -> list[int]:
    """The steps at which the run has samples, rising."""
    return list(session.scalars(select(Sample.step).where(Sample.run_id == run_id).distinct().order_by(Sample.step)))
