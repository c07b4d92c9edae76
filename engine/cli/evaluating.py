"""`rlx eval`: evaluate a checkpoint of a run anew, through the queue, as a run of its own.

The plan is the method's own, without its training: the evaluating stage is told of the checkpoint through its
`extra["checkpoint"]`, and whatever else it reads comes from the cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import Handle, Wait
from engine.cli.output import answer
from engine.errors import Refused

if TYPE_CHECKING:
    from engine.cli.models import FoundCheckpoint
    from engine.plan.stage import Plan, Stage
    from engine.spec.experiment import Experiment
    from engine.store.tables import Run

EVALUATES = ".evaluate"
"""How the kind of a method's evaluating stage ends."""


def register(root: typer.Typer) -> None:
    """Add `eval` to `rlx`."""
    root.command("eval")(evaluate)


def evaluate(
    handle: Handle,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or step-N.")] = "best",
    runs_per_item: Annotated[int | None, typer.Option(min=1, help="Episodes an item; by default the spec's.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Evaluate on this dataset file, not on the run's own.")] = None,
    wait: Wait = None,
) -> None:
    """Evaluate a checkpoint of a run, as a run of its own.

    Prints the handle of the evaluation; `rlx compare` takes it like any other.
    """
    from engine.cli import models
    from engine.cli.compiling import Compiled
    from engine.cli.places import required_store, the_settings
    from engine.cli.preflight import check
    from engine.cli.submitting import carry_out, queue
    from engine.methods import registry
    from engine.spec.load import load_resolved
    from engine.store import runs
    from engine.store.tables import Stage as StageRow

    db = required_store()
    with db.read() as session:
        run = runs.find(session, handle)
        found = models.checkpoint(session, run, checkpoint)
        trained = session.get_one(StageRow, found.stage_id).name
        source = runs.spec_of(session, run).source
    experiment = load_resolved(run.resolved, registry.configs())
    changed = changed_experiment(experiment, run, runs_per_item, dataset)
    plan = evaluation_plan(registry.plan(experiment), registry.plan(changed), trained, found)
    loaded = as_loaded(changed, source)
    variant = Compiled(loaded=loaded, plan=plan, overrides=())
    check([variant], embedded=the_settings().embedded)
    note = f"evaluates {found.handle} at step-{found.step} ({checkpoint})"
    evaluation = queue(db, variant, tiny=run.tiny, tags=["eval"], note=note)
    answer(evaluation.handle)
    carry_out(db, [evaluation], wait=wait)
