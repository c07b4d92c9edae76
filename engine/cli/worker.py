"""`rlx worker`: lend this machine to the queue, list who does, and tell one to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import AsJson
from engine.cli.output import Column, ago, answer, answer_json, table, talk
from engine.cli.quick import QuickCommand, QuickGroup

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from engine.store.session import Database
    from engine.store.tables import Worker
    from engine.store.workers import Held

LOOK_EVERY_S = 0.5

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
    served = [queue.strip() for queue in queues.split(",") if queue.strip()]
    if not served:
        raise typer.BadParameter("name at least one queue, such as default", param_hint="--queues")
    from engine.log import configure
    from workers.main import run_worker

    configure()

    from engine.cli.places import the_settings

    code = run_worker(
        the_settings(),
        slots=slots,
        gpus=None if gpus is None else parse_gpus(gpus),
        queues=served,
        name=name,
    )
    raise typer.Exit(code)


@app.command("ls", cls=QuickCommand)
def ls(as_json: AsJson = False) -> None:
    """List the workers that are alive: what they lend, what is free, and what runs on them."""
    from engine.cli.places import existing_store
    from engine.clock import utc_now
    from engine.store import workers

    db, now = existing_store(), utc_now()
    rows: list[dict[str, Any]] = []
    if db is not None:
        with db.read() as session:
            alive = workers.alive(session, now)
            held = workers.held(session, [found.id for found in alive])
            rows = [_row(found, held.get(found.id, []), now) for found in alive]
    if as_json:
        answer_json(rows)
        return
    if not rows:
        talk("No worker is alive. `rlx worker` starts one; on the embedded default `rlx submit` does so itself.")
        return
    table(
        [
            Column("NAME", lambda row: row["name"], flexible=True),
            Column("STATUS", lambda row: row["status"], coloured=True),
            Column("SLOTS", lambda row: _of(row["slots_used"], row["slots"]), right=True),
            Column(
                "GPUS", lambda row: f"{len(row['gpus_used'])}/{len(row['gpus'])}" if row["gpus"] else None, right=True
            ),
            Column("SEEN", lambda row: ago(row["heartbeat_at"], now)),
            Column("QUEUES", lambda row: row["queues"], flexible=True),
            Column("RUNS", lambda row: [_what(it) for it in row["running"]] or None, flexible=True),
            Column("HOST", lambda row: row["host"], flexible=True),
            Column("PID", lambda row: row["pid"], right=True),
        ],
        rows,
    )


def _what(held: dict[str, Any]) -> str:
    """`dates-sft-1/train`, with the node where it is one of several."""
    node = f" (node {held['node']} of {held['nodes']})" if held["nodes"] > 1 else ""
    return f"{held['run']}/{held['stage']}{node}"


def _of(used: int, total: int) -> str | None:
    """`3/8`; None where there are none."""
    return f"{used}/{total}" if total else None


def _row(found: Worker, held: Sequence[Held], now: datetime) -> dict[str, Any]:
    fields = ("id", "name", "host", "pid", "slots", "gpus", "queues", "status", "run_id", "started_at", "heartbeat_at")
    lent = {device for attempt in held for device in attempt.devices}
    slots = sum(device.startswith("slot:") for device in lent)
    return {field: getattr(found, field) for field in fields} | {
        "status": "draining" if found.drain else found.status,
        "heartbeat_age_s": (now - found.heartbeat_at).total_seconds(),
        "slots_used": slots,
        "slots_free": found.slots - slots,
        "gpus_used": [gpu for gpu in found.gpus if f"gpu:{gpu}" in lent],
        "gpus_free": [gpu for gpu in found.gpus if f"gpu:{gpu}" not in lent],
        "running": [
            {
                "run": attempt.handle,
                "stage": attempt.stage,
                "attempt": attempt.number,
                "user": attempt.user,
                "devices": attempt.devices,
                "node": attempt.node,
                "nodes": attempt.nodes,
                "started_at": attempt.started_at,
            }
            for attempt in held
        ],
    }


@app.command("drain", cls=QuickCommand)
def drain(
    name: Annotated[str | None, typer.Argument(help="The worker, or a unique beginning of its name.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every worker that is alive.")] = False,
    after_current: Annotated[
        bool, typer.Option("--after-current", help="Let what runs come to its end first, as Slurm does.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return once it has left.")] = False,
) -> None:
    """Have a worker take no new stage, hand back what runs at a checkpoint, and leave."""
    from engine.cli.places import required_store
    from engine.clock import utc_now
    from engine.store import workers
    from engine.store.workers import Drain

    if (name is None) is not every:
        raise typer.BadParameter("name one worker (`rlx worker ls` lists them), or give --all", param_hint="NAME")
    db = required_store()
    with db.write() as session:
        told = workers.drain(session, name, Drain.AFTER_CURRENT if after_current else Drain.NOW, now=utc_now())
        names = {found.id: found.name for found in told}
    for one in names.values():
        answer(one)
    if not names:
        talk("No worker is alive.")
    elif after_current:
        talk("takes no new stage, and leaves when what runs is over")
    else:
        talk("takes no new stage; what runs stops at a checkpoint and goes back to the queue")
    if wait:
        _await_leave(db, names)


def _await_leave(db: Database, names: dict[UUID, str]) -> None:
    """Until none of them is alive, however long their stages take: the user may interrupt."""
    import time

    from engine.clock import utc_now
    from engine.store import workers

    left = set(names)
    while left:
        with db.read() as session:
            alive = {found.id for found in workers.alive(session, utc_now())}
        for worker_id in left - alive:
            talk(f"{names[worker_id]} has left")
        left &= alive
        if left:
            time.sleep(LOOK_EVERY_S)


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
