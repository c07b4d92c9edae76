"""A store full of runs, written straight into the tables: what the dashboard's tests and the docs' screenshots look at.

Twelve runs of four specs: finished ones of three methods, one that failed, one that was cancelled, one that runs,
one that waits. Everything follows from `now`, so the same call writes the same rows.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid5

import numpy as np
from sqlalchemy.orm import Session

from engine.store import tables
from tests.dashboard.seed_runs import ITERATIONS, OUTLINES, Outline
from tests.dashboard.seed_texts import SOURCES, resolved
from tests.dashboard.seed_training import decay, points, sha, train

NAMESPACE = UUID("5f1f7a3e-5b0c-4c62-9f36-6b3d1f8f0a11")
STAGES = (("model", "lm.prepare"), ("train", "{method}.train"), ("evaluate", "{method}.evaluate"))
EDGES = (("train", "model", "model"), ("evaluate", "model", "model"), ("evaluate", "train", "train"))
FAILURE = "score_fn, line 3: TypeError: unsupported operand type(s) for +: 'NoneType' and 'int' (input: 'assistant\\n')"


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
            content_hash=sha(source),
            source=source,
            resolved=resolved(name, revision),
            created_at=now - timedelta(days=4, minutes=-revision),
        )
        session.add(row)
        session.flush()
        ids[name, revision] = row.id
    return ids


def _run(session: Session, outline: Outline, spec_id: int, worker_id: UUID, now: datetime) -> None:
    rng = np.random.default_rng(int(sha(outline.handle)[:8], 16))
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
            functions_hash=sha(outline.spec_name.split("_")[0]),
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
            points(session, run_id, stage, "train/loss", decay(rng, 5.9, 0.41, 500), submitted, 0.03)
            points(session, run_id, stage, "eval/loss", decay(rng, 5.9, 0.52, 500)[::25], submitted, 0.03, every=25)
    train(session, outline, run_id, stages, rng, submitted)
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
                spent={"total": {"training": outline.seconds / 2}, "kept": {"training": outline.seconds / 4}},
                lease_expires_at=now + timedelta(seconds=15) if status == "running" else None,
                started_at=stage.started_at or now,
                finished_at=stage.finished_at,
            )
        )


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
