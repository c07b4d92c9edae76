"""What a worker with room asks the store: which stages are ready, in which order, and who should stop.

Only reads. A stage listed here may be gone by the time it is claimed; `stages.claim` decides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from engine.plan.stage import Resources
from engine.store.tables import Run, Stage, StageId
from engine.store.transitions import ENDED, StageStatus


@dataclass(frozen=True)
class Waiting:
    """A stage that may be claimed now, and what it needs."""

    stage_id: StageId
    run_id: UUID
    name: str
    resources: Resources


def ready(
    session: Session, *, queues: Sequence[str], now: datetime, run_id: UUID | None = None, limit: int = 50
) -> list[Waiting]:
    """Stages that wait in `queues` for a worker (of one run, or of all): by priority, then by how long they wait."""
    wanted = (
        select(Stage.id, Stage.run_id, Stage.name, Stage.resources)
        .where(Stage.status == StageStatus.READY, Stage.queue.in_(list(queues)))
        .where(or_(Stage.not_before.is_(None), Stage.not_before <= now))
        .order_by(Stage.priority.desc(), Stage.ready_at, Stage.id)
        .limit(limit)
    )
    if run_id is not None:
        wanted = wanted.where(Stage.run_id == run_id)
    return [
        Waiting(StageId(stage_id), run, name, Resources(**resources))
        for stage_id, run, name, resources in session.execute(wanted)
    ]


def stop_requested(session: Session, run_id: UUID) -> float | None:
    """Seconds that the run's stages have for a checkpoint since somebody asked it to stop; None where nobody did."""
    return session.scalar(select(Run.stop_grace_s).where(Run.id == run_id, Run.stop_requested))


def names(session: Session, run_id: UUID) -> list[str]:
    """The queues that the run's stages wait in."""
    return list(session.scalars(select(Stage.queue).where(Stage.run_id == run_id).distinct().order_by(Stage.queue)))


def over(session: Session, run_ids: Collection[UUID]) -> bool:
    """Whether every one of these runs has ended."""
    ended = [str(status) for status in ENDED[Run]]
    alive = select(Run.id).where(Run.id.in_(list(run_ids)), Run.status.not_in(ended)).limit(1)
    return session.scalar(alive) is None
