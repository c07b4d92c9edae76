"""What the seeded runs left behind: curves, evaluations, checkpoints and samples, written straight into the tables."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy.orm import Session

from engine.store import tables
from tests.dashboard.seed_runs import ITERATIONS, Outline
from tests.dashboard.seed_texts import HOSTILE, LANGUAGE_PROMPT, episode


def train(
    session: Session,
    outline: Outline,
    run_id: UUID,
    stages: Mapping[str, tables.Stage],
    rng: np.random.Generator,
    submitted: datetime,
) -> None:
    train, n = stages["train"], outline.done
    low = 0.21 if outline.game else 0.18
    step_s = outline.seconds / ITERATIONS
    steps = np.arange(1, n + 1)
    rise = 1 - np.exp(-steps / outline.tau)
    curves = {
        "cost/generated_tokens": steps * (41_000.0 if outline.game else 9_400.0),
        "rollout/score": low + (outline.goal - low) * rise + rng.normal(0, 0.06, n),
        "policy/entropy": 2.4 - 1.3 * rise + rng.normal(0, 0.05, n),
        "policy/kl": 0.09 * rise + np.abs(rng.normal(0, 0.006, n)),
        "policy/loss": -0.02 * rise + rng.normal(0, 0.008, n),
        "policy/clipped": np.abs(0.12 * rise + rng.normal(0, 0.02, n)),
        "iteration_seconds": step_s + rng.normal(0, 0.05 * step_s, n),
    }
    if outline.method == "archer":
        curves |= {
            "critic/loss": 0.24 * (1 - 0.8 * rise) + np.abs(rng.normal(0, 0.012, n)),
            "critic/q": 0.5 + (outline.goal - 0.5) * rise + rng.normal(0, 0.02, n),
            "epsilon": np.maximum(0.1, 1.0 - 0.9 * steps / (ITERATIONS / 2)),
        }
    for key, values in curves.items():
        points(session, run_id, train, key, values, submitted + timedelta(seconds=21), step_s, first=1)
    for step in range(0, n + 1, 5):
        share = 1 - math.exp(-step / outline.tau)
        for metric, split, mean in _measured(outline, low, share):
            _evaluation(session, outline, run_id, train, step, metric, split, mean, rng, submitted)
    if outline.status == "succeeded":
        for metric, split, mean in _measured(outline, low, 1 - math.exp(-n / outline.tau)):
            _evaluation(session, outline, run_id, stages["evaluate"], n, metric, split, mean, rng, submitted)
    for step in (20, 40, 60):
        if step <= n:
            newest = step == n // 20 * 20
            session.add(
                tables.Checkpoint(
                    run_id=run_id,
                    stage_id=train.id,
                    attempt=train.attempt,
                    step=step,
                    labels=["latest", "best"] if newest else [],
                    uri=f"file:///home/ada/.rlx/checkpoints/{train.id}/step-{step}",
                    sha256=sha(f"{outline.handle}{step}"),
                    bytes=1_843_212 + 4096 * step,
                    created_at=submitted + timedelta(seconds=22 + step * step_s),
                )
            )
    for sequence, step in enumerate(step for step in range(0, n + 1, 10) for _ in range(4)):
        hostile = outline.handle == "best-lang-5" and sequence == 13
        text, data, score = episode(rng, game=outline.game, skill=1 - math.exp(-step / outline.tau))
        session.add(
            tables.Sample(
                run_id=run_id,
                stage_id=train.id,
                attempt=train.attempt,
                sequence=sequence,
                step=step,
                kind="evaluation",
                split="heldout" if outline.game and sequence % 4 == 3 else "train",
                item=sequence % 4 if outline.game else 0,
                score=score,
                text=f"user\n{LANGUAGE_PROMPT}\nassistant\n{HOSTILE}" if hostile else text,
                data={"steps": [[{"text": HOSTILE, "q": 0.31, "chosen": True}]]} if hostile else data,
            )
        )


def _measured(outline: Outline, low: float, share: float) -> Iterator[tuple[str, str, float]]:
    mean = low + (outline.goal - low) * share
    for split, loss in (("train", 0.0), *((("heldout", 0.09),) if outline.game else ())):
        if outline.method == "archer":
            yield "score", split, mean - loss * share
        yield "score/generator" if outline.method == "archer" else "score", split, mean - (loss + 0.07) * share


def _evaluation(
    session: Session,
    outline: Outline,
    run_id: UUID,
    stage: tables.Stage,
    step: int,
    metric: str,
    split: str,
    mean: float,
    rng: np.random.Generator,
    submitted: datetime,
) -> None:
    items, repeats = (24 if split == "train" else 12, 5) if outline.game else (1, 20)
    scores = rng.binomial(2, min(max(mean, 0.0), 1.0), (items, repeats)) / 2
    units = scores.mean(axis=1) if items > 1 else scores[0]
    draws = rng.choice(units, (400, units.size)).mean(axis=1)
    session.add(
        tables.Evaluation(
            run_id=run_id,
            stage_id=stage.id,
            step=step,
            metric=metric,
            split=split,
            mean=float(scores.mean()),
            count=scores.size,
            low=float(np.quantile(draws, 0.025)),
            high=float(np.quantile(draws, 0.975)),
            items=[[item, [float(score) for score in row]] for item, row in enumerate(scores)],
            functions_hash=sha(outline.spec_name.split("_")[0]),
            cost={
                "scored_episodes": step * (16 if outline.method == "archer" else 32),
                "generated_tokens": step * (41_000 if outline.game else 9_400),
                "seconds": step * outline.seconds / ITERATIONS,
            },
            created_at=submitted + timedelta(seconds=22 + step * outline.seconds / ITERATIONS),
        )
    )


def points(
    session: Session,
    run_id: UUID,
    stage: tables.Stage,
    key: str,
    values: np.ndarray[Any, Any],
    start: datetime,
    step_s: float,
    *,
    every: int = 1,
    first: int = 0,
) -> None:
    series = tables.Series(run_id=run_id, stage_id=stage.id, key=key)
    session.add(series)
    session.flush()
    session.execute(
        tables.Metric.__table__.insert(),  # type: ignore[attr-defined]
        [
            {
                "series_id": series.id,
                "step": first + i * every,
                "value": float(value),
                "time": start.timestamp() + i * every * step_s,
            }
            for i, value in enumerate(values)
        ],
    )


def decay(rng: np.random.Generator, start: float, end: float, n: int) -> np.ndarray[Any, Any]:
    return end + (start - end) * np.exp(-np.arange(n) / 60) + rng.normal(0, 0.04, n)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
