"""The curves of a run: its learning curve with intervals, then one small chart a metric."""

from __future__ import annotations

from itertools import groupby

import streamlit as st

from dashboard import charts, evidence, parts, state
from dashboard.evidence import SeriesRow
from dashboard.queries import RunDetail
from dashboard.state import BOUND
from dashboard.wording import ACTIVE, plain

SMOOTHINGS = ("0", "0.5", "0.8", "0.95")
ABREAST = 3
LAST = ("cost", "perf", "time")
"""Groups that measure the machine, not the learning."""


def show(run: RunDetail) -> None:
    """All metrics; while the run is at work they are read again every few seconds."""
    st.fragment(draw, run_every=state.LIVE_S * 2 if run.status in ACTIVE else None)(run)


def draw(run: RunDetail) -> None:
    with parts.reading() as session:
        series = evidence.series_of(session, run.id)
    if not series:
        parts.empty(
            "No metric was written yet. They appear here as the stages write them; to follow in a terminal:",
            f"rlx watch {run.handle}",
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        containing = st.text_input(
            "Metric", key="metric", bind=BOUND, placeholder="any", live=True, type="search", width=220
        )
        smoothing = st.segmented_control(
            "Smoothing", SMOOTHINGS, default="0.5", required=True, key="smoothing", bind=BOUND
        )
        over = st.segmented_control("Over", ("step", "seconds"), default="step", required=True, key="over", bind=BOUND)
        logarithmic = st.toggle("Logarithmic", key="log", bind=BOUND)
    wanted = [row for row in series if (containing or "").lower() in row.key.lower()]
    if not wanted:
        st.caption("No metric of this run has that in its name.")
    for (stage, group), rows in groups(wanted):
        st.markdown(f"##### {plain(stage)} · {plain(group)}" if group not in ("", stage) else f"##### {plain(stage)}")
        for start in range(0, len(rows), ABREAST):
            line = rows[start : start + ABREAST]
            for column, row in zip(st.columns(ABREAST, gap="medium"), line, strict=False):
                with column:
                    _one(row, float(smoothing or 0), over or "step", logarithmic)


def groups(series: list[SeriesRow]) -> list[tuple[tuple[str, str], list[SeriesRow]]]:
    """Metrics by stage and by what stands before the slash: later stages first, what measures costs last.

    A key without a slash goes with those that begin with it: `score` with `score/generator`.
    """
    heads = {row.key.partition("/")[0] for row in series if "/" in row.key}

    def group(row: SeriesRow) -> str:
        head = row.key.partition("/")[0]
        return head if head in heads else ""

    def place(row: SeriesRow) -> tuple[int, int, str, str]:
        return -row.position, LAST.index(group(row)) + 1 if group(row) in LAST else 0, group(row), row.key

    ordered = sorted(series, key=place)
    return [(name, list(rows)) for name, rows in groupby(ordered, key=lambda row: (row.stage, group(row)))]


def _one(row: SeriesRow, smoothing: float, over: str, logarithmic: bool) -> None:
    st.markdown(f"**{plain(row.key)}**")
    drawn = charts.metric(row, smoothing=smoothing, over=over, logarithmic=logarithmic)
    parts.chart(drawn, f"{row.stage}/{row.key}", alt=f"{row.key} over {over}")
