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
FIRST = ("score", "eval", "rollout", "train")
LAST = ("iteration_seconds", "cost", "perf", "time")
"""Beginnings of keys: what one came to see, and what measures the machine."""


def show(run: RunDetail) -> None:
    """All metrics; while the run is at work they are read again every few seconds."""
    st.fragment(draw, run_every=state.LIVE_S * 2 if run.status in ACTIVE else None)(run)


def draw(run: RunDetail) -> None:
    with parts.reading() as session:
        series = evidence.series_of(session, run.id)
        evaluations = evidence.evaluations_of(session, run.id)
    if not series:
        parts.empty(
            "No metric was written yet. They appear here as the stages write them; to follow in a terminal:",
            f"rlx watch {run.handle}",
        )
        return
    if evaluations:
        drawn = charts.learning_curves(evidence.curves(evaluations), height=280)
        parts.chart(drawn, "evaluated", alt="Evaluated scores with 95 % intervals over steps")
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
    for stage, rows in by_stage(wanted):
        st.markdown(f"##### {plain(stage)}")
        for start in range(0, len(rows), ABREAST):
            line = rows[start : start + ABREAST]
            for column, row in zip(st.columns(ABREAST, gap="medium"), line, strict=False):
                with column:
                    _one(row, float(smoothing or 0), over or "step", logarithmic)


def by_stage(series: list[SeriesRow]) -> list[tuple[str, list[SeriesRow]]]:
    """Metrics by stage, later stages first; within one, what is learnt before what it costs, and kin together."""

    def place(row: SeriesRow) -> tuple[int, int, str]:
        head = row.key.partition("/")[0]
        rank = FIRST.index(head) - len(FIRST) if head in FIRST else 2 if head in LAST else int("/" not in row.key)
        return -row.position, rank, row.key

    return [(stage, list(rows)) for stage, rows in groupby(sorted(series, key=place), key=lambda row: row.stage)]


def _one(row: SeriesRow, smoothing: float, over: str, logarithmic: bool) -> None:
    st.caption(plain(row.key))
    drawn = charts.metric(row, smoothing=smoothing, over=over, logarithmic=logarithmic)
    parts.chart(drawn, f"{row.stage}/{row.key}", alt=f"{row.key} over {over}")
