"""One run: how it stands, its plan with live stage states, and tabs for all that it left behind."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from dashboard import evidence, parts, plan_chart, queries, state, wording
from dashboard.queries import RunDetail, StageRow
from dashboard.state import BOUND
from dashboard.tabs import checkpoints, evaluations, logs, metrics, samples, spec

TABS = {
    "Metrics": metrics.show,
    "Samples": samples.show,
    "Evaluations": evaluations.show,
    "Checkpoints": checkpoints.show,
    "Logs": logs.show,
    "Spec": spec.show,
}

SPENT = (
    "The time of every attempt at every stage. Lost: after an attempt's last checkpoint, where it did not end well. "
    "`rlx show` tells it by stage."
)


def page() -> None:
    run = choose()
    if run is None:
        return
    if run.status in wording.ACTIVE:
        watched(run.handle, run.status)
    else:
        standing(run.handle)
    for name, tab in zip(TABS, st.tabs(list(TABS), key="tab", bind=BOUND), strict=True):
        if tab.open:
            with tab:
                TABS[name](run)


def choose() -> RunDetail | None:
    """The run that the URL names, or else the newest; its handle is the page's title, and a box beside it leads on."""
    with parts.reading() as session:
        offered = queries.newest(session)
        offered += parts.named_by_url(session, state.RUN, besides=offered)
    if not offered:
        st.title("Run")
        parts.empty("There are no runs yet. This makes one:", "rlx submit specs/best_lang.yaml")
        return None
    title, other, choice = st.columns([6, 2, 3], vertical_alignment="center")
    handle = choice.selectbox("Run", offered, key=state.RUN, bind=BOUND, label_visibility="collapsed")
    with parts.reading() as session:
        run = queries.run(session, handle)
        sibling = queries.sibling(session, run)
    title.title(wording.plain(run.handle))
    if sibling is not None:
        with other.container(horizontal=True, horizontal_alignment="right"):
            st.page_link(
                state.COMPARE_PAGE,
                label="Compare",
                icon=":material/compare_arrows:",
                help=f"Beside {sibling}, the run before it",
                query_params=state.compare_link(sibling, run.handle),
            )
    return run


@st.fragment(run_every=state.LIVE_S)
def watched(handle: str, status: str) -> None:
    """What changes while a run is at work, read again every few seconds; the whole page once its status changes."""
    if standing(handle).status != status:
        st.rerun()


def standing(handle: str) -> RunDetail:
    """How the run stands: status, tiles, plan, and what went wrong."""
    with parts.reading() as session:
        run = queries.run(session, handle)
        stages = queries.stages_of(session, run.id)
        evaluations = evidence.evaluations_of(session, run.id)
        certificate = queries.certificate(session, run)
    cost, leading = evidence.costs(evaluations), evidence.leading(evaluations)
    means, metric = [row.mean for row in leading], leading[0].metric if leading else "score"
    now = parts.now()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        parts.status_badge(run.status)
        parts.tag_badges([*run.tags, *(["tiny"] if run.tiny else [])])
        st.caption(wording.plain(_summary(run)), width="content")
    if certificate is not None:
        st.caption(wording.plain(certificate))
    if run.notes:
        parts.said(run.notes)
    remaining = next((left for stage in stages if (left := stage.remaining(now)) is not None), None)
    parts.tiles(
        [
            (
                f"Best {metric}",
                wording.score(max(means, default=None)),
                f"The highest mean of an evaluation of `{metric}`",
            ),
            (f"Last {metric}", wording.score(means[-1] if means else None), f"The mean of the last one of `{metric}`"),
            *_costs(cost),
            (
                "Took" if run.status not in wording.ACTIVE else "Running for",
                wording.duration(run.seconds(now)),
                f"Submitted {wording.stamp(run.submitted_at)}",
            ),
            ("Progress", wording.percent(queries.progress(stages)), _left(remaining)),
        ]
    )
    parts.chart(plan_chart.plan(stages, parts.ink(), now), "plan", alt=_told(stages), fixed=True)
    if told := wording.times(queries.times(stages)):
        st.caption(wording.plain(f"Time spent: {told}"), help=SPENT)
    if any(stage.error for stage in stages):
        failures(run, stages)
    return run


def _costs(cost: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """The tiles of what the run has cost: of what it generated, or of the texts that it learnt from."""
    if "trained_tokens" in cost:
        return [("Tokens", wording.count(cost["trained_tokens"]), "Learnt from until the last evaluation")]
    return [
        ("Episodes", wording.count(cost.get("scored_episodes")), "Scored until the last evaluation"),
        ("Tokens", wording.count(cost.get("generated_tokens")), "Generated until the last evaluation"),
    ]


def _summary(run: RunDetail) -> str:
    by = f"by {run.user} " if run.user else ""
    return wording.joined(
        [
            run.spec,
            run.method,
            run.model,
            f"seed {run.seed}",
            f"submitted {by}{wording.ago(run.submitted_at, parts.now())}",
        ]
    )


def _left(remaining: float | None) -> str:
    each = "Every stage counts the same."
    return each if remaining is None else f"{wording.duration(remaining)} left of the stage at work. {each}"


def _told(stages: list[StageRow]) -> str:
    return "The run's plan: " + "; ".join(f"{stage.name} {stage.status}" for stage in stages)


def failures(run: RunDetail, stages: list[StageRow]) -> None:
    """Why stages failed, and what to do about it."""
    for stage in stages:
        if not stage.error:
            continue
        cause = stage.cause or "internal"
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                parts.status_badge(stage.status)
                st.markdown(f"**{wording.plain(stage.name)}** · `{cause}`")
            parts.shown(stage.error)
            st.write(wording.ADVICE.get(cause, wording.ADVICE["internal"]))
            if cause in wording.MENDED_BY_RESUME:
                parts.command(f"rlx resume {run.handle}")
            else:
                parts.command(f"rlx show {run.handle}")


page()
