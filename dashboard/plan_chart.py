"""A run's plan as a chart: a box a stage with its state and progress, an arrow an artifact handed on.

Pure like `charts`: rows and the time in, an Altair chart out. An arrow to the next column goes straight; one that
passes over a column runs below all boxes, so that it is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import altair as alt
import pandas as pd

from dashboard import wording
from dashboard.charts import Ink
from dashboard.queries import StageRow

BOX_W, BOX_H, GAP_X, GAP_Y = 212.0, 74.0, 60.0, 18.0
LANE = 14.0
"""Distance between arrows that run below the boxes."""
HEAD = 7.0
"""How far an arrow's point stands off its box."""

Place = tuple[float, float]


def plan(stages: Sequence[StageRow], ink: Ink, now: datetime) -> alt.LayerChart:
    """The plan from left to right, as its stages stand now."""
    places = _places(stages)
    paths, heads = _arrows(stages, places)
    width = max(x for x, _ in places.values()) + BOX_W + 2
    height = max([y + BOX_H for _, y in places.values()] + [y for _, _, _, y in paths]) + 3
    across, down = alt.Scale(domain=[-2, width], nice=False), alt.Scale(domain=[height, -2], nice=False)

    def at(x: str, y: str) -> dict[str, Any]:
        return {"x": alt.X(f"{x}:Q", axis=None, scale=across), "y": alt.Y(f"{y}:Q", axis=None, scale=down)}

    boxes = alt.Chart(pd.DataFrame([_box(stage, places[stage.name], now) for stage in stages]))
    colour = alt.Color("colour:N", scale=None)
    tooltip = [
        alt.Tooltip("name:N", title="stage"),
        *(alt.Tooltip(f"{field}:N") for field in ("kind", "status", "attempt", "took", "reads")),
    ]
    layers = [
        alt.Chart(pd.DataFrame(paths, columns=["arrow", "order", "x", "y"]))
        .mark_line(color=ink.quiet, strokeWidth=1.4, strokeJoin="round")
        .encode(**at("x", "y"), detail="arrow:N", order="order:Q"),
        alt.Chart(pd.DataFrame(heads, columns=["x", "y", "shape"]))
        .mark_point(filled=True, size=60, color=ink.quiet, opacity=1)
        .encode(**at("x", "y"), shape=alt.Shape("shape:N", scale=None)),
        boxes.mark_rect(cornerRadius=7, fill=ink.paper, strokeWidth=1.6).encode(
            **at("x", "y"), x2="x2:Q", y2="y2:Q", stroke=alt.Stroke("colour:N", scale=None), tooltip=tooltip
        ),
        boxes.mark_rect(cornerRadius=2, color=ink.line).encode(**at("bar", "bar_y"), x2="bar_end:Q", y2="bar_y2:Q"),
        boxes.mark_rect(cornerRadius=2).encode(**at("bar", "bar_y"), x2="bar_done:Q", y2="bar_y2:Q", color=colour),
        boxes.mark_text(
            align="left", baseline="middle", fontSize=14, fontWeight=600, color=ink.text, limit=BOX_W - 118
        ).encode(**at("bar", "title_y"), text="name:N"),
        boxes.mark_text(align="right", baseline="middle", fontSize=12, fontWeight=600, limit=92).encode(
            **at("bar_end", "title_y"), text="state:N", color=colour
        ),
        boxes.mark_text(align="left", baseline="middle", fontSize=12, color=ink.quiet, limit=BOX_W - 24).encode(
            **at("bar", "line_y"), text="line:N"
        ),
    ]
    drawn = alt.layer(*layers).properties(width=width, height=height, padding=0)
    return cast(alt.LayerChart, drawn.configure_view(stroke=None, fill=None))


def _places(stages: Sequence[StageRow]) -> dict[str, Place]:
    """Left edge and top of each box: a stage stands right of all that it reads."""
    depth: dict[str, int] = {}
    for stage in stages:
        depth[stage.name] = 1 + max((depth[name] for name in stage.inputs), default=-1)
    rows: dict[int, int] = {}
    places = {}
    for stage in stages:
        column = depth[stage.name]
        row = rows.get(column, 0)
        rows[column] = row + 1
        places[stage.name] = (column * (BOX_W + GAP_X), row * (BOX_H + GAP_Y))
    return places


def _arrows(
    stages: Sequence[StageRow], places: dict[str, Place]
) -> tuple[list[tuple[str, int, float, float]], list[tuple[float, float, str]]]:
    """Corners of every arrow, as (arrow, order, x, y), and the heads, as (x, y, shape)."""
    floor = max(y for _, y in places.values()) + BOX_H
    paths: list[tuple[str, int, float, float]] = []
    heads: list[tuple[float, float, str]] = []
    lanes = 0
    for stage in stages:
        for name in dict.fromkeys(stage.inputs):
            (x0, y0), (x1, y1) = places[name], places[stage.name]
            if x1 - x0 <= BOX_W + GAP_X:
                middle = x1 - GAP_X / 2
                start, end = y0 + BOX_H / 2, y1 + BOX_H / 2
                corners = [(x0 + BOX_W, start), (middle, start), (middle, end), (x1 - HEAD, end)]
                heads.append((x1 - HEAD, end, "triangle-right"))
            else:
                lanes += 1
                lane = floor + lanes * LANE
                leaves, enters = x0 + BOX_W - 8 - 12 * lanes, x1 + 8 + 12 * lanes
                corners = [(leaves, y0 + BOX_H), (leaves, lane), (enters, lane), (enters, y1 + BOX_H + HEAD)]
                heads.append((enters, y1 + BOX_H + HEAD, "triangle-up"))
            paths.extend((f"{name}>{stage.name}", order, x, y) for order, (x, y) in enumerate(corners))
    return paths, heads


def _box(stage: StageRow, place: Place, now: datetime) -> dict[str, Any]:
    x, y = place
    left, end = x + 12, x + BOX_W - 12
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status,
        "state": wording.status(stage.status),
        "attempt": f"{stage.attempt} of {stage.max_attempts}",
        "took": wording.duration(stage.seconds(now)),
        "reads": ", ".join(dict.fromkeys(stage.inputs)) or wording.NOTHING,
        "line": _line(stage, now),
        "colour": wording.look(stage.status).colour,
        "x": x,
        "x2": x + BOX_W,
        "y": y,
        "y2": y + BOX_H,
        "title_y": y + 20,
        "line_y": y + 42,
        "bar": left,
        "bar_end": end,
        "bar_done": left + (end - left) * stage.share,
        "bar_y": y + 58,
        "bar_y2": y + 62,
    }


def _line(stage: StageRow, now: datetime) -> str:
    """What there is to say of a stage beside its state."""
    took = wording.duration(stage.seconds(now))
    if stage.cached:
        return "from the cache"
    if stage.status == "running":
        amount = f"{wording.count(stage.done)} of {wording.count(stage.total)}" if stage.total else "at work"
        left = stage.remaining(now)
        return f"{amount}, {took}" if left is None else f"{amount}, {wording.duration(left)} left"
    if stage.started_at is None:
        return "not started"
    return f"{took}, attempt {stage.attempt}" if stage.attempt > 1 else took
