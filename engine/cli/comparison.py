"""A comparison of two runs as text: what differs, one block a metric, and the verdict in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.cli.output import Column, answer, number, one_line, status, style, table

if TYPE_CHECKING:
    from engine.compare.report import Comparison, MetricComparison, Side, Standing

PARTS = (("UNTRAINED", "first"), ("BEST", "best"), ("FINAL", "final"))


def show(comparison: Comparison) -> None:
    """Print it."""
    show_differences(comparison)
    if not comparison.metrics:
        answer()
        answer("The two share no evaluation: there is nothing to compare.")
    for metric in comparison.metrics:
        answer()
        show_metric(comparison, metric)


def show_differences(comparison: Comparison) -> None:
    """Every setting, package and device that is not the same in both."""
    rows = [
        {"where": where, "path": difference.path, "a": difference.a, "b": difference.b}
        for where, found in comparison.differences.items()
        for difference in found
    ]
    if not rows:
        answer("Nothing differs in spec, code, packages or hardware.")
        return
    table(
        [
            Column("DIFFERS IN", lambda row: row["where"]),
            Column("AT", lambda row: row["path"]),
            Column(comparison.a, lambda row: _value(row["a"]), flexible=True),
            Column(comparison.b, lambda row: _value(row["b"]), flexible=True),
        ],
        rows,
    )


def _value(value: Any) -> str:
    return one_line(repr(value) if isinstance(value, str) else str(value))


def show_metric(comparison: Comparison, metric: MetricComparison) -> None:
    """One metric on one split: where each run stood, what it cost, and whether the difference is real."""
    answer(style(f"{metric.metric} on {metric.split}", None, bold=True))
    sides = ((comparison.a, metric.a), (comparison.b, metric.b))
    curve = any(side.first != side.final or side.best != side.final for _, side in sides)
    table(
        [
            Column("RUN", lambda row: row[0], flexible=True),
            *(_part(*part) for part in (PARTS if curve else PARTS[-1:])),
        ],
        sides,
    )
    if curve:
        _show_axes(comparison, metric)
    test = metric.test
    if test is not None:
        how = "exact" if test.exact else f"{test.arrangements} arrangements drawn"
        items = f"{test.items} shared item{'' if test.items == 1 else 's'}"
        answer(f"paired permutation test over {items}: p = {test.p_value:.3g} ({how})")
    known = metric.verdict.value != "cannot tell"
    said = f"{comparison.b} is {status(metric.verdict.value)} than {comparison.a}" if known else "cannot tell"
    answer(f"{said}: {metric.reason}")


def _part(title: str, part: str) -> Column:
    def shown(row: tuple[str, Side]) -> str:
        standing: Standing = getattr(row[1], part)
        interval = standing.interval
        return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}] at {standing.step}"

    return Column(title, shown)


def _show_axes(comparison: Comparison, metric: MetricComparison) -> None:
    table(
        [
            Column(f"TO REACH {number(metric.threshold)}", lambda row: row.cost.replace("_", " ")),
            Column(comparison.a, lambda row: _cost(row.reached[0]), right=True),
            Column(comparison.b, lambda row: _cost(row.reached[1]), right=True),
            Column("AREA UNDER " + comparison.a, lambda row: row.mean_height and row.mean_height[0], right=True),
            Column("UNDER " + comparison.b, lambda row: row.mean_height and row.mean_height[1], right=True),
        ],
        metric.axes,
    )


def _cost(value: float | None) -> str:
    if value is None:
        return "never"
    return str(int(value)) if value == int(value) else f"{value:.1f}"
