"""What the store says about a run, as rows: the `--json` of a command and its table are made from the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from engine.store.members import Membership
    from engine.store.tables import Attempt, Run

Row = dict[str, Any]
UNTRAINED = "final/untrained/"
"""How the metrics of the untrained model begin in a final evaluation."""


def duration_s(started: datetime | None, finished: datetime | None, now: datetime) -> float | None:
    """Seconds from the start to the end, or to now where it goes on; None before it began."""
    return None if started is None else ((finished or now) - started).total_seconds()


def run_row(run: Run, now: datetime) -> Row:
    """The run itself, without the trees that belong to `--json` of `compare`."""
    return {
        "handle": run.handle,
        "status": run.status,
        "seed": run.seed,
        "overrides": run.overrides,
        "tiny": run.tiny,
        "priority": run.priority,
        "tags": run.tags,
        "notes": run.notes,
        "user": run.user,
        "submitted_at": run.submitted_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "seconds": duration_s(run.started_at, run.finished_at, now),
        "code": run.code,
        "hardware": run.hardware,
        "functions_hash": run.functions_hash,
    }


def stage_rows(session: Session, run: Run, now: datetime) -> list[Row]:
    """The run's stages in the plan's order, each with its attempts."""
    from engine.store import members, spent, stages
    from engine.store.tables import RunId, StageId

    planned = stages.for_run(session, RunId(run.id))
    tried = {stage.id: stages.attempts(session, StageId(stage.id)) for stage in planned}
    several = [attempt.id for stage in planned if stage.nodes > 1 for attempt in tried[stage.id]]
    nodes = members.of(session, several) if several else {}
    return [
        {
            "name": stage.name,
            "kind": stage.kind,
            "status": stage.status,
            "cached": stage.cached,
            "cache_key": stage.cache_key,
            "done": stage.done,
            "total": stage.total,
            "note": stage.note,
            "attempt": stage.attempt,
            "cause": stage.cause,
            "error": stage.error,
            "resources": stage.resources,
            "seconds": duration_s(stage.started_at, stage.finished_at, now),
            "times": spent.added(map(spent.of_attempt, tried[stage.id])),
            "attempts": [_attempt_row(attempt, nodes.get(attempt.id, ())) for attempt in tried[stage.id]],
        }
        for stage in planned
    ]


def _attempt_row(attempt: Attempt, nodes: Sequence[Membership] = ()) -> Row:
    from engine.store import spent

    fields = ("number", "status", "cause", "error", "detail", "log_path", "log_tail", "started_at", "finished_at")
    held = [{"node": it.node, "worker": it.worker, "host": it.host, "state": it.state} for it in nodes]
    return {
        **{field: getattr(attempt, field) for field in fields},
        "times": spent.of_attempt(attempt),
        **({"nodes": held} if held else {}),
    }


def evaluation_rows(session: Session, run: Run) -> list[Row]:
    """The run's evaluations in the order in which they were made, without their per-item scores."""
    from engine.store import evaluations, stages
    from engine.store.tables import RunId

    names = {stage.id: stage.name for stage in stages.for_run(session, RunId(run.id))}
    return [
        {
            "stage": names.get(row.stage_id, ""),
            "step": row.step,
            "metric": row.metric,
            "split": row.split,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "count": row.count,
            "cost": row.cost,
            "functions_hash": row.functions_hash,
        }
        for row in evaluations.of_run(session, RunId(run.id))
    ]


def checkpoint_rows(session: Session, run: Run) -> list[Row]:
    """The run's checkpoints, oldest first."""
    from engine.store import checkpoints
    from engine.store.tables import RunId

    return [
        {
            "step": row.step,
            "labels": row.labels,
            "uri": row.uri,
            "bytes": row.bytes,
            "sha256": row.sha256,
            "created_at": row.created_at,
        }
        for row in checkpoints.of_run(session, RunId(run.id))
    ]


def certificate(session: Session, run: Run) -> Row | None:
    """What `rlx verify-resume` last found out about the run's method, and that in words; None where it never did."""
    from engine.store import certificates
    from engine.store.tables import RunId

    method = str(run.resolved.get("algorithm", {}).get("name", ""))
    found = certificates.for_run(session, RunId(run.id), method=method, code=run.code)
    return None if found is None else {**found.as_data(), "says": certificates.in_words(found, run.code)}


def summaries(rows: list[Row]) -> list[Row]:
    """For each metric and split: the first, the best and the last evaluation.

    What was evaluated once has a last one only; `final/untrained/score` becomes the first of `final/score`.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["metric"], row["split"]), []).append(row)
    before = {
        (metric.replace("untrained/", "", 1), split): groups.pop((metric, split))[-1]
        for metric, split in list(groups)
        if metric.startswith(UNTRAINED) and (metric.replace("untrained/", "", 1), split) in groups
    }
    leading = sorted(groups, key=lambda key: (key[0] != "score", key[0], key[1] != "train", key[1]))
    return [_summary(key, groups[key], before.get(key)) for key in leading]


def _summary(key: tuple[str, str], found: list[Row], before: Row | None) -> Row:
    first = found[0] if len(found) > 1 or found[0]["step"] == 0 else before
    best = max(found, key=lambda row: row["mean"]) if len(found) > 1 else None
    return {
        "metric": key[0],
        "split": key[1],
        "first": None if first is None else _standing(first),
        "best": None if best is None else _standing(best),
        "last": _standing(found[-1]),
    }


def _standing(row: Mapping[str, Any]) -> Row:
    return {key: row[key] for key in ("stage", "step", "mean", "low", "high", "count")}


def run_times(stages: list[Row]) -> Row:
    """Where the time of all attempts at all stages went: activity -> seconds."""
    from engine.store import spent

    return spent.added(stage["times"] for stage in stages)


LAST_EVENTS = 5


def event_rows(session: Session, run: Run) -> list[Row]:
    """What happened to the run last, oldest first."""
    from engine.store import events
    from engine.store.tables import RunId

    found = events.of_run(session, RunId(run.id), limit=LAST_EVENTS)
    return [{"time": row.time, "kind": row.kind, "message": row.message, "attempt": row.attempt} for row in found]


def failing_mirrors(session: Session, run: Run) -> dict[str, str]:
    """What is wrong with the run's mirrors in other tools, by bridge."""
    from engine.store import events
    from engine.store.tables import RunId

    return {bridge: event.message for bridge, event in events.failing_mirrors(session, RunId(run.id)).items()}


def failure(stages: list[Row], events: list[Row] | None = None) -> Row | None:
    """The stage that brought the run down, with its last attempt; None where none did."""
    failed = next((stage for stage in stages if stage["status"] == "failed"), None)
    if failed is None:
        return None
    last = failed["attempts"][-1] if failed["attempts"] else {}
    return {
        "stage": failed["name"],
        "attempt": failed["attempt"],
        "cause": failed["cause"],
        "error": failed["error"],
        "log_tail": last.get("log_tail", "") or _log_end(last.get("log_path")),
        "log_path": last.get("log_path"),
        "detail": last.get("detail", {}),
        "earlier": [attempt["cause"] for attempt in failed["attempts"][:-1] if attempt["cause"]],
        "events": events or [],
    }


def _log_end(place: str | None) -> str:
    """The end of a log that nobody could store, because the worker died; empty where it is not on this machine."""
    from pathlib import Path

    from engine.runtime.task import log_tail

    return "" if place is None else log_tail(Path(place))
