"""`rlx queue`: what waits for a worker, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import AsJson
from engine.cli.output import Column, answer_json, seconds, table, talk
from engine.cli.quick import QuickCommand

if TYPE_CHECKING:
    from datetime import datetime

    from engine.store.waiting import InQueue


def register(root: typer.Typer) -> None:
    """Add `queue` to `rlx`."""
    root.command("queue", cls=QuickCommand)(queue)


def queue(
    name: Annotated[str | None, typer.Argument(help="One queue; by default all of them.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many stages of a queue.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the stages that wait for a worker, and why.

    They stand in the order in which they come up: by priority, then users alike, then by how long they have waited.
    """
    from engine.cli.places import existing_store
    from engine.clock import utc_now
    from engine.store import waiting

    db, now = existing_store(), utc_now()
    counts: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    if db is not None:
        with db.read() as session:
            counts = {found: count for found, count in waiting.counts(session).items() if name in (None, found)}
            rows = [_row(found, now) for found in waiting.listing(session, list(counts), now=now, limit=limit)]
    if as_json:
        answer_json(rows)
        return
    if not rows:
        talk(
            f"Nothing waits in queue {name}." if name else "Nothing waits: every stage runs, is over, or needs another."
        )
        return
    columns = [
        Column("#", lambda row: row["position"], right=True),
        Column("STAGE", lambda row: f"{row['run']}/{row['stage']}", flexible=True),
        Column("PRIO", lambda row: row["priority"], right=True),
        Column("USER", lambda row: row["user"] or None, flexible=True),
        Column("GPUS", lambda row: row["gpus"], right=True),
        Column("FOR", lambda row: seconds(row["seconds"]).split()[0], right=True),
        Column("WHY", lambda row: row["why"], flexible=True),
    ]
    if len(counts) > 1:
        columns.insert(1, Column("QUEUE", lambda row: row["queue"], flexible=True))
    table(columns, rows)
    total = sum(counts.values())
    if total > len(rows):
        talk(f"{len(rows)} of {total} shown: --limit shows more")


def _row(found: InQueue, now: datetime) -> dict[str, Any]:
    stage = found.stage
    return {
        "position": found.position,
        "queue": stage.queue,
        "run": found.handle,
        "stage": stage.name,
        "priority": stage.priority,
        "user": stage.user,
        "gpus": stage.needs.gpus,
        "slots": stage.needs.slots,
        "ready_at": stage.ready_at,
        "seconds": (now - stage.ready_at).total_seconds(),
        "not_before": found.not_before,
        "reason": found.reason,
        "why": found.why,
    }
