"""`rlx db`: the schema of the store."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli.arguments import AsJson
from engine.cli.output import answer, answer_json, talk
from engine.cli.quick import QuickCommand

app = typer.Typer(help="Upgrade, downgrade and check the store's schema.", rich_markup_mode=None, no_args_is_help=True)


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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take the schema back to REVISION. What only the newer schema can hold is lost."""
    from engine.cli.places import the_settings
    from engine.store import schema

    if not yes:
        typer.confirm(f"Take the store down to {revision}? What it cannot hold there is lost", abort=True, err=True)
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
def check() -> None:
    """Compare the store with what this version expects of it; exits 5 where they differ."""
    from engine.cli.places import the_settings
    from engine.errors import Refused
    from engine.store import schema

    drift = schema.check(the_settings().database_url)
    if drift:
        lines = "\n".join(f"  {line}" for line in drift)
        raise Refused(f"the store's schema is not this version's:\n{lines}\n`rlx db upgrade` brings it up to date")
    talk("The store's schema is this version's.")
