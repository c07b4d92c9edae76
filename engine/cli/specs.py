"""`rlx specs`: every accepted spec with its revisions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.cli.arguments import AsJson
from engine.cli.output import Column, ago, answer, answer_json, table, talk
from engine.cli.quick import QuickCommand, QuickGroup

app = typer.Typer(
    help="List the specs that were accepted, or print one.",
    invoke_without_command=True,
    cls=QuickGroup,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add `specs` to `rlx`."""
    root.add_typer(app, name="specs")


@app.callback()
def specs(context: typer.Context, as_json: AsJson = False) -> None:
    """List the specs that were accepted, with their revisions."""
    if context.invoked_subcommand is not None:
        return
    from engine.cli.places import existing_store
    from engine.clock import utc_now
    from engine.store import specs as store

    db, now = existing_store(), utc_now()
    rows: list[dict[str, Any]] = []
    if db is not None:
        with db.read() as session:
            rows = [
                {"name": s.name, "revision": s.revision, "created_at": s.created_at, "content_hash": s.content_hash}
                for s in store.listing(session)
            ]
    if as_json:
        answer_json(rows)
    elif not rows:
        talk("No specs here yet: `rlx submit SPEC` keeps the first.")
    else:
        table(
            [
                Column("SPEC", lambda row: f"{row['name']}@{row['revision']}"),
                Column("FIRST SUBMITTED", lambda row: ago(row["created_at"], now)),
                Column("CONTENT", lambda row: row["content_hash"][:12]),
            ],
            rows,
        )


@app.command("show", cls=QuickCommand)
def show(
    name: Annotated[str, typer.Argument(help="NAME for the newest revision, or NAME@REV.")],
    as_json: Annotated[bool, typer.Option("--json", help="The resolved spec as JSON.")] = False,
) -> None:
    """Print a spec as its author wrote it."""
    from engine.cli.places import required_store
    from engine.errors import NotFound
    from engine.store import specs as store

    wanted, _, revision = name.partition("@")
    if revision and not revision.isdigit():
        raise NotFound(f"{name!r}: a revision is a number, as in {wanted}@3")
    with required_store().read() as session:
        found = store.find(session, wanted, int(revision) if revision else None)
        source, resolved = found.source, found.resolved
    if as_json:
        answer_json(resolved)
    else:
        answer(source.rstrip("\n"))
