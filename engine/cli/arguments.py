"""Arguments, options and the question that several commands have in common, spelled once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Handle = Annotated[str, typer.Argument(help="Handle, unique prefix, or @last.")]
SpecFile = Annotated[Path, typer.Argument(help="The spec.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values to change, and a=1,2,3 to sweep over some.", metavar="[KEY=VALUE]...")
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON.")]
Wait = Annotated[
    bool | None,
    typer.Option("--wait/--no-wait", help="Follow to the end; by default where no other worker would run it."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, *, yes: bool) -> None:
    """Go on only where the answer is yes. Raises Abort, and Refused where nobody is there to be asked."""
    from engine.errors import Refused

    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is there to answer: say --yes")
    typer.confirm(question.rstrip("?"), abort=True, err=True)
