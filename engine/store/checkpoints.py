"""Rows of checkpoints: where a stage's resumable training states are. Writing the files is the runtime's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from engine.errors import NotFound
from engine.store.stages import Fence, fenced
from engine.store.tables import Checkpoint, Run, RunId, Stage, StageId
from engine.store.upsert import insert

STEP = "step-"


def record(
    session: Session,
    *,
    run_id: RunId,
    stage_id: StageId,
    number: int,
    step: int,
    labels: Sequence[str],
    uri: str,
    sha256: str,
    size: int,
    now: datetime,
    fence: Fence = fenced,
) -> None:
    """Enter a complete checkpoint of attempt `number`; the labels it claims leave the stage's other checkpoints.

    A step that is recorded again replaces the earlier row. Raises StaleAttempt.
    """
    fence(session, stage_id, number)
    for other in session.scalars(select(Checkpoint).where(Checkpoint.stage_id == stage_id, Checkpoint.step != step)):
        kept = [label for label in other.labels if label not in labels]
        if kept != other.labels:
            other.labels = kept
    session.flush()
    values = {
        "attempt": number,
        "labels": list(labels),
        "uri": uri,
        "sha256": sha256,
        "bytes": size,
        "created_at": now,
    }
    session.execute(
        insert(session, Checkpoint)
        .values(run_id=run_id, stage_id=stage_id, step=step, **values)
        .on_conflict_do_update(index_elements=[Checkpoint.stage_id, Checkpoint.step], set_=values)
    )


def forget(session: Session, *, stage_id: StageId, number: int, steps: Collection[int]) -> None:
    """Remove the rows of checkpoints whose files retention has removed. Raises StaleAttempt."""
    fenced(session, stage_id, number)
    session.execute(delete(Checkpoint).where(Checkpoint.stage_id == stage_id, Checkpoint.step.in_(steps)))


def of_stage(session: Session, stage_id: StageId) -> list[Checkpoint]:
    """Every checkpoint of one stage, by step."""
    return list(session.scalars(select(Checkpoint).where(Checkpoint.stage_id == stage_id).order_by(Checkpoint.step)))


def of_run(session: Session, run_id: RunId) -> list[Checkpoint]:
    """Every checkpoint of the run, in plan order and then by step."""
    return list(
        session.scalars(
            select(Checkpoint)
            .join(Stage, Stage.id == Checkpoint.stage_id)
            .where(Checkpoint.run_id == run_id)
            .order_by(Stage.position, Checkpoint.step)
        )
    )


def find(session: Session, run: Run, label: str) -> Checkpoint:
    """The checkpoint called `best`, `latest` or `step-40`, of the last stage that has one. Raises NotFound."""
    found = of_run(session, RunId(run.id))
    for checkpoint in reversed(found):
        if label in checkpoint.labels or label == f"{STEP}{checkpoint.step}":
            return checkpoint
    names = sorted({name for checkpoint in found for name in checkpoint.labels})
    names += [f"{STEP}{checkpoint.step}" for checkpoint in found]
    known = f"It has {', '.join(names)}." if names else "It has none."
    raise NotFound(f"{run.handle} has no checkpoint {label!r}. {known}")
