"""Arguments and options that several commands have in common, spelled once."""

from __future__ import annotations

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
