"""Rows to charts: pure functions from what `queries` and `evidence` return to Altair charts; nothing of Streamlit.

Colours of series come from the theme (`.streamlit/config.toml`), in an order told apart by colour-blind readers; a run
or a metric that a colour stands for also has its own dash or shape. Text that a model wrote never goes into a chart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import altair as alt
import pandas as pd

from dashboard import wording
from dashboard.evidence import EvaluationRow, Point, SeriesRow
from dashboard.trajectories import Candidate

Chart = alt.LayerChart | alt.Chart
Theme = Literal["light", "dark"]

_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_DASHES: list[list[int]] = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 4]]


@dataclass(frozen=True)
class Ink:
    """Colours of what is neither a series nor an axis, for one theme."""

    text: str
    quiet: str
    line: str
    paper: str
    accent: str


INKS: Mapping[Theme, Ink] = {
    "light": Ink("#1c2430", "#5b6673", "#c3cad3", "#f4f6f8", "#0072b2"),
    "dark": Ink("#e4e9ef", "#a3aeba", "#465261", "#1a212b", "#56b4e9"),
}


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """The exponential moving average with its start corrected, as TensorBoard draws it; weight 0 changes nothing.

    m_t = w m_{t−1} + (1 − w) x_t          shown: m_t / (1 − w^t)
    """
    shown, mean, mass = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        shown.append(mean / mass)
    return shown


def _together(*layers: alt.Chart, height: int) -> alt.LayerChart:
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=height))


def metric(series: SeriesRow, *, smoothing: float = 0.0, over: str = "step", logarithmic: bool = False) -> Chart:
    """One metric: its smoothed line over the points as measured, or over the extremes of each bucket."""
    points = series.points
    smoothed = smooth([point.value for point in points], smoothing)
    rows = [
        {"x": _x(point, over), "value": point.value, "smoothed": mean, "low": point.low, "high": point.high}
        for point, mean in zip(points, smoothed, strict=True)
    ]
    data = pd.DataFrame(rows, columns=["x", "value", "smoothed", "low", "high"])
    scale = _log_scale(points) if logarithmic else alt.Scale(zero=False, nice=True)
    x = alt.X("x:Q", title=None, scale=alt.Scale(nice=False), axis=_count_axis())
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4, labelExpr=_VALUE_LABEL))
    tooltip = [
        alt.Tooltip("x:Q", title=over, format=",.6~g"),
        alt.Tooltip("value:Q", title=series.key, format=".4~g"),
        alt.Tooltip("smoothed:Q", format=".4~g"),
    ]
    base = alt.Chart(data)
    layers: list[alt.Chart] = []
    if any(point.high > point.low for point in points):
        layers.append(base.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q"))
    if smoothing > 0:
        layers.append(base.mark_line(opacity=0.28, strokeWidth=1).encode(x=x, y=y))
    layers.append(base.mark_line(strokeWidth=1.8).encode(x=x, y=alt.Y("smoothed:Q", title=None, scale=scale)))
    if len(points) <= 1:
        layers.append(base.mark_point(filled=True, size=50).encode(x=x, y=y))
    layers.append(_nearest(base, x, y, tooltip))
    return _together(*layers, height=165)


_VALUE_LABEL = (
    "abs(datum.value) >= 100000 ? format(datum.value, '.3~s')"
    " : datum.value != 0 && abs(datum.value) < 0.001 ? format(datum.value, '.1~e')"
    " : format(datum.value, ',.4~r')"
)
"""Digits that a reader takes in: 5,600 and 0.05, not 5.6e+3 and 50m."""


def _x(point: Point, over: str) -> float:
    return point.seconds if over == "seconds" else float(point.step)


def _log_scale(points: Sequence[Point]) -> alt.Scale:
    """Logarithmic where every value allows it, symmetric around zero elsewhere."""
    positive = all(point.low > 0 for point in points)
    return alt.Scale(type="log") if positive else alt.Scale(type="symlog", constant=1e-3)


def _count_axis() -> alt.Axis:
    return alt.Axis(labelExpr=_VALUE_LABEL, tickCount=5, grid=False, labelFlush=True, labelOverlap=True)


def _nearest(base: alt.Chart, x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip]) -> alt.Chart:
    hover = alt.selection_point(nearest=True, on="pointerover", fields=["x"], empty=False)
    shown = alt.condition(hover, alt.value(1), alt.value(0))
    marks = base.mark_point(filled=True, size=55).encode(x=x, y=y, opacity=shown, tooltip=tooltip)
    return cast(alt.Chart, marks.add_params(hover))


def learning_curves(curves: Mapping[str, Sequence[EvaluationRow]], *, over: str = "step", height: int = 340) -> Chart:
    """Evaluations over a cost, one colour and shape a name, each point with its 95 % interval."""
    rows = [
        {
            "name": name,
            "x": row.at(over),
            "step": row.step,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "count": row.count,
            "interval": wording.interval(row.mean, row.low, row.high),
        }
        for name, evaluations in curves.items()
        for row in evaluations
        if row.at(over) is not None
    ]
    data = pd.DataFrame(rows, columns=["name", "x", "step", "mean", "low", "high", "count", "interval"])
    names = list(curves)
    legend = alt.Legend(
        title=None,
        orient="top",
        symbolSize=80,
        labelLimit=320,
        columns=4,
        offset=6,
        symbolOpacity=1,
        symbolStrokeWidth=0,
    )
    shape_range = list(itertools.islice(itertools.cycle(_SHAPES), len(names)))
    dash_range = list(itertools.islice(itertools.cycle(_DASHES), len(names)))
    x = alt.X("x:Q", title=wording.axis(over), axis=_count_axis(), scale=alt.Scale(nice=False, padding=8))
    scale = alt.Scale(zero=False, nice=True)
    y = alt.Y("mean:Q", title="score", scale=scale, axis=alt.Axis(tickCount=5, format=".2~f"))
    colour = alt.Color("name:N", scale=alt.Scale(domain=names), legend=legend)
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=shape_range), legend=legend)
    dash = alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=dash_range), legend=legend)
    tooltip = [
        alt.Tooltip("name:N", title="curve"),
        alt.Tooltip("x:Q", title=wording.axis(over), format=",.6~g"),
        alt.Tooltip("interval:N", title="mean [95 %]"),
        alt.Tooltip("count:Q", title="scores"),
    ]
    base = alt.Chart(data)
    band = base.mark_area(opacity=0.13).encode(
        x=x, y=alt.Y("low:Q", title="score", scale=scale), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash)
    points = base.mark_point(filled=True, size=46, opacity=1).encode(
        x=x, y=y, color=colour, shape=shape, tooltip=tooltip
    )
    return _together(band, line, points, height=height)


def candidates(decisions: Sequence[Sequence[Candidate]], ink: Ink) -> Chart:
    """Q-values of every decision's candidates; the executed one is filled and joined to the next."""
    rows = [
        {
            "decision": index,
            "q": candidate.q,
            "executed": "executed" if candidate.chosen else "candidate",
            "candidate": place,
        }
        for index, decision in enumerate(decisions, start=1)
        for place, candidate in enumerate(decision, start=1)
        if candidate.q is not None
    ]
    data = pd.DataFrame(rows, columns=["decision", "q", "executed", "candidate"])
    order = list(range(1, len(decisions) + 1))
    x = alt.X("decision:O", title="decision", scale=alt.Scale(domain=order), axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        "q:Q",
        title="Q-value",
        scale=alt.Scale(zero=False, nice=True, padding=6),
        axis=alt.Axis(tickCount=5, format=".2~f"),
    )
    tooltip = [
        alt.Tooltip("decision:O"),
        alt.Tooltip("candidate:O"),
        alt.Tooltip("q:Q", title="Q-value", format=".4f"),
        alt.Tooltip("executed:N", title="was"),
    ]
    base = alt.Chart(data)
    path = base.transform_filter("datum.executed == 'executed'").mark_line(color=ink.accent, strokeWidth=1.6)
    rivals = base.transform_filter("datum.executed != 'executed'").mark_point(color=ink.quiet, size=58, strokeWidth=1.6)
    taken = base.transform_filter("datum.executed == 'executed'").mark_point(
        color=ink.accent, filled=True, size=150, shape="diamond", opacity=1
    )
    layers = (path.encode(x=x, y=y), rivals.encode(x=x, y=y, tooltip=tooltip), taken.encode(x=x, y=y, tooltip=tooltip))
    return _together(*layers, height=260)


def item_scores(rows: Mapping[str, EvaluationRow], *, height: int = 260) -> Chart:
    """The mean score of every dataset item in one evaluation, beside that of another where two are given."""
    records = [
        {"name": name, "item": item, "mean": sum(scores) / len(scores), "count": len(scores)}
        for name, row in rows.items()
        for item, scores in row.items
        if scores
    ]
    data = pd.DataFrame(records, columns=["name", "item", "mean", "count"])
    names = list(rows)
    legend = alt.Legend(title=None, orient="top") if len(names) > 1 else None
    bars = (
        alt.Chart(data)
        .mark_bar()
        .encode(
            x=alt.X("item:O", title="dataset item", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            xOffset=alt.XOffset("name:N", scale=alt.Scale(domain=names)),
            y=alt.Y("mean:Q", title="mean score", axis=alt.Axis(tickCount=4, format=".2~f")),
            color=alt.Color("name:N", scale=alt.Scale(domain=names), legend=legend),
            tooltip=[
                alt.Tooltip("name:N", title="evaluation"),
                alt.Tooltip("item:O"),
                alt.Tooltip("mean:Q", format=".3f"),
                alt.Tooltip("count:Q", title="scores"),
            ],
        )
        .properties(height=height)
    )
    return cast(alt.Chart, bars)
