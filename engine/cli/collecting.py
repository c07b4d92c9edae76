"""`rlx gc` and `rlx rm`: showing what may go, asking, and having it removed by `runtime.sweep` and `store.removal`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import AsJson, Yes, confirm
from engine.cli.output import Column, ago, answer, answer_json, one_line, size, table, talk
from engine.cli.quick import QuickCommand

if TYPE_CHECKING:
    from engine.runtime.sweep import Found, Item

_LEAST_GRACE_S = 60.0

DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would go, and remove nothing.")]


def register(root: typer.Typer) -> None:
    """Add these commands to `rlx`."""
    root.command("rm", cls=QuickCommand)(rm)
    root.command("gc", cls=QuickCommand)(gc)


def gc(
    keep_checkpoints: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of every stage keep the newest N checkpoints, and the best.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Let checkpoints go that are older, such as 30d.")
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Let the oldest checkpoints go until all fit, such as 50GiB."),
    ] = None,
    grace: Annotated[str, typer.Option(metavar="DURATION", help="Keep what nobody refers to for so long.")] = "1d",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove what nobody needs: artifacts, files, checkpoints.

    Unreferenced artifacts, leftover files, and checkpoints by the limits given.

    Safe while workers run. A checkpoint goes where any limit lets it; never one that a live run, `rlx resume`,
    another run, or a label in a tagged run needs.
    """
    from engine.cli.places import existing_store, the_settings
    from engine.clock import utc_now
    from engine.errors import Refused
    from engine.runtime import sweep
    from engine.store.retention import Limits

    limits = Limits(
        keep=keep_checkpoints,
        older_than_s=None if older_than is None else _duration(older_than, "--older-than"),
        max_bytes=None if max_bytes is None else _size(max_bytes),
    )
    grace_s = _duration(grace, "--grace")
    if grace_s < _LEAST_GRACE_S:
        raise typer.BadParameter("at least 1m, for the clocks of two hosts differ", param_hint="--grace")
    db, now = existing_store(), utc_now()
    found = sweep.Found(()) if db is None else sweep.look(db, the_settings(), limits, now=now, grace_s=grace_s)
    if not as_json:
        _show(found, now)
    if dry_run or not found.items:
        if as_json:
            answer_json(_report(found, []))
        return
    confirm(f"Remove {_things(found.items)}?", yes=yes)
    gone, problems = _remove(found.items)
    if as_json:
        answer_json(_report(found, gone))
    kept = len(found.items) - len(gone) - len(problems)
    talk(f"Removed {_things(gone)}." + (f" {kept} wanted again meanwhile." if kept else ""))
    if problems:
        raise Refused(f"{len(problems)} could not be removed:\n" + "\n".join(f"  {problem}" for problem in problems))


def rm(
    handles: Annotated[list[str], typer.Argument(help="Handles, unique prefixes, or @last.")],
    yes: Yes = False,
) -> None:
    """Remove runs with all that they own.

    Metrics, samples, evaluations, checkpoints and logs go.

    Exits 5 for a run that is alive, or whose checkpoint another run began from. Artifacts go with a later `rlx gc`.
    """
    from engine.cli.places import required_store, the_settings
    from engine.runtime import leftovers
    from engine.store import removal

    db = required_store()
    with db.read() as session:
        owned = {one.run_id: one for one in (removal.belongings(session, handle) for handle in handles)}
    confirm(f"Remove {', '.join(one.handle for one in owned.values())} for good?", yes=yes)
    for one in owned.values():
        removal.remove(db, one)
        leftovers.remove_files(one, the_settings())
        answer(one.handle)


def _remove(items: Iterable[Item]) -> tuple[list[Item], list[str]]:
    """Remove what can be: what went, and why something could not. A database that is away ends it all."""
    from engine.errors import DiskError, Refused

    gone, problems = [], []
    for item in items:
        try:
            if item.remove():
                gone.append(item)
        except (DiskError, Refused) as error:
            problems.append(f"{item.kind} {item.name}: {error}")
    return gone, problems


def _show(found: Found, now: Any) -> None:
    if found.items:
        table(
            [
                Column("KIND", lambda item: item.kind),
                Column("NAME", lambda item: item.name, flexible=True),
                Column("SIZE", lambda item: size(item.bytes), right=True),
                Column("AGE", lambda item: ago(item.since, now)),
                Column("WHY", lambda item: item.why, flexible=True),
            ],
            found.items,
        )
    for note in found.notes:
        talk(f"note: {one_line(note)}")
    talk(f"May go: {_things(found.items)}." if found.items else "There is nothing to remove.")


def _things(items: Iterable[Item]) -> str:
    chosen = list(items)
    return f"{len(chosen)} thing{'' if len(chosen) == 1 else 's'}, {size(sum(item.bytes for item in chosen))}"


def _report(found: Found, gone: list[Item]) -> dict[str, Any]:
    removed = {id(item) for item in gone}
    rows = [
        {
            **{field: getattr(item, field) for field in ("kind", "name", "why", "bytes", "since")},
            "removed": id(item) in removed,
        }
        for item in found.items
    ]
    return {
        "items": rows,
        "bytes": sum(item.bytes for item in found.items),
        "removed_bytes": sum(item.bytes for item in gone),
        "notes": list(found.notes),
    }


def _duration(text: str, option: str) -> float:
    from engine.spec.base import parse_duration

    return float(_parsed(parse_duration, text, option))


def _size(text: str) -> int:
    from engine.spec.base import parse_size

    return int(text) if text.isdigit() else int(_parsed(parse_size, text, "--max-bytes"))


def _parsed(parse: Callable[[Any], float], text: str, option: str) -> float:
    from pydantic_core import PydanticCustomError

    try:
        return parse(text)
    except PydanticCustomError as error:
        raise typer.BadParameter(error.message(), param_hint=option) from error
