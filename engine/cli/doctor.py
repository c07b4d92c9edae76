"""`rlx doctor`: is this installation fit to run experiments, and if not, what would cure it."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli.output import answer, answer_json, status, style
from engine.cli.quick import QuickCommand
from engine.errors import ExitCode


def register(root: typer.Typer) -> None:
    """Add `doctor` to `rlx`."""
    root.command("doctor", cls=QuickCommand)(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The same checks as JSON.")] = False) -> None:
    """Check whether this installation is fit to run experiments.

    Exits 4 where the database or the broker fails, 1 where something else does.
    """
    from engine.cli.checks import all_checks
    from engine.cli.places import the_settings

    checks = all_checks(the_settings())
    if as_json:
        answer_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            answer(f"{status(check.status)}{' ' * (5 - len(check.status))}{check.name:<{width}}  {check.detail}")
            if check.fix:
                answer(f"     {' ' * width}  {style('→', 'bright_black')} {check.fix}")
    failed = {check.name for check in checks if check.status == "fail"}
    if failed & {"database", "broker"}:
        raise typer.Exit(ExitCode.UNREACHABLE)
    if failed:
        raise typer.Exit(ExitCode.RUN_FAILED)
