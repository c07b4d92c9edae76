"""`rlx db`: the schema of the store, its state, and its backups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.arguments import AsJson, Yes, confirm
from engine.cli.output import answer, answer_json, one_line, path, size, talk
from engine.cli.quick import QuickCommand

if TYPE_CHECKING:
    from engine.store.backup import Backup

_SHOWN = 20
"""Lines of drift or damage that are shown."""

app = typer.Typer(help="Upgrade, check, back up and restore the store.", rich_markup_mode=None, no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `db` to `rlx`."""
    root.add_typer(app, name="db")


@app.command(cls=QuickCommand)
def upgrade(revision: Annotated[str, typer.Argument(help="Up to which revision.")] = "head") -> None:
    """Bring the schema up to REVISION; the newest by default."""
    from engine.cli.places import the_settings
    from engine.store import schema

    url = the_settings().database_url
    schema.upgrade(url, revision)
    talk(f"The store is at {schema.current(url)}.")


@app.command(cls=QuickCommand)
def downgrade(
    revision: Annotated[str, typer.Argument(help="Down to which revision; `base` empties the store.")],
    yes: Yes = False,
) -> None:
    """Take the schema back to REVISION. What only the newer schema can hold is lost."""
    from engine.cli.places import the_settings
    from engine.store import schema

    confirm(f"Take the store down to {revision}, and lose what it cannot hold there?", yes=yes)
    url = the_settings().database_url
    schema.downgrade(url, revision)
    talk(f"The store is at {schema.current(url) or 'base (empty)'}.")


@app.command(cls=QuickCommand)
def current(as_json: AsJson = False) -> None:
    """Print the revision that the store is at."""
    from engine.cli.places import shown_url, the_settings
    from engine.store import schema

    url = the_settings().database_url
    found = schema.current(url)
    if as_json:
        answer_json({"revision": found, "head": schema.HEAD, "url": shown_url(url)})
    else:
        answer(found or "base")
        if found != schema.HEAD:
            talk(f"The newest is {schema.HEAD}: `rlx db upgrade` brings it there.")


@app.command(cls=QuickCommand)
def check(as_json: AsJson = False) -> None:
    """Compare the store with what this version expects of it, and look for damage; exits 5 where it finds any."""
    from engine.cli.places import the_settings
    from engine.errors import Refused
    from engine.store import backup, schema

    url = the_settings().database_url
    damage = backup.damage(url)
    drift = [] if damage else schema.check(url)
    if as_json:
        answer_json({"drift": drift, "damage": damage})
    if damage:
        raise Refused(f"the store's file is damaged:\n{_lines(damage)}\n`rlx db restore` puts a backup in its place")
    if drift:
        raise Refused(
            f"the store's schema is not this version's:\n{_lines(drift)}\n`rlx db upgrade` brings it up to date"
        )
    talk("The store is whole, and its schema is this version's.")


def _lines(found: list[str]) -> str:
    return "\n".join(f"  {one_line(line)}" for line in found[:_SHOWN]) + (
        f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    )


@app.command("backup", cls=QuickCommand)
def back_up(
    file: Annotated[Path, typer.Argument(help="Where to write it.", dir_okay=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace FILE if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the whole database to FILE, as it is at one moment; workers may go on writing.

    PostgreSQL is dumped by pg_dump. Artifacts and checkpoints are files of their own: copy them after the database.
    """
    from engine.cli.places import the_settings
    from engine.store import backup

    made = backup.save(the_settings().database_url, file, replace=yes)
    _tell(made, f"Backed up revision {made.revision}, {size(made.bytes)}, to {path(file)}.", as_json)


@app.command(cls=QuickCommand)
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.", dir_okay=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace what the database holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the database back to what the backup in FILE holds.

    Exits 5 while workers are alive, and without --yes where the database holds anything.
    """
    from engine.cli.places import the_settings
    from engine.clock import utc_now
    from engine.store import backup, schema

    made = backup.restore(the_settings().database_url, file, now=utc_now(), replace=yes)
    _tell(made, f"The store is what {path(file)} holds, revision {made.revision}.", as_json)
    if made.revision != schema.HEAD:
        talk(f"The newest is {schema.HEAD}: `rlx db upgrade` brings it there.")


def _tell(made: Backup, sentence: str, as_json: bool) -> None:
    if as_json:
        answer_json(made)
    else:
        talk(sentence)
