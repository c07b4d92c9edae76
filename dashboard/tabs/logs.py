"""The ends of a run's logs, one an attempt, and what happened to the run."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from dashboard import evidence, parts, state, wording
from dashboard.evidence import AttemptRow
from dashboard.queries import RunDetail
from dashboard.state import BOUND
from engine.runtime.task import service_logs


def show(run: RunDetail) -> None:
    st.fragment(draw, run_every=state.LIVE_S if run.status in wording.ACTIVE else None)(run)


def draw(run: RunDetail) -> None:
    with parts.reading() as session:
        attempts = evidence.attempts_of(session, run.id)
        events = evidence.events_of(session, run.id)
    if attempts:
        names = {f"{row.stage}, attempt {row.number}": row for row in attempts}
        chosen = st.segmented_control(
            "Attempt",
            list(names),
            default=next(iter(names)),
            required=True,
            key="attempt",
            bind=BOUND,
        )
        _log(run, names[chosen or next(iter(names))])
    else:
        parts.empty(
            "No stage has started yet. `rlx worker` starts one that takes what waits:",
            "rlx worker",
            f"rlx logs {run.handle} -f",
        )
    if not events:
        return
    st.markdown("##### Events")
    st.dataframe(
        pd.DataFrame(
            [{"time": row.time.astimezone(), "kind": row.kind, "message": row.message} for row in events],
            columns=["time", "kind", "message"],
        ),
        hide_index=True,
        key="events",
        alt=f"{len(events)} events, the newest first",
        column_config={
            "time": st.column_config.DatetimeColumn("Time", format="YYYY-MM-DD HH:mm:ss", width=170),
            "kind": st.column_config.TextColumn("Kind", width=120),
            "message": st.column_config.TextColumn("What happened", width=800),
        },
    )


def _log(run: RunDetail, row: AttemptRow) -> None:
    seconds = ((row.finished_at or parts.now()) - row.started_at).total_seconds()
    where = f"on {row.worker}" if row.worker else None
    st.caption(
        wording.plain(
            wording.joined(
                [row.status, f"began {wording.stamp(row.started_at)}", wording.duration(seconds), where, row.cause]
            )
        )
    )
    if row.error:
        parts.shown(row.error)
    if text := evidence.log_end(row, parts.settings().logs):
        parts.shown(text, height=420, wrap=False)
        st.caption("The end of the log. All of it:")
    else:
        st.caption("Nothing was written to the log so far. To follow it:")
    follow = " -f" if run.status in wording.ACTIVE else ""
    parts.command(f"rlx logs {run.handle}{follow}")
    for service, log in service_logs(row.log_path).items():
        st.caption(f"The service {wording.plain(service)} that ran beside it:")
        if text := evidence.log_end(replace(row, log_path=str(log), log_tail=""), parts.settings().logs):
            parts.shown(text, height=220, wrap=False)
        parts.command(f"rlx logs {run.handle} --service {service}{follow}")
