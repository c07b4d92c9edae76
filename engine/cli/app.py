"""The command `rlx`: its groups of commands, and the one place where errors become words and exit codes.

Command modules import nothing heavy at their top, so that help appears at once; what a command needs it imports
when it runs.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

import engine
from engine.cli import (
    authoring,
    collecting,
    comparing,
    control,
    dashboard,
    database,
    doctor,
    evaluating,
    exporting,
    logs,
    queue,
    reading,
    samples,
    specs,
    submitting,
    tracking,
    verifying,
    worker,
)
from engine.cli.quick import QuickGroup, QuickTyper
from engine.errors import ExitCode

app = QuickTyper(
    name="rlx",
    help="Experiments in reinforcement learning of language models: one spec, one command, a trained model.",
    no_args_is_help=True,
    cls=QuickGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A handle is a run's name (best-lang-1), a unique prefix of it, or @last.",
)
# In the order in which one meets them.
for module in (
    authoring,
    submitting,
    reading,
    logs,
    samples,
    control,
    evaluating,
    comparing,
    exporting,
    tracking,
    verifying,
):
    module.register(app)
for module in (specs, worker, queue, collecting, database, doctor, dashboard):
    module.register(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlx {engine.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    """Options of every command; `main` has already taken --debug off the line."""


def main(argv: Sequence[str] | None = None) -> None:
    """The console script: run a command and leave with its exit code.

    Most commands live for less than a second. What the collector would find among the classes that they import, first
    while those are built and again at the end, is next to nothing, and the search is a third of what `rlx ls` takes.
    """
    gc.set_threshold(200_000)
    code = run(list(sys.argv[1:] if argv is None else argv))
    gc.freeze()
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command line; whatever goes wrong is reported here, and nowhere else."""
    debug = bool(os.environ.get("RLX_DEBUG"))
    options = argv[: argv.index("--")] if "--" in argv else argv
    if "--debug" in options:
        argv.remove("--debug")
        debug = True
    try:
        code = app(argv, prog_name="rlx", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as left:  # typer's own way out of a broken pipe, and the end of a completion
        if isinstance(left.__context__, BrokenPipeError):
            return _reader_left()
        return left.code if isinstance(left.code, int) else ExitCode.OK
    except typer.Exit as left:
        return left.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        return ExitCode.INTERRUPTED
    except TyperException as usage:
        return _usage(usage)
    except Exception as error:  # noqa: BLE001  # the edge: it is reported, by kind, with its exit code
        from engine.cli.reporting import report

        return report(error, debug=debug)
    return code if isinstance(code, int) else ExitCode.OK


def _reader_left() -> int:
    """`rlx ls | head`: the reader has had enough, which is no error; nothing may be flushed at it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return ExitCode.OK


def _usage(error: TyperException) -> int:
    """A line that cannot be parsed: what typer says about it, which names the option and a close one."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
    else:
        typer.echo(f"error: {error}", err=True)
    return int(getattr(error, "exit_code", ExitCode.BAD_INPUT))
