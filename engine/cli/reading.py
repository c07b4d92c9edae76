"""`rlx ls` and `rlx show`: which runs there are, and what became of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from engine.cli.arguments import AsJson, Handle
from engine.cli.output import Column, ago, answer, answer_json, path, seconds, size, status, table, talk
from engine.cli.quick import QuickCommand

Status = Literal["queued", "running", "stopping", "succeeded", "failed", "cancelled"]
"""Spelled out, so that help needs no database; a test holds it to the store's own list."""


def register(root: typer.Typer) -> None:
    """Add these commands to `rlx`."""
    root.command("ls", cls=QuickCommand)(ls)
    root.command("show", cls=QuickCommand)(show)


def ls(
    name: Annotated[str | None, typer.Argument(help="Only runs of this experiment.")] = None,
    state: Annotated[Status | None, typer.Option("--status", help="Only runs of this status.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    from dataclasses import asdict

    from engine.cli.places import existing_store
    from engine.cli.rows import duration_s
    from engine.clock import utc_now
    from engine.store.listing import listing

    db, now = existing_store(), utc_now()
    rows: list[dict[str, Any]] = []
    if db is not None:
        with db.look() as connection:
            listed = listing(connection, name=name, status=state, tag=tag, limit=limit)
            rows = [
                {**asdict(found), "seconds": duration_s(found.started_at, found.finished_at, now)} for found in listed
            ]
    if as_json:
        answer_json(rows)
        return
    if not rows:
        talk("No runs here yet: `rlx submit SPEC` starts one." if name is None and state is None else "No such runs.")
        return
    table(
        [
            Column("RUN", lambda row: row["handle"], flexible=True),
            Column("STATUS", lambda row: row["status"], coloured=True),
            Column("DONE", lambda row: f"{row['progress']:.0%}", right=True),
            Column("UNTRAINED", lambda row: row["score_first"], right=True),
            Column("BEST", lambda row: row["score_best"], right=True),
            Column("LAST", lambda row: row["score_last"], right=True),
            Column("TOOK", lambda row: seconds(row["seconds"]), right=True),
            Column("SUBMITTED", lambda row: ago(row["submitted_at"], now)),
            Column("TAGS", lambda row: row["tags"] or None, flexible=True),
        ],
        rows,
    )


def show(
    handle: Handle,
    as_json: AsJson = False,
) -> None:
    """Show one run: status, stages, scores, metrics, checkpoints.

    If it failed: why, the end of its log, and what to do about it.
    """
    from engine.cli import rows
    from engine.cli.outcome import failure_lines, score_lines
    from engine.cli.places import required_store
    from engine.clock import utc_now
    from engine.store import metrics, runs
    from engine.store.tables import RunId

    now = utc_now()
    with required_store().read() as session:
        run = runs.find(session, handle)
        head = rows.run_row(run, now)
        stages = rows.stage_rows(session, run, now)
        evaluations = rows.evaluation_rows(session, run)
        checkpoints = rows.checkpoint_rows(session, run)
        events = rows.event_rows(session, run)
        mirrors = rows.failing_mirrors(session, run)
        run_id = RunId(run.id)
        certificate = rows.certificate(session, run)
        last = {key: metrics.last(session, [run_id], key).get(run_id) for key in metrics.keys(session, run_id)}
    failure = rows.failure(stages, events)
    if as_json:
        answer_json(
            {
                **head,
                "failure": failure,
                "stages": stages,
                "times": rows.run_times(stages),
                "scores": rows.summaries(evaluations),
                "evaluations": evaluations,
                "metrics": last,
                "checkpoints": checkpoints,
                "certificate": certificate,
                "failing_mirrors": mirrors,
            }
        )
        return
    words = [
        status(head["status"]),
        f"seed {head['seed']}",
        f"took {seconds(head['seconds'])}",
        f"submitted {ago(head['submitted_at'], now)}",
    ]
    words += ["tiny twin"] if head["tiny"] else []
    answer(f"{head['handle']}  {'  '.join(words)}")
    for label in ("overrides", "tags"):
        if head[label]:
            answer(f"{label}  {' '.join(map(str, head[label]))}")
    if head["notes"]:
        answer(f"notes  {head['notes']}")
    if certificate is not None:
        answer(certificate["says"])
    for message in mirrors.values():
        answer(f"tracking  {message}")
    if failure is not None:
        answer()
        for line in failure_lines(head["handle"], failure):
            answer(line)
    answer()
    _stages(stages)
    _times(stages, rows.run_times(stages))
    if evaluations:
        answer()
        for line in score_lines(rows.summaries(evaluations)):
            answer(line)
    _metrics(last)
    _checkpoints(checkpoints)


def _stages(stages: list[dict[str, Any]]) -> None:
    table(
        [
            Column("STAGE", lambda row: row["name"]),
            Column("STATUS", lambda row: row["status"], coloured=True),
            Column(
                "DONE",
                lambda row: f"{row['done']:g}/{row['total']:g}" if row["total"] else None,
                right=True,
            ),
            Column("ATTEMPTS", lambda row: len(row["attempts"]) or None, right=True),
            Column("TOOK", lambda row: "cached" if row["cached"] else seconds(row["seconds"]), right=True),
            Column("NOTE", _note, flexible=True),
        ],
        stages,
    )


def _times(stages: list[dict[str, Any]], total: dict[str, float]) -> None:
    """Where the time of all attempts went: a line a stage, and their sum."""
    timed = [stage for stage in stages if stage["times"]]
    if not timed:
        return
    lines = [*timed, {"name": "together", "times": total}] if len(timed) > 1 else timed
    answer()
    table(
        [
            Column("TIME SPENT", lambda row: row["name"]),
            *(Column(activity.replace("_", "-").upper(), _time_of(activity), right=True) for activity in total),
        ],
        lines,
    )


def _time_of(activity: str) -> Callable[[dict[str, Any]], str | None]:
    return lambda row: seconds(row["times"][activity]) if activity in row["times"] else None


def _note(row: dict[str, Any]) -> str:
    """What is going on, or what went wrong; of a stage that was tried again, why."""
    if row["status"] in ("running", "ready"):
        again = f"(again after {row['cause']})" if row["cause"] else ""
        nodes = row["attempts"][-1].get("nodes", ()) if row["status"] == "running" else ()
        on = f"on {', '.join(node['worker'] for node in nodes)}" if nodes else ""
        return " ".join(filter(None, (row["note"], on, again)))
    return row["error"] or "" if row["status"] == "failed" else ""


def _metrics(last: dict[str, Any]) -> None:
    if not last:
        return
    answer()
    table(
        [Column("METRIC", lambda row: row["key"], flexible=True), Column("LAST", lambda row: row["value"], right=True)],
        [{"key": key, "value": getattr(value, "value", value)} for key, value in sorted(last.items())],
    )


def _checkpoints(checkpoints: list[dict[str, Any]]) -> None:
    if not checkpoints:
        return
    answer()
    table(
        [
            Column("CHECKPOINT", lambda row: f"step-{row['step']}"),
            Column("LABELS", lambda row: row["labels"] or None),
            Column("SIZE", lambda row: size(row["bytes"]), right=True),
            Column("WHERE", lambda row: path(row["uri"])),
        ],
        checkpoints,
    )
