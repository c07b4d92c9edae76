"""What a run was asked to do: its spec, the changes since the revision before, and what it ran with."""

from __future__ import annotations

from difflib import unified_diff

import pandas as pd
import streamlit as st

from dashboard import parts, queries, wording
from dashboard.queries import RunDetail


def show(run: RunDetail) -> None:
    with parts.reading() as session:
        before = queries.previous_source(session, run.spec_name, run.revision)
    source, facts = st.columns([3, 2], gap="large")
    with source:
        st.markdown(f"##### {wording.plain(run.spec)}")
        parts.shown(run.source, language="yaml")
    with facts:
        st.markdown("##### Changes")
        changes(run, before)
        st.markdown("##### Ran with")
        parts.facts(_environment(run))


def changes(run: RunDetail, before: str | None) -> None:
    """Overrides of this run, and the difference to the revision before."""
    if run.overrides:
        st.caption("Given on the command line:")
        parts.shown("\n".join(run.overrides))
    if before is None:
        st.caption("This is the first revision of this spec. Edit the file and submit it again to make the next.")
        return
    revision = run.revision - 1
    difference = unified_diff(
        before.splitlines(),
        run.source.splitlines(),
        f"{run.spec_name}@{revision}",
        f"{run.spec_name}@{run.revision}",
        n=2,
        lineterm="",
    )
    st.caption(f"Since revision {revision}:")
    parts.shown("\n".join(difference), language="diff")


def _environment(run: RunDetail) -> pd.DataFrame:
    known = {
        "seed": run.seed,
        **{f"code {key}": value for key, value in run.code.items()},
        **run.hardware,
        **{f"{key} version": value for key, value in run.packages.items()},
        "reward version": run.functions_hash[:12] or wording.NOTHING,
    }
    return pd.DataFrame({"what": list(known), "value": [wording.value(value) for value in known.values()]})
