"""`rlx eval`: evaluate a checkpoint of a run anew, through the queue, as a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.cli.arguments import Handle, Wait
from engine.cli.output import answer


def register(root: typer.Typer) -> None:
    """Add `eval` to `rlx`."""
    root.command("eval")(evaluate)


def evaluate(
    handle: Handle,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or step-N.")] = "best",
    runs_per_item: Annotated[int | None, typer.Option(min=1, help="Scores an item; by default the spec's.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Evaluate on this dataset file instead of the run's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the evaluation; by default the run's.")] = None,
    wait: Wait = None,
) -> None:
    """Evaluate a checkpoint of a run, as a run of its own.

    Prints the handle of the evaluation; `rlx compare` takes it like any other.
    """
    raise NotImplementedError
