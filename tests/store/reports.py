"""What a stage writes while it runs: every kind of report, each as one write behind the attempt's fence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.runtime.context import Evaluation, ItemScore, Sample
from engine.store import checkpoints, evaluations, samples, stages
from engine.store.metrics import MetricWriter
from engine.store.session import Database
from engine.store.stages import Claimed


def reports(
    db: Database, claimed: Claimed, *, step: int, first: int, spool: Path, now: datetime
) -> list[Callable[[], object]]:
    """The writes of one step, the checkpoint last; `first` counts the samples that the attempt made before."""
    fence = {"run_id": claimed.run_id, "stage_id": claimed.stage_id, "number": claimed.number}

    def metric() -> None:
        writer = MetricWriter(db, claimed.run_id, claimed.stage_id, claimed.number, spool)
        writer.log(step, {"loss": step / 2})
        writer.close()

    def write(record: Callable[..., object], **values: Any) -> Callable[[], None]:
        def act() -> None:
            with db.write() as session:
                record(session, **values)

        return act

    evaluation = Evaluation(step, "score", [ItemScore(0, (float(step),))])
    kept = {"labels": ["latest"], "uri": f"/{step}", "sha256": "0" * 64, "size": 1}
    return [
        write(stages.start, claimed=claimed, pid=step),
        write(stages.progress, stage_id=claimed.stage_id, number=claimed.number, done=step, total=99, now=now),
        metric,
        write(samples.add, **fence, first=first, samples=[Sample(step, text_of(claimed, step))]),
        write(evaluations.record, **fence, evaluation=evaluation, now=now, interval=lambda _: (step, step)),
        write(checkpoints.record, **fence, step=step, now=now, **kept),
    ]


def text_of(claimed: Claimed, step: int) -> str:
    """The text of the sample that an attempt makes at a step."""
    return f"step {step} of attempt {claimed.number}"
