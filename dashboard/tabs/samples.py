"""What a run's policy wrote: a list to choose from, and one trajectory with its candidates and their Q-values.

All of it is model output, so all of it is plain text: table cells and code blocks, never Markdown or HTML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import charts, parts, state, trajectories, wording
from dashboard.queries import RunDetail
from dashboard.state import BOUND
from dashboard.trajectories import Candidate, SampleDetail, SampleRow

ORDERS = ("newest", "best", "worst")


def show(run: RunDetail) -> None:
    with parts.reading() as session:
        splits, steps, total = trajectories.sample_facets(session, run.id)
    if not total:
        parts.empty(
            "No sample was stored yet. Evaluations store some of what they generate:", f"rlx samples {run.handle}"
        )
        return
    rows = chosen(run, splits, steps)
    if not rows:
        st.caption("No sample passes these filters.")
        return
    table, one = st.columns([2, 3], gap="medium")
    with table:
        picked = listing(rows, total)
    with parts.reading() as session:
        found = trajectories.sample(session, run.id, picked)
    with one:
        if found is not None:
            detail(found)


def chosen(run: RunDetail, splits: Sequence[str], steps: Sequence[int]) -> list[SampleRow]:
    """The samples that pass the filters in one row above them."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        order = st.segmented_control("Order", ORDERS, default="newest", required=True, key="order", bind=BOUND)
        split = st.segmented_control("Split", splits, key="split", bind=BOUND) if len(splits) > 1 else None
        step = st.selectbox("Step", steps, index=None, placeholder="any", key="step", bind=BOUND, width=130)
        containing = st.text_input(
            "Text", key="text", bind=BOUND, placeholder="any", live=True, type="search", width=240
        )
    with parts.reading() as session:
        return trajectories.find_samples(
            session, run.id, split=split, step=step, containing=(containing or "").strip(), order=order or "newest"
        )


def listing(rows: list[SampleRow], total: int) -> int:
    """The samples as a table; returns the id of the one that is open, which the URL remembers."""
    ids = [row.id for row in rows]
    wanted = state.number_parameter(state.SAMPLE)
    start = ids.index(wanted) if wanted in ids else 0
    columns = st.column_config
    event = st.dataframe(
        pd.DataFrame(
            [
                {
                    "step": row.step,
                    "split": row.split,
                    "item": row.item,
                    "score": row.score,
                    "text": wording.ending(row.text),
                }
                for row in rows
            ]
        ),
        hide_index=True,
        height=640,
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [start]}},
        placeholder=wording.NOTHING,
        alt=f"{len(rows)} samples",
        column_config={
            "step": columns.NumberColumn("Step", format="localized", width=56),
            "split": columns.TextColumn("Split", width=72),
            "item": columns.NumberColumn("Item", format="%d", width=50),
            "score": columns.NumberColumn("Score", format="%.3f", width=64),
            "text": columns.TextColumn("How it ends", width=300),
        },
    )
    st.caption(f"{len(rows)} of {total} samples.")
    selected = event["selection"]["rows"]
    picked = ids[selected[0]] if selected and selected[0] < len(ids) else ids[start]
    if picked != wanted:
        state.keep(state.SAMPLE, picked)
    return picked


def detail(found: SampleDetail) -> None:
    """One sample: its text, and for every decision the candidates with their Q-values."""
    item = None if found.item is None else f"item {found.item}"
    st.markdown(f"##### Step {found.step}, score {wording.score(found.score)}")
    st.caption(wording.plain(wording.joined([found.kind, found.split, item])))
    parts.shown(found.text, height=260 if found.text.count("\n") > 9 or len(found.text) > 900 else None)
    if found.decisions:
        trajectory(found.decisions)
    if found.rest:
        with st.expander("What else was recorded"):
            parts.shown(json.dumps(found.rest, indent=2, ensure_ascii=False), language="json")


def trajectory(decisions: Sequence[Sequence[Candidate]]) -> None:
    """The decisions of an episode: Q-values of all candidates, then their texts, the executed one marked."""
    st.markdown("##### Candidates and their Q-values")
    parts.chart(
        charts.candidates(decisions, parts.ink()),
        "candidates",
        alt="Q-values of the candidates by decision; the executed one is filled",
    )
    st.caption(
        "◆ executed  ·  ○ another candidate. Below, the candidates of one decision from the highest Q-value down."
    )
    numbers = [str(number) for number in range(1, len(decisions) + 1)]
    which = st.segmented_control("Decision", numbers, default=numbers[0], required=True, key="decision", bind=BOUND)
    ranked = sorted(
        decisions[int(which or 1) - 1], key=lambda candidate: -(candidate.q if candidate.q is not None else -1e9)
    )
    for candidate in ranked:
        value, text = st.columns([1.4, 6], gap="small", vertical_alignment="top")
        with value:
            q = wording.score(candidate.q)
            if candidate.chosen:
                st.badge(f"{q} executed", icon=":material/check:", color="primary")
            else:
                st.badge(q, color="gray")
        with text:
            parts.shown(candidate.text)
