"""A store full of runs, written straight into the tables: what the dashboard's tests and the docs' screenshots look at.

Twelve runs of four specs: finished ones of three methods, one that failed, one that was cancelled, one that runs,
one that waits. Everything follows from `now`, so the same call writes the same rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from sqlalchemy.orm import Session

from engine.store import tables
from tests.dashboard.seed_texts import HOSTILE, LANGUAGE_PROMPT, SOURCES, episode, resolved

NAMESPACE = UUID("5f1f7a3e-5b0c-4c62-9f36-6b3d1f8f0a11")
ITERATIONS = 60
STAGES = (("model", "lm.prepare"), ("train", "{method}.train"), ("evaluate", "{method}.evaluate"))
EDGES = (("train", "model", "model"), ("evaluate", "model", "model"), ("evaluate", "train", "train"))
FAILURE = "score_fn, line 3: TypeError: unsupported operand type(s) for +: 'NoneType' and 'int' (input: 'assistant\\n')"


@dataclass(frozen=True)
class Outline:
    """One run in a line: what it was, when, and how well it went."""

    handle: str
    method: str
    revision: int
    hours_ago: float
    status: str = "succeeded"
    seed: int = 0
    goal: float = 0.95
    tau: float = 14.0
    seconds: float = 160.0
    done: int = ITERATIONS
    overrides: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: str = ""
    user: str = "ada"
    hardware: Mapping[str, Any] = field(default_factory=lambda: {"host": "node-3", "cpus": 2, "gpus": []})

    @property
    def name(self) -> str:
        return self.handle.rpartition("-")[0]

    @property
    def spec_name(self) -> str:
        return self.name.replace("-", "_")

    @property
    def game(self) -> bool:
        return self.name.startswith("twenty")


OUTLINES = (
    Outline("best-lang-1", "archer", 1, 72.0, goal=0.93, tags=("baseline",), notes="The defaults, for later."),
    Outline("best-lang-2", "archer", 1, 71.5, seed=1, goal=0.95, overrides=("seed=1",)),
    Outline("best-lang-3", "archer", 2, 48.0, goal=0.97, tau=10.0, seconds=188.0, tags=("candidates",)),
    Outline("best-lang-4", "archer", 2, 47.0, status="failed", done=23, goal=0.9, tags=("candidates",), user="grace"),
    Outline("best-lang-5", "archer", 3, 26.0, goal=0.98, tau=8.0, tags=("candidates", "paper")),
    Outline("best-lang-6", "archer", 3, 25.0, status="cancelled", done=17, seed=2, overrides=("seed=2",), user="grace"),
    Outline("best-lang-reinforce-1", "reinforce", 1, 24.0, goal=0.71, tau=34.0, seconds=131.0, tags=("baseline",)),
    Outline("best-lang-ppo-1", "ppo", 1, 23.5, goal=0.84, tau=26.0, seconds=149.0, tags=("baseline",)),
    Outline("twenty-questions-1", "archer", 1, 20.0, goal=0.68, tau=22.0, seconds=1460.0, tags=("games",)),
    Outline(
        "twenty-questions-2",
        "archer",
        2,
        6.0,
        goal=0.86,
        tau=18.0,
        seconds=1615.0,
        overrides=("algorithm.ranker.candidates=16",),
        tags=("games", "candidates"),
        notes="Twice the candidates: does the ranker still tell them apart?",
    ),
    Outline(
        "twenty-questions-3",
        "archer",
        2,
        0.32,
        status="running",
        done=41,
        goal=0.76,
        tau=20.0,
        seconds=1500.0,
        tags=("games",),
    ),
    Outline(
        "twenty-questions-4", "archer", 2, 0.05, status="queued", done=0, seed=1, overrides=("seed=1",), tags=("games",)
    ),
)


def populate(session: Session, *, now: datetime) -> None:
    """Write all of it; the caller commits."""
    worker = tables.Worker(
        id=uuid5(NAMESPACE, "worker"),
        name="node-3/1",
        host="node-3",
        pid=4711,
        pid_started=None,
        queues=["default"],
        slots=2,
        gpus=[],
        status="alive",
        run_id=None,
        started_at=now - timedelta(days=4),
        heartbeat_at=now - timedelta(seconds=1),
    )
    session.add(worker)
    session.flush()
    specs = _specs(session, now)
    for outline in OUTLINES:
        _run(session, outline, specs[outline.spec_name, outline.revision], worker.id, now)


def _specs(session: Session, now: datetime) -> dict[tuple[str, int], int]:
    ids = {}
    for (name, revision), source in SOURCES.items():
        row = tables.Spec(
            name=name,
            revision=revision,
            content_hash=_sha(source),
            source=source,
            resolved=resolved(name, revision),
            created_at=now - timedelta(days=4, minutes=-revision),
        )
        session.add(row)
        session.flush()
        ids[name, revision] = row.id
    return ids


def _run(session: Session, outline: Outline, spec_id: int, worker_id: UUID, now: datetime) -> None:
    rng = np.random.default_rng(int(_sha(outline.handle)[:8], 16))
    run_id = uuid5(NAMESPACE, outline.handle)
    submitted = now - timedelta(hours=outline.hours_ago)
    ended = outline.status in ("succeeded", "failed", "cancelled")
    queued = outline.status == "queued"
    spent = 22.0 + outline.seconds * outline.done / ITERATIONS
    session.add(
        tables.Run(
            id=run_id,
            handle=outline.handle,
            name=outline.name,
            number=int(outline.handle.rpartition("-")[2]),
            spec_id=spec_id,
            status=outline.status,
            stop_requested=outline.status == "cancelled",
            seed=outline.seed,
            overrides=list(outline.overrides),
            resolved=resolved(outline.spec_name, outline.revision, outline.overrides),
            priority=0,
            tags=list(outline.tags),
            notes=outline.notes,
            user=outline.user,
            code={"version": "0.1.0", "commit": "3f9c2ab41d", "dirty": outline.revision > 2},
            packages={"torch": "2.13.0", "transformers": "5.19.1", "peft": "0.21.0"},
            hardware=dict(outline.hardware),
            tiny=False,
            functions_hash=_sha(outline.spec_name.split("_")[0]),
            submitted_at=submitted,
            started_at=None if queued else submitted + timedelta(seconds=1),
            finished_at=submitted + timedelta(seconds=1 + spent + 9) if ended else None,
        )
    )
    session.flush()
    stages = _stages(session, outline, run_id, submitted)
    if queued:
        return
    for name, stage in stages.items():
        if stage.started_at is not None:
            _attempt(session, outline, stage, worker_id, now)
        if name == "model":
            _points(session, run_id, stage, "train/loss", _decay(rng, 5.9, 0.41, 500), submitted, 0.03)
            _points(session, run_id, stage, "eval/loss", _decay(rng, 5.9, 0.52, 500)[::25], submitted, 0.03, every=25)
    _training(session, outline, run_id, stages, rng, submitted)
    _events(session, outline, run_id, submitted)


def _stages(session: Session, outline: Outline, run_id: UUID, submitted: datetime) -> dict[str, tables.Stage]:
    statuses = {
        "succeeded": ("succeeded", "succeeded", "succeeded"),
        "failed": ("succeeded", "failed", "waiting"),
        "cancelled": ("succeeded", "cancelled", "cancelled"),
        "running": ("succeeded", "running", "waiting"),
        "queued": ("ready", "waiting", "waiting"),
    }[outline.status]
    rows = {}
    cached = outline.handle in ("best-lang-3", "best-lang-5", "twenty-questions-3")
    start = submitted + timedelta(seconds=1)
    train_s = outline.seconds * outline.done / ITERATIONS
    for position, ((name, kind), status) in enumerate(zip(STAGES, statuses, strict=True)):
        seconds = {"model": 0.1 if cached else 20.0, "train": train_s, "evaluate": 9.0}[name]
        begun = status in ("succeeded", "failed", "running") or (status == "cancelled" and name == "train")
        failed = status == "failed"
        row = tables.Stage(
            id=uuid5(NAMESPACE, f"{outline.handle}/{name}"),
            run_id=run_id,
            position=position,
            name=name,
            kind=kind.format(method=outline.method),
            version=1,
            entry=f"engine.methods.{outline.method}.stages:{name}",
            config={},
            extra={},
            resources={"slots": 1, "gpus": 0, "queue": "default"},
            status=status,
            attempt=2 if failed else int(begun),
            cached=cached and name == "model",
            done=float(outline.done if name == "train" else 500 if name == "model" and begun else 0),
            total=float(ITERATIONS if name == "train" else 500 if name == "model" else 0),
            note=f"iteration {outline.done} of {ITERATIONS}" if status == "running" else "",
            cause="reward_error" if failed else None,
            error=FAILURE if failed else None,
            ready_at=start if status != "waiting" else None,
            started_at=start if begun else None,
            finished_at=start + timedelta(seconds=seconds) if begun and status != "running" else None,
        )
        session.add(row)
        rows[name] = row
        start += timedelta(seconds=seconds if begun else 0)
    session.flush()
    for reader, name, producer in EDGES:
        session.add(tables.StageInput(stage_id=rows[reader].id, name=name, producer_id=rows[producer].id))
    return rows


def _attempt(session: Session, outline: Outline, stage: tables.Stage, worker_id: UUID, now: datetime) -> None:
    lines = [
        f"12:00:{i % 60:02d} iteration {i:>2}  score {0.2 + 0.012 * i:.3f}  kl {0.004 * i:.4f}"
        for i in range(outline.done)
    ]
    if stage.name != "train":
        lines = [f"{stage.name}: {outline.spec_name}@{outline.revision}", "done"]
    for number in range(1, stage.attempt + 1):
        last = number == stage.attempt
        status = stage.status if last else "lost"
        failed = status == "failed"
        tail = (
            [*lines, "Traceback (most recent call last):", f"engine.errors.FunctionError: {FAILURE}"]
            if failed
            else lines
        )
        detail = {"type": "FunctionError", "advice": "Mend score_fn and submit again."} if failed else {}
        session.add(
            tables.Attempt(
                id=uuid5(NAMESPACE, f"{stage.id}/{number}"),
                stage_id=stage.id,
                number=number,
                worker_id=worker_id,
                status=status,
                pid=5000 + number,
                pid_started=None,
                cause=stage.cause if last else "lost",
                error=stage.error if last else "the worker's heartbeat stopped",
                detail=detail,
                log_path=None,
                log_tail="\n".join(tail),
                lease_expires_at=now + timedelta(seconds=15) if status == "running" else None,
                started_at=stage.started_at or now,
                finished_at=stage.finished_at,
            )
        )


def _training(
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
        _points(session, run_id, train, key, values, submitted + timedelta(seconds=21), step_s, first=1)
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
                    sha256=_sha(f"{outline.handle}{step}"),
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
            functions_hash=_sha(outline.spec_name.split("_")[0]),
            cost={
                "scored_episodes": step * (16 if outline.method == "archer" else 32),
                "generated_tokens": step * (41_000 if outline.game else 9_400),
                "seconds": step * outline.seconds / ITERATIONS,
            },
            created_at=submitted + timedelta(seconds=22 + step * outline.seconds / ITERATIONS),
        )
    )


def _points(
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


def _decay(rng: np.random.Generator, start: float, end: float, n: int) -> np.ndarray[Any, Any]:
    return end + (start - end) * np.exp(-np.arange(n) / 60) + rng.normal(0, 0.04, n)


def _events(session: Session, outline: Outline, run_id: UUID, submitted: datetime) -> None:
    told = [
        ("submitted", f"{outline.user} submitted {outline.spec_name}@{outline.revision}"),
        ("started", "stage model started"),
    ]
    if outline.status == "failed":
        told += [
            ("lost", "attempt 1 of train was lost: no heartbeat for 15 s"),
            ("failed", "stage train failed: reward_error"),
        ]
    elif outline.status == "cancelled":
        told += [("stopping", "grace asked the run to stop"), ("cancelled", "stage train stopped at step 17")]
    elif outline.status == "succeeded":
        told += [("succeeded", "the run succeeded")]
    for i, (kind, message) in enumerate(told):
        session.add(
            tables.Event(time=submitted + timedelta(seconds=20 * i), run_id=run_id, kind=kind, message=message, data={})
        )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
