"""What a run scored: learning curves with intervals over a cost, the numbers, and the scores of single items."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import charts, evidence, parts, wording
from dashboard.evidence import EvaluationRow
from dashboard.queries import RunDetail
from dashboard.state import BOUND


def show(run: RunDetail) -> None:
    with parts.reading() as session:
        rows = evidence.evaluations_of(session, run.id)
    if not rows:
        parts.empty(
            "Nothing was evaluated yet. A finished or stopped run can be evaluated at any checkpoint:",
            f"rlx eval {run.handle} --checkpoint latest --runs-per-item 20",
        )
        return
    axes = evidence.axes(rows)
    over = st.segmented_control(
        "Over",
        axes,
        default="step",
        required=True,
        key="axis",
        bind=BOUND,
        format_func=wording.axis,
    )
    curves = evidence.curves(rows)
    parts.chart(charts.learning_curves(curves, over=over or "step"), "learning", alt="Mean scores with 95 % intervals")
    table(rows)
    items(rows)


def table(rows: list[EvaluationRow]) -> None:
    """Every evaluation, the newest first."""
    columns = st.column_config
    cells = [
        {
            "stage": row.stage,
            "step": row.step,
            "metric": row.metric,
            "split": row.split,
            "mean": row.mean,
            "interval": f"[{wording.score(row.low)}, {wording.score(row.high)}]",
            "count": row.count,
            "items": len(row.items),
            "episodes": row.cost.get("scored_episodes"),
            "tokens": row.cost.get("generated_tokens"),
            "seconds": row.cost.get("seconds"),
        }
        for row in reversed(rows)
    ]
    st.dataframe(
        pd.DataFrame(cells),
        hide_index=True,
        height="auto",
        key="evaluations",
        placeholder=wording.NOTHING,
        alt=f"{len(rows)} evaluations, the newest first",
        column_config={
            "stage": columns.TextColumn("Stage", width=100),
            "step": columns.NumberColumn("Step", format="localized", width=70),
            "metric": columns.TextColumn("Metric", width=140),
            "split": columns.TextColumn("Split", width=90),
            "mean": columns.NumberColumn("Mean", format="%.3f", width=80),
            "interval": columns.TextColumn("95 % interval", width=130),
            "count": columns.NumberColumn("Scores", format="localized", width=80),
            "items": columns.NumberColumn("Items", format="localized", width=70),
            "episodes": columns.NumberColumn("Scored episodes", format="localized", width=130),
            "tokens": columns.NumberColumn("Generated tokens", format="localized", width=140),
            "seconds": columns.NumberColumn("Seconds", format="%.0f", width=90),
        },
    )


def items(rows: list[EvaluationRow]) -> None:
    """The scores of the single dataset items in the last evaluation of a metric on a split."""
    last = {f"{row.metric} on {row.split}": row for row in rows if len(row.items) > 1}
    if not last:
        return
    st.markdown("##### By dataset item, in the last evaluation")
    chosen = st.segmented_control(
        "Evaluation",
        list(last),
        default=next(iter(last)),
        required=True,
        key="evaluation",
        bind=BOUND,
        label_visibility="collapsed",
    )
    name = chosen or next(iter(last))
    parts.chart(charts.item_scores({name: last[name]}), "items", alt=f"Mean score of every item, {name}")
