"""Charts from rows: the numbers that they draw, and that Vega-Lite's own schema accepts them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import charts, plan_chart
from dashboard.charts import INKS
from dashboard.evidence import EvaluationRow, Point, SeriesRow
from dashboard.queries import StageRow
from dashboard.trajectories import Candidate
from engine.store.tables import StageId

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_smoothing_worked_by_hand() -> None:
    # w = ½: m₁ = ½·1, m₂ = ½·m₁ + ½·3 = 1¾; divided by 1 − w^t = ½ and ¾
    assert charts.smooth([1.0, 3.0], 0.5) == pytest.approx([1.0, 1.75 / 0.75])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 0.99))
def test_smoothing_stays_within_what_was_measured(values: list[float], weight: float) -> None:
    shown = charts.smooth(values, weight)

    assert len(shown) == len(values)
    assert shown[0] == pytest.approx(values[0])
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert min(values) - slack <= min(shown)
    assert max(shown) <= max(values) + slack


def test_no_smoothing_changes_nothing() -> None:
    assert charts.smooth([1.0, -2.0, 5.0], 0.0) == [1.0, -2.0, 5.0]


def series(*values: float, spread: float = 0.0) -> SeriesRow:
    points = tuple(Point(i, value, value - spread, value + spread, 2.0 * i) for i, value in enumerate(values))
    return SeriesRow("policy/kl", "train", 1, points, spread == 0)


def drawn(chart: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The chart as Vega-Lite gets it, checked against its schema, and its rows."""
    spec = chart.to_dict()
    return spec, [row for rows in spec["datasets"].values() for row in rows]


def test_a_metric_draws_its_points_over_steps_or_seconds() -> None:
    _, by_step = drawn(charts.metric(series(0.1, 0.2, 0.4)))
    _, by_seconds = drawn(charts.metric(series(0.1, 0.2, 0.4), over="seconds"))

    assert [(row["x"], row["value"]) for row in by_step] == [(0, 0.1), (1, 0.2), (2, 0.4)]
    assert [row["x"] for row in by_seconds] == [0, 2, 4]


def test_buckets_show_their_extremes() -> None:
    spec, rows = drawn(charts.metric(series(1.0, 2.0, spread=0.5)))

    assert [(row["low"], row["high"]) for row in rows] == [(0.5, 1.5), (1.5, 2.5)]
    assert "area" in [layer["mark"]["type"] for layer in spec["layer"]]


@pytest.mark.parametrize("values, kind", [((0.1, 10.0), "log"), ((-1.0, 10.0), "symlog"), ((0.0, 1.0), "symlog")])
def test_a_logarithmic_axis_takes_what_a_logarithm_cannot(values: tuple[float, ...], kind: str) -> None:
    spec, _ = drawn(charts.metric(series(*values), logarithmic=True))

    assert {layer["encoding"]["y"]["scale"]["type"] for layer in spec["layer"]} == {kind}


def evaluation(step: int, mean: float, **cost: float) -> EvaluationRow:
    return EvaluationRow(step, "train", 1, "score", "train", mean, mean - 0.1, mean + 0.1, 20, (), cost, "")


def test_a_learning_curve_lies_over_the_chosen_cost() -> None:
    rows = [evaluation(0, 0.2, seconds=0.0), evaluation(5, 0.6, seconds=31.0), evaluation(10, 0.9)]

    _, by_step = drawn(charts.learning_curves({"a": rows}))
    _, by_seconds = drawn(charts.learning_curves({"a": rows}, over="seconds"))

    assert [(row["x"], row["mean"], row["low"], row["high"]) for row in by_step][1] == pytest.approx((5, 0.6, 0.5, 0.7))
    assert [row["x"] for row in by_seconds] == [0.0, 31.0], "what has no such cost has no place on the axis"


def test_curves_differ_by_more_than_colour() -> None:
    spec, _ = drawn(charts.learning_curves({"a": [evaluation(0, 0.2)], "b": [evaluation(0, 0.3)]}))

    shapes = next(
        layer["encoding"]["shape"]["scale"]["range"] for layer in spec["layer"] if "shape" in layer["encoding"]
    )
    dashes = next(
        layer["encoding"]["strokeDash"]["scale"]["range"]
        for layer in spec["layer"]
        if "strokeDash" in layer["encoding"]
    )
    assert len(set(shapes)) == 2
    assert dashes[0] != dashes[1]


def test_candidates_are_drawn_with_the_executed_one_marked_and_no_text() -> None:
    decisions = [
        [Candidate("secret text", 0.2, False), Candidate("b", 0.9, True)],
        [Candidate("c", None, True), Candidate("d", 0.4, False)],
    ]

    spec, rows = drawn(charts.candidates(decisions, INKS["light"]))

    assert [(row["decision"], row["q"], row["executed"]) for row in rows] == [
        (1, 0.2, "candidate"),
        (1, 0.9, "executed"),
        (2, 0.4, "candidate"),
    ]
    assert "secret" not in str(spec)


def stage(name: str, *inputs: str, status: str = "waiting", done: float = 0, total: float = 0, **more: Any) -> StageRow:
    values: dict[str, Any] = {"started_at": None, "finished_at": None, "cached": False, "attempt": 0, **more}
    return StageRow(
        id=StageId(uuid4()),
        name=name,
        kind=f"test.{name}",
        status=status,
        max_attempts=3,
        done=done,
        total=total,
        note="",
        cause=None,
        error=None,
        inputs=inputs,
        **values,
    )


def test_a_stage_stands_right_of_all_that_it_reads() -> None:
    stages = [stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "a", "b", "c")]

    places = plan_chart._places(stages)

    column = {name: x for name, (x, _) in places.items()}
    assert column["a"] < column["b"] == column["c"] < column["d"]
    assert places["b"][1] != places["c"][1], "two in a column do not lie on each other"


def test_an_arrow_over_a_column_goes_below_every_box() -> None:
    stages = [stage("a"), stage("b", "a"), stage("c", "a", "b")]
    places = plan_chart._places(stages)

    paths, heads = plan_chart._arrows(stages, places)

    bottom = max(y for _, y in places.values()) + plan_chart.BOX_H
    straight = [y for arrow, _, _, y in paths if arrow == "a>b"]
    around = [y for arrow, _, _, y in paths if arrow == "a>c"]
    assert max(straight) < bottom < max(around)
    assert len(heads) == 3


def test_a_running_stage_tells_what_is_left() -> None:
    # a quarter done in 30 s leaves three quarters, 90 s
    row = stage("train", status="running", done=15, total=60, started_at=NOW - timedelta(seconds=30), attempt=1)

    assert row.remaining(NOW) == pytest.approx(90)
    _, rows = drawn(plan_chart.plan([row], INKS["dark"], NOW))
    box = next(found for found in rows if found.get("name") == "train")
    assert box["line"] == "15 of 60, 1 m 30 s left"
    assert (box["bar_done"] - box["bar"]) / (box["bar_end"] - box["bar"]) == pytest.approx(0.25)


def test_nobody_guesses_what_is_left_without_progress() -> None:
    started = NOW - timedelta(seconds=30)
    assert stage("a", status="running", started_at=started).remaining(NOW) is None
    assert stage("a", status="failed", done=1, total=2, started_at=started).remaining(NOW) is None
