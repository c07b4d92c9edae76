"""How an error is told at the edge: what is wrong, where, what to do; a traceback only when asked for.

Loaded when something has gone wrong, and not before.
"""

from __future__ import annotations

import sys
import traceback

from engine.cli.output import printable, style
from engine.errors import ExitCode, RlxError, SpecError


def report(error: Exception, *, debug: bool) -> int:
    """Say it on stderr and return the exit code that it earns."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, SpecError):
        for block in spec_problems(error):
            _say(block)
        count = len(error.problems)
        if count > 1:
            _say(f"{count} problems")
        return error.exit_code
    if isinstance(error, RlxError):
        _say(f"{_error()} {printable(str(error))}")
        if error.exit_code == ExitCode.INTERNAL and not debug:
            _say("Run it again with --debug to see where.")
        return error.exit_code
    kind = type(error).__name__
    _say(f"{_error()} {kind}: {printable(str(error))}")
    if not debug:
        _say("This is a fault of rlx, not of your spec. `--debug` shows where; `rlx doctor` checks the installation.")
    return ExitCode.INTERNAL


def spec_problems(error: SpecError) -> list[str]:
    """Each problem of a spec, with the lines around it where its file can still be read."""
    from pathlib import Path

    from engine.spec.diagnostics import render

    blocks = []
    for problem in error.problems:
        source = ""
        if problem.file is not None and problem.line is not None:
            try:
                source = Path(problem.file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                source = ""
        blocks.append(f"{_error()} {printable(render(problem, source) if source else str(problem))}")
    return blocks


def _error() -> str:
    return style("error:", "red", bold=True, err=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201  # the edge talks to the user here
