"""`rlx worker`: lend this machine to the queue, and list who does."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.cli.arguments import AsJson
from engine.cli.output import Column, ago, answer_json, table, talk
from engine.cli.quick import QuickCommand, QuickGroup

app = typer.Typer(
    help="Lend this machine to the queue, or list who does.",
    invoke_without_command=True,
    cls=QuickGroup,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add `worker` to `rlx`."""
    root.add_typer(app, name="worker")


@app.callback()
def worker(
    context: typer.Context,
    slots: Annotated[int | None, typer.Option(min=1, help="Stages at once; by default one per GPU, or one.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs to lend, such as 0-3,6; by default all that are here; `none`.")
    ] = None,
    queues: Annotated[str, typer.Option(help="Queues to serve, separated by commas.")] = "default",
    name: Annotated[str | None, typer.Option(help="Name in `rlx worker ls`; by default the host's.")] = None,
) -> None:
    """Run a worker until it is interrupted; its stages then stop at a checkpoint and go back to the queue."""
    if context.invoked_subcommand is not None:
        return
    from engine.log import configure
    from workers.main import run_worker

    configure()

    from engine.cli.places import the_settings

    code = run_worker(
        the_settings(),
        slots=slots,
        gpus=None if gpus is None else parse_gpus(gpus),
        queues=[queue.strip() for queue in queues.split(",") if queue.strip()],
        name=name,
    )
    raise typer.Exit(code)


@app.command("ls", cls=QuickCommand)
def ls(as_json: AsJson = False) -> None:
    """List the workers that are alive, and what they lend."""
    from engine.cli.places import existing_store
    from engine.clock import utc_now
    from engine.store import workers

    db, now = existing_store(), utc_now()
    rows: list[dict[str, Any]] = []
    if db is not None:
        with db.read() as session:
            rows = [_row(found) for found in workers.alive(session, now)]
    if as_json:
        answer_json(rows)
        return
    if not rows:
        talk("No worker is alive. `rlx worker` starts one; on the embedded default `rlx submit` does so itself.")
        return
    table(
        [
            Column("NAME", lambda row: row["name"], flexible=True),
            Column("HOST", lambda row: row["host"], flexible=True),
            Column("PID", lambda row: row["pid"], right=True),
            Column("SLOTS", lambda row: row["slots"], right=True),
            Column("GPUS", lambda row: row["gpus"] or None),
            Column("QUEUES", lambda row: row["queues"]),
            Column("HEARTBEAT", lambda row: ago(row["heartbeat_at"], now)),
        ],
        rows,
    )


def _row(found: Any) -> dict[str, Any]:
    fields = ("id", "name", "host", "pid", "slots", "gpus", "queues", "status", "run_id", "started_at", "heartbeat_at")
    return {field: getattr(found, field) for field in fields}


def parse_gpus(text: str) -> list[int]:
    """`0-3,6` as [0, 1, 2, 3, 6]; `none` as []. Raises BadParameter for anything else."""
    if text.strip().lower() == "none":
        return []
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise typer.BadParameter(
                f"{part.strip()!r} is neither a GPU's number nor a range such as 0-3", param_hint="--gpus"
            )
        chosen += range(int(first), int(last or first) + 1)
    return sorted(set(chosen))
