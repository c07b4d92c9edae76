"""Evaluations: per-item scores with their mean, count and interval.

Comparing two runs is `engine.compare`'s; the interval here is the same as its `mean_interval`, so that
`rlx show` and `rlx compare` never disagree about one evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.errors import DataError
from engine.store.stages import Fence, fenced
from engine.store.tables import Evaluation, RunId, StageId
from engine.store.upsert import insert
from engine.store.values import storable_json

RESAMPLES = 10_000

Interval = Callable[[Sequence[Sequence[float]]], tuple[float, float]]
"""Per-item scores -> the ends of the interval of their mean."""


class ItemScores(Protocol):
    """The scores that one dataset item received."""

    @property
    def item(self) -> int: ...
    @property
    def scores(self) -> Sequence[float]: ...


class NewEvaluation(Protocol):
    """What a stage reports; `engine.runtime.context.Evaluation` is one."""

    @property
    def step(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def items(self) -> Sequence[ItemScores]: ...
    @property
    def split(self) -> str: ...
    @property
    def functions_hash(self) -> str: ...
    @property
    def cost(self) -> Mapping[str, float]: ...


def bootstrap(scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean over items of each item's mean; seeded.

    Items are resampled and keep their repeats (Davison and Hinkley, 1997, section 3.8); one item alone has its
    repeats resampled.
    """
    import numpy as np  # here, so that listing runs does not pay for it

    units = np.array([float(np.mean(one)) for one in scores] if len(scores) > 1 else list(scores[0]), dtype=np.float64)
    rng = np.random.default_rng(0)
    means = np.empty(RESAMPLES, dtype=np.float64)
    block = max(1, 2_000_000 // units.size)
    for begin in range(0, RESAMPLES, block):
        end = min(RESAMPLES, begin + block)
        means[begin:end] = units[rng.integers(0, units.size, size=(end - begin, units.size))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def scores_of(evaluation: NewEvaluation) -> list[list[float]]:
    """The scores of each item that has any. Raises DataError where there is none, or one that is not finite."""
    scores = [list(one.scores) for one in evaluation.items if len(one.scores)]
    if not scores or not all(math.isfinite(score) for one in scores for score in one):
        raise DataError(f"evaluation {evaluation.metric!r} at step {evaluation.step} needs finite scores, at least one")
    return scores


def record(
    session: Session,
    *,
    run_id: RunId,
    stage_id: StageId,
    number: int,
    evaluation: NewEvaluation,
    now: datetime,
    interval: Interval = bootstrap,
    fence: Fence = fenced,
) -> None:
    """Store an evaluation by attempt `number`; the same one made again, after a resume, replaces the earlier.

    Raises StaleAttempt, and DataError for one without a score or with a score that is not finite.
    """
    scores = scores_of(evaluation)
    low, high = interval(scores)
    fence(session, stage_id, number)
    values = {
        "mean": math.fsum(math.fsum(one) / len(one) for one in scores) / len(scores),
        "count": sum(len(one) for one in scores),
        "low": low,
        "high": high,
        "items": [[one.item, list(one.scores)] for one in evaluation.items],
        "functions_hash": evaluation.functions_hash,
        "cost": storable_json(evaluation.cost),
        "created_at": now,
    }
    key = {"metric": evaluation.metric[:255], "split": evaluation.split[:64], "step": evaluation.step}
    session.execute(
        insert(session, Evaluation)
        .values(run_id=run_id, stage_id=stage_id, **key, **values)
        .on_conflict_do_update(
            index_elements=[Evaluation.stage_id, Evaluation.metric, Evaluation.split, Evaluation.step], set_=values
        )
    )


def of_run(session: Session, run_id: RunId, *, metric: str | None = None, split: str | None = None) -> list[Evaluation]:
    """The run's evaluations in the order in which they were made."""
    query = select(Evaluation).where(Evaluation.run_id == run_id)
    if metric is not None:
        query = query.where(Evaluation.metric == metric)
    if split is not None:
        query = query.where(Evaluation.split == split)
    return list(session.scalars(query.order_by(Evaluation.id)))
