"""`rlx logs` and `rlx watch`: what a run's stages print, and how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import Handle
from engine.cli.output import answer, answer_json, printable, style, talk
from engine.cli.quick import QuickCommand

if TYPE_CHECKING:
    from engine.store.session import Database
    from engine.store.tables import RunId


def register(root: typer.Typer) -> None:
    """Add these commands to `rlx`."""
    root.command("logs", cls=QuickCommand)(logs)
    root.command("watch", cls=QuickCommand)(watch)


def logs(
    handle: Handle,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run is over.")] = False,
    stage: Annotated[str | None, typer.Option(help="Only of this stage.")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Only of this attempt; by default each stage's last.")
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="The log of this service, in place of those of the stages beside which it ran.")
    ] = None,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="Only so many lines from the end of each log.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object an attempt, with its whole log.")] = False,
) -> None:
    """Print the logs of a run's stages.

    Where a log's file is on another host, its stored tail is printed.
    """
    import time

    from engine.cli.places import required_store
    from engine.errors import NotFound
    from engine.store import runs
    from engine.store.tables import RunId

    db = required_store()
    with db.read() as session:
        run = runs.find(session, handle)
        run_id, name = RunId(run.id), run.handle
    found = attempts(db, run_id, stage, attempt, service)
    if not found and not follow:
        raise NotFound(_nothing(name, stage, attempt, service))
    if as_json:
        answer_json([{**row, "text": _text(row, lines)} for row in found])
        return
    if not follow:
        for row in found:
            if len(found) > 1:
                answer(style(_heading(row), "bright_black"))
            answer(printable(_text(row, lines)).rstrip("\n"))
        if others := sorted({other for row in found for other in row["services"]} - {service}):
            talk(f"services that ran beside: {', '.join(others)} (--service NAME shows their logs)")
        return
    for text in followed(
        lambda: attempts(db, run_id, stage, attempt, service), lambda: _over(db, run_id), lambda: time.sleep(0.3), lines
    ):
        answer(text)


def attempts(
    db: Database, run_id: RunId, stage: str | None, attempt: int | None, service: str | None = None
) -> list[dict[str, Any]]:
    """The attempts whose logs were asked for, in the plan's order: the last of each stage, or the one numbered so.

    With a `service`, those beside which it ran; their log is its.
    """
    from engine.runtime.task import service_logs
    from engine.store import stages
    from engine.store.tables import StageId

    with db.read() as session:
        chosen = []
        for found in stages.for_run(session, run_id):
            if stage in (None, found.name):
                rows = [row for row in stages.attempts(session, StageId(found.id)) if attempt in (None, row.number)]
                chosen += [(found.name, row) for row in rows[-1:]]
    fields = ("number", "status", "error", "log_path", "log_tail")
    rows_of = [{"stage": name, **{field: getattr(row, field) for field in fields}} for name, row in chosen]
    found_rows = [{**row, "services": list(service_logs(row["log_path"]))} for row in rows_of]
    if service is None:
        return found_rows
    return [
        {
            **row,
            "service": service,
            "log_path": str(service_logs(row["log_path"])[service]),
            "log_tail": "",
            "error": None,
        }
        for row in found_rows
        if service in row["services"]
    ]


def _heading(row: dict[str, Any]) -> str:
    of_service = f", service {row['service']}" if row.get("service") else ""
    return f"== {row['stage']}, attempt {row['number']}{of_service} =="


def _nothing(handle: str, stage: str | None, attempt: int | None, service: str | None) -> str:
    what = f"stage {stage!r}" if stage is not None else "it"
    which = f" attempt {attempt} at" if attempt is not None else ""
    of = f" of a service {service!r} beside" if service is not None else " of"
    return f"{handle} has no log{of}{which} {what} yet; `rlx show {handle}` lists its stages and attempts"


def _text(row: dict[str, Any], lines: int | None) -> str:
    text = row["log_tail"] or ""
    if row["log_path"]:
        try:
            text = Path(row["log_path"]).read_text(encoding="utf-8", errors="replace")
        except OSError:
            if not text:
                text = f"(the log {row['log_path']} is not on this host)"
    if not text:
        text = f"(nothing was printed{': ' + row['error'] if row['error'] else ''})"
    return text if lines is None else "\n".join(text.splitlines()[len(text.splitlines()) - lines :] if lines else [])


def _over(db: Database, run_id: RunId) -> bool:
    from engine.cli.following import snapshot

    return snapshot(db, run_id).finished


def followed(
    read: Callable[[], list[dict[str, Any]]],
    over: Callable[[], bool],
    wait: Callable[[], None],
    lines: int | None,
) -> Iterator[str]:
    """Whole lines as they are written, of every attempt as it appears, until the run is over and all is read."""
    places: dict[tuple[str, int], int] = {}
    while True:
        last_look = over()  # asked before reading: what was written until then is still to be printed
        for row in read():
            key, file = (row["stage"], row["number"]), row["log_path"]
            if not file or not Path(file).exists():
                continue
            first = key not in places
            if first:
                yield style(_heading(row), "bright_black")
            with Path(file).open("rb") as log:
                log.seek(places.get(key, 0))
                data = log.read()
            whole = data if last_look else data[: data.rfind(b"\n") + 1]
            places[key] = places.get(key, 0) + len(whole)
            written = whole.decode("utf-8", errors="replace").splitlines()
            for line in written[max(0, len(written) - lines) :] if first and lines is not None else written:
                yield printable(line)
        if last_look:
            return
        wait()


def watch(handle: Handle = "@last") -> None:
    """Follow a run with live progress until it is over.

    Exits 1 if it failed. Ctrl-C only stops the looking.
    """
    from engine.cli.following import exit_code, foreground
    from engine.cli.outcome import tell
    from engine.cli.places import required_store
    from engine.store import runs
    from engine.store.tables import RunId

    db = required_store()
    with db.read() as session:
        run = runs.find(session, handle)
        run_id, name, status = RunId(run.id), run.handle, run.status
    if status == "queued":
        talk(f"{name} waits for a worker")
    followed_run = foreground(db, run_id, name, None)
    tell(db, run_id, followed_run)
    raise typer.Exit(exit_code(followed_run))
