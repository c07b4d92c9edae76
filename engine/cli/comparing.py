"""`rlx compare`: what differs between two runs, which is better, and how sure we are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.output import Column, answer, answer_json, number, one_line, status, style, table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from engine.compare.report import Comparison, MetricComparison, Subject


def register(root: typer.Typer) -> None:
    """Add `compare` to `rlx`."""
    root.command("compare")(compare)


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
    """Compare run B with run A: what differs, and which is better.

    Spec, code, packages and hardware; scores with intervals, a paired test, costs to a threshold.
    """
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

    run = runs.find(session, handle)
    places = {stage.id: (stage.name, stage.position) for stage in stages.for_run(session, run.id)}
    rows = []
    for row in evaluations.of_run(session, run.id):
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


def show(comparison: Comparison) -> None:
    """The comparison as text."""
    rows = [
        {"where": name, "path": difference.path, "a": difference.a, "b": difference.b}
        for name, found in comparison.differences.items()
        for difference in found
    ]
    if rows:
        table(
            [
                Column("DIFFERS IN", lambda row: row["where"]),
                Column("AT", lambda row: row["path"]),
                Column(comparison.a, lambda row: _value(row["a"]), flexible=True),
                Column(comparison.b, lambda row: _value(row["b"]), flexible=True),
            ],
            rows,
        )
    else:
        answer("Nothing differs in spec, code, packages or hardware.")
    if not comparison.metrics:
        answer("\nThe two share no evaluation: there is nothing to compare.")
    for metric in comparison.metrics:
        answer()
        _show_metric(comparison, metric)


def _value(value: Any) -> str:
    return one_line(repr(value) if isinstance(value, str) else str(value))


def _show_metric(comparison: Comparison, metric: MetricComparison) -> None:
    answer(style(f"{metric.metric} on {metric.split}", None, bold=True))
    sides = ((comparison.a, metric.a), (comparison.b, metric.b))
    table(
        [
            Column("RUN", lambda row: row[0], flexible=True),
            *(
                Column(title, lambda row, part=part: _standing(getattr(row[1], part)))
                for title, part in (("UNTRAINED", "first"), ("BEST", "best"), ("FINAL", "final"))
            ),
        ],
        [dict(enumerate(side)) for side in sides],
    )
    table(
        [
            Column(f"TO {number(metric.threshold)}", lambda row: row.cost),
            Column(comparison.a, lambda row: row.reached[0], right=True),
            Column(comparison.b, lambda row: row.reached[1], right=True),
            Column("AREA A", lambda row: row.mean_height and row.mean_height[0], right=True),
            Column("AREA B", lambda row: row.mean_height and row.mean_height[1], right=True),
        ],
        metric.axes,
    )
    test = metric.test
    if test is not None:
        how = "exact" if test.exact else f"{test.arrangements} drawn"
        items = f"{test.items} shared item{'' if test.items == 1 else 's'}"
        answer(f"paired permutation test over {items}: p = {test.p_value:.3g} ({how})")
    known = metric.verdict.value != "cannot tell"
    said = f"{comparison.b} is {status(metric.verdict.value)} than {comparison.a}" if known else "cannot tell"
    answer(f"{said}: {metric.reason}")


def _standing(standing: Any) -> str:
    interval = standing.interval
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}] at {standing.step}"
