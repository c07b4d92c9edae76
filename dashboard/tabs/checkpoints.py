"""The resumable states of a run: which there are, how large, and how to load one."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import evidence, parts, wording
from dashboard.queries import RunDetail


def show(run: RunDetail) -> None:
    with parts.reading() as session:
        rows = evidence.checkpoints_of(session, run.id)
    if not rows:
        parts.empty(
            "No checkpoint yet. A run that stops or is cancelled writes one, and goes on from there:",
            f"rlx resume {run.handle}",
        )
        return
    columns = st.column_config
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "step": row.step,
                    "labels": list(row.labels),
                    "stage": row.stage,
                    "size": wording.size(row.bytes),
                    "made": row.created_at.astimezone(),
                    "sha256": row.sha256[:12],
                    "where": row.uri,
                }
                for row in rows
            ]
        ),
        hide_index=True,
        key="checkpoints",
        alt=f"{len(rows)} checkpoints, the newest first",
        column_config={
            "step": columns.NumberColumn("Step", format="localized", width=80),
            "labels": columns.ListColumn("Labels", width=130),
            "stage": columns.TextColumn("Stage", width=100),
            "size": columns.TextColumn("Size", width=90, alignment="right"),
            "made": columns.DatetimeColumn("Made", format="YYYY-MM-DD HH:mm:ss", width=160),
            "sha256": columns.TextColumn("SHA-256", width=120),
            "where": columns.TextColumn("Where", width=560),
        },
    )
    labelled = next((row for row in rows if "best" in row.labels), rows[0])
    label = "best" if "best" in labelled.labels else f"step-{labelled.step}"
    st.caption("Evaluate one with fresh samples, or train on from it in another spec:")
    parts.command(
        f"rlx eval {run.handle} --checkpoint {label} --runs-per-item 20\n"
        f"rlx submit SPEC model.name=run:{run.handle}@{label}"
    )
