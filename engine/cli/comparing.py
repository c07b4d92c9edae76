"""`rlx compare`: what differs between two runs, which is better, and how sure we are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.output import answer_json, number
from engine.cli.quick import QuickCommand

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from engine.compare.report import Comparison, Subject


def register(root: typer.Typer) -> None:
    """Add `compare` to `rlx`."""
    root.command("compare", cls=QuickCommand)(compare)


def compare(
    a: Annotated[str, typer.Argument(help="The run to compare with.")],
    b: Annotated[str, typer.Argument(help="The run that is judged: better, worse, or cannot tell.")],
    threshold: Annotated[
        float | None, typer.Option(help="Score to which costs are counted; by default the highest that both reached.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help="Exit 1 if it holds, such as 'score < 0.9' (B's final score) or 'p > 0.05'."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same comparison as JSON.")] = False,
) -> None:
    """Compare run B with A: what differs, and which is better.

    Spec, code, packages and hardware; scores with intervals, a paired test, costs to a threshold.
    """
    from engine.cli.comparison import show
    from engine.cli.conditions import parse
    from engine.cli.places import required_store
    from engine.compare import report
    from engine.errors import ExitCode

    conditions = [parse(text) for text in fail_if or ()]
    with required_store().read() as session:
        subjects = [subject(session, handle) for handle in (a, b)]
    same = items_of(subjects[0].spec) == items_of(subjects[1].spec)
    comparison = report.compare(*subjects, threshold=threshold, same_items=same)
    if as_json:
        answer_json(as_data(comparison))
    else:
        show(comparison)
    broken = [condition for condition in conditions if condition.holds(comparison)]
    for condition in broken:
        typer.echo(f"{condition.text}: holds, with {condition.name} = {number(condition.value(comparison))}", err=True)
    if broken:
        raise typer.Exit(ExitCode.RUN_FAILED)


def subject(session: Session, handle: str) -> Subject:
    """What a comparison needs of one run."""
    from engine.compare.report import Evaluated, Subject
    from engine.store import evaluations, runs, stages
    from engine.store.tables import RunId

    run = runs.find(session, handle)
    run_id = RunId(run.id)
    places = {stage.id: (stage.name, stage.position) for stage in stages.for_run(session, run_id)}
    rows = []
    for row in evaluations.of_run(session, run_id):
        name, position = places[row.stage_id]
        scores = {int(item): [float(score) for score in given] for item, given in row.items if given}
        if scores:
            rows.append(
                Evaluated(row.metric, row.split, row.step, name, position, scores, row.functions_hash, row.cost)
            )
    return Subject(run.handle, run.resolved, run.code, run.packages, run.hardware, rows)


def items_of(spec: Any) -> Any:
    """What makes item 3 of one run item 3 of another: the data, and how it is put to the model."""
    dataset = spec.get("dataset", {})
    return {key: dataset.get(key) for key in ("items", "splits", "main_prompt", "system_prompt")}


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON data."""
    return {
        "a": comparison.a,
        "b": comparison.b,
        "verdict": comparison.verdict,
        "differences": {name: [d.as_json() for d in found] for name, found in comparison.differences.items()},
        "metrics": list(comparison.metrics),
    }
