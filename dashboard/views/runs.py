"""All runs: filters, live status, the course of each score, and the way to one run or to two side by side."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import parts, queries, state, wording
from dashboard.queries import RunRow
from dashboard.state import BOUND, Filters

OPENED, TABLE = "opened", "chosen"


def page() -> None:
    with parts.reading() as session:
        counts, tags = queries.statuses(session), queries.tags(session)
    if not counts:
        st.title("Runs")
        parts.empty(
            "There are no runs yet. This trains a small language model in a few minutes on two CPU cores:",
            "rlx submit specs/best_lang.yaml",
        )
        return
    live(filters(counts, tags), sum(counts.values()))


def filters(counts: dict[str, int], tags: list[str]) -> Filters:
    """What to list, chosen in one row and kept in the URL."""
    st.title("Runs")
    name, status, tag = st.columns([2, 5, 2], vertical_alignment="bottom", gap="medium")
    said = name.text_input("Name or user", key="name", bind=BOUND, placeholder="best-lang", live=True, type="search")
    offered = [option for option in wording.STATUSES if option in counts]
    # Labels are what the URL holds, so they stay plain words; how many there are of each stands below.
    statuses = status.pills("Status", offered, selection_mode="multi", key="status", bind=BOUND)
    chosen = tag.multiselect("Tags", tags, key="tag", bind=BOUND, placeholder="any" if tags else "no run has tags")
    return Filters(name=(said or "").strip(), statuses=tuple(statuses), tags=tuple(chosen))


@st.fragment(run_every=state.LIVE_S)
def live(chosen: Filters, total: int) -> None:
    """The table, read again every few seconds."""
    with parts.reading() as session:
        rows = queries.find_runs(session, name=chosen.name, statuses=chosen.statuses, tags=chosen.tags)
    if not rows:
        parts.empty("No run passes these filters. The command line finds runs too:", "rlx ls")
        return
    actions = st.container(horizontal=True, vertical_alignment="center", height=44, border=False)
    picked = table(rows, parts.now())
    with actions:
        offer(rows, picked, total)


def table(rows: list[RunRow], now: datetime) -> list[str]:
    """The runs as a table; returns the handles that are ticked. A click on a handle opens its page."""
    columns = st.column_config
    lowest = min(0.0, *(score for row in rows for score in row.scores), 0.0)
    highest = max((score for row in rows for score in row.scores), default=1.0)
    event = st.dataframe(
        pd.DataFrame([_cells(row, now) for row in rows]),
        key=TABLE,
        hide_index=True,
        height="content" if len(rows) <= 20 else 760,
        row_height=38,
        on_select="rerun",
        selection_mode="multi-row",
        placeholder=wording.NOTHING,
        alt=f"{len(rows)} runs, the newest first",
        column_config={
            "run": columns.ButtonColumn("Run", type="tertiary", alignment="left", pinned=True, width=176, key=OPENED),
            "status": columns.MultiselectColumn(
                "Status",
                width=112,
                options=list(wording.STATUSES),
                color=[wording.look(status).colour for status in wording.STATUSES],
                format_func=wording.status,
            ),
            "scores": columns.LineChartColumn(
                "Score", width=120, y_min=lowest, y_max=highest, color="primary", help="Evaluations over the run"
            ),
            "best": columns.NumberColumn("Best", format="%.3f", width=62, help="Highest mean of an evaluation"),
            "last": columns.NumberColumn("Last", format="%.3f", width=62, help="Mean of the last evaluation"),
            "progress": columns.ProgressColumn("Progress", format="%d %%", min_value=0, max_value=100, width=124),
            "stage": columns.TextColumn("At", width=76, help="The stage that is at work, or where it failed"),
            "method": columns.TextColumn("Method", width=82),
            "seed": columns.NumberColumn("Seed", format="%d", width=52),
            "took": columns.NumberColumn("Took", format="compact", width=78),
            "submitted": columns.DatetimeColumn("Submitted", format="distance", width=122),
            "tags": columns.ListColumn("Tags", width=176),
            "spec": columns.TextColumn("Spec", width=156),
            "user": columns.TextColumn("User", width=76),
            "model": columns.TextColumn("Model", width=160),
        },
    )
    if (click := st.session_state.get(OPENED)) is not None:
        st.switch_page(state.RUN_PAGE, query_params=state.run_link(click["label"]))
    return [rows[index].handle for index in event["selection"]["rows"] if index < len(rows)]


def _cells(row: RunRow, now: datetime) -> dict[str, Any]:
    summary, seconds = row.summary, row.seconds(now)
    return {
        "run": row.handle,
        "status": [summary.status],
        "scores": list(row.scores),
        "best": summary.score_best,
        "last": summary.score_last,
        "progress": round(100 * summary.progress),
        "stage": summary.stage,
        "method": row.method,
        "seed": summary.seed,
        "took": None if seconds is None else timedelta(seconds=round(seconds)),
        "submitted": summary.submitted_at.astimezone(),
        "tags": [*summary.tags, *(["tiny"] if summary.tiny else [])],
        "spec": summary.spec,
        "user": summary.user,
        "model": row.model,
    }


def offer(rows: list[RunRow], picked: list[str], total: int) -> None:
    """What can be done with the ticked runs."""
    if len(picked) == 1:
        st.page_link(
            state.RUN_PAGE,
            label=f"Open {picked[0]}",
            icon=":material/monitoring:",
            query_params=state.run_link(picked[0]),
        )
        st.caption("Tick a second run to compare.")
    elif len(picked) == 2:
        first, second = sorted(picked, key=lambda handle: _submitted(rows, handle))
        st.page_link(
            state.COMPARE_PAGE,
            label=f"Compare {first} with {second}",
            icon=":material/compare_arrows:",
            query_params=state.compare_link(first, second),
        )
    else:
        said = "Two at a time can be compared." if picked else "Click a name to open a run; tick two to compare them."
        st.caption(f"{_count(rows, total)}. {said}")


def _count(rows: list[RunRow], total: int) -> str:
    """`12 runs: 8 succeeded, 1 running`, and of how many where some are not shown."""
    shown = Counter(row.summary.status for row in rows)
    listed = ", ".join(f"{shown[status]} {status}" for status in wording.STATUSES if shown[status])
    of = f" of {total}" if total > len(rows) else ""
    return f"{len(rows)}{of} {'run' if total == 1 else 'runs'}: {listed}"


def _submitted(rows: list[RunRow], handle: str) -> datetime:
    return next(row.summary.submitted_at for row in rows if row.handle == handle)


page()
