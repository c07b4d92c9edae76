"""`rlx eval`: evaluate a checkpoint of a run anew, through the queue, as a run of its own.

The plan is the method's own, without its training: the evaluating stage is told of the checkpoint through its
`extra["checkpoint"]`, and whatever else it reads comes from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import Handle, Wait
from engine.cli.output import answer
from engine.cli.quick import QuickCommand
from engine.errors import Refused

if TYPE_CHECKING:
    from engine.cli.models import FoundCheckpoint
    from engine.plan.stage import Plan
    from engine.spec.load import Loaded

EVALUATES = ".evaluate"
"""How the kind of a method's evaluating stage ends."""
NAME_LIMIT = 64


def register(root: typer.Typer) -> None:
    """Add `eval` to `rlx`."""
    root.command("eval", cls=QuickCommand)(evaluate)


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
    from engine.cli.submitting import carry_out, check_devices, queue
    from engine.methods import registry
    from engine.spec.load import load_resolved
    from engine.store import runs

    db = required_store()
    with db.read() as session:
        run = runs.find(session, handle)
        found = models.checkpoint(session, run, checkpoint)
        source = runs.spec_of(session, run).source
    original = registry.plan(load_resolved(run.resolved, registry.configs()))
    changed = replace(changed_spec(run.resolved, runs_per_item, dataset), source=source)
    plan = evaluation_plan(original, registry.plan(changed.experiment), found)
    variant = Compiled(loaded=changed, plan=models.with_models(plan, changed.experiment.model.name))
    check([variant], embedded=the_settings().embedded)
    check_devices([plan])
    note = f"evaluates {found.handle} at step-{found.step} ({checkpoint})"
    evaluation = queue(db, variant, tiny=run.tiny, tags=["eval"], note=note)
    answer(evaluation.handle)
    carry_out(db, [evaluation], wait=wait)


def changed_spec(resolved: Mapping[str, Any], runs_per_item: int | None, dataset: Path | None) -> Loaded:
    """The run's spec under a name of its own, with another number of episodes or another dataset. Raises SpecError."""
    import json
    from tempfile import TemporaryDirectory

    from engine.methods.registry import configs
    from engine.spec.load import load

    document = {**resolved, "name": f"{resolved['name'][: NAME_LIMIT - 5]}_eval"}
    plan = dict(document.get("evaluation") or {})
    if runs_per_item is not None:
        plan["runs_per_item"] = runs_per_item
    if dataset is not None:
        document["dataset"] = {"file": str(dataset.resolve())}
        plan["splits"] = None  # the other dataset has splits of its own
    document["evaluation"] = plan
    with TemporaryDirectory() as folder:
        # Through the loader, so that a dataset file is checked exactly as in a spec.
        path = Path(folder) / "evaluation.yaml"
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        loaded = load(path, methods=configs())
        places = {key: where for key, where in loaded.origin.items() if where.file != str(path)}
        return replace(loaded, origin=places)


def evaluation_plan(original: Plan, changed: Plan, found: FoundCheckpoint) -> Plan:
    """The evaluating stages of `changed`, fed by the checkpoint in place of the stage that wrote it.

    What else they read is made as in `original`, and so is in the cache. Raises Refused for a method without any.
    """
    evaluating = [stage for stage in changed.stages if stage.kind.endswith(EVALUATES)]
    if not evaluating:
        raise Refused(f"the method of {found.handle} evaluates while it trains only: it has no stage for this")
    wanted: set[str] = set()
    pending = [producer for stage in evaluating for producer in stage.inputs.values()]
    while pending:
        name = pending.pop()
        if name != found.stage and name not in wanted:
            wanted.add(name)
            pending += original.stage(name).inputs.values()
    extra = {"checkpoint": {"path": str(found.path), "sha256": found.sha256, "step": found.step}}
    last = [
        replace(
            stage,
            inputs={name: producer for name, producer in stage.inputs.items() if producer != found.stage},
            extra={**stage.extra, **extra},
        )
        for stage in evaluating
    ]
    made = [stage for stage in original.stages if stage.name in wanted]
    return replace(changed, stages=(*made, *last))
