"""Two runs side by side: which is better and how sure that is, curves on one axis, and what differs in their specs.

The statistics are `engine.compare`'s, the same that `rlx compare` prints.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import charts, evidence, parts, queries, state, wording
from dashboard.evidence import EvaluationRow
from dashboard.queries import RunDetail
from dashboard.state import BOUND
from engine.compare.diff import ABSENT
from engine.compare.report import Axis, Comparison, MetricComparison, Verdict, compare

BADGES = {
    Verdict.BETTER: (":material/trending_up:", "green"),
    Verdict.WORSE: (":material/trending_down:", "red"),
    Verdict.CANNOT_TELL: (":material/question_mark:", "gray"),
}


def page() -> None:
    st.title("Compare")
    with parts.reading() as session:
        handles = queries.newest(session)
    if len(handles) < 2:
        parts.empty(
            "A comparison takes two runs. The same spec with another seed makes a good second one:",
            "rlx submit specs/best_lang.yaml seed=1",
        )
        return
    chosen = choose(handles)
    if chosen is None:
        st.caption("Choose two different runs.")
        return
    with parts.reading() as session:
        a, b = (queries.run(session, handle) for handle in chosen)
        rows_a, rows_b = (evidence.evaluations_of(session, run.id) for run in (a, b))
    found = compare(evidence.subject(a, rows_a), evidence.subject(b, rows_b), same_items=evidence.same_items(a, b))
    verdict(found)
    if found.metrics:
        scores(found)
        curves(found, rows_a, rows_b)
    differences(found, a, b)
    st.caption("The same in a terminal, or in CI with `--fail-if`:")
    parts.command(f"rlx compare {a.handle} {b.handle}")


def choose(handles: list[str]) -> tuple[str, str] | None:
    """The two runs, from the URL or the newest two; a click exchanges them."""
    with parts.reading() as session:
        offered = list(handles)
        for name in (state.A, state.B):
            offered += parts.named_by_url(session, name, besides=offered)
    first, swap, second = st.columns([6, 2, 6], vertical_alignment="bottom", gap="small")
    a = first.selectbox("Run A", offered, index=1, key=state.A, bind=BOUND)
    b = second.selectbox("Run B", offered, index=0, key=state.B, bind=BOUND)
    swap.button("Swap", icon=":material/swap_horiz:", on_click=exchange, width="stretch", help="Exchange A and B")
    return (a, b) if a != b else None


def exchange() -> None:
    """Let A and B change places, in the URL too."""
    held = st.session_state
    held[state.A], held[state.B] = held[state.B], held[state.A]


def verdict(found: Comparison) -> None:
    """The answer first, and what it rests on."""
    with st.container(border=True):
        leading = found.metrics[0] if found.metrics else None
        icon, colour = BADGES[found.verdict]
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.badge(found.verdict.value, icon=icon, color=colour)  # type: ignore[arg-type]  # a literal of ours
            if leading is None:
                st.markdown("The two have no evaluation in common.")
            else:
                st.markdown(f"**{_sentence(found)}**")
        if leading is None:
            parts.command(f"rlx eval {found.a}\nrlx eval {found.b}")
        else:
            st.caption(
                wording.plain(f"{leading.metric} on {leading.split}, at the final evaluations: {leading.reason}.")
            )


def _sentence(found: Comparison) -> str:
    a, b = wording.plain(found.a), wording.plain(found.b)
    match found.verdict:
        case Verdict.BETTER:
            return f"{b} is better than {a}."
        case Verdict.WORSE:
            return f"{b} is worse than {a}."
        case _:
            return f"From these evaluations nobody can tell {b} from {a}."


def scores(found: Comparison) -> None:
    """Final scores with their intervals, the paired difference and its test, one line a metric and split."""
    st.markdown("##### Final evaluations")
    columns = st.column_config
    st.dataframe(
        pd.DataFrame([_score_cells(metric) for metric in found.metrics]),
        hide_index=True,
        height="content",
        key="scores",
        alt=f"Final scores of {found.a} and {found.b} with 95 % intervals and a paired test",
        column_config={
            "metric": columns.TextColumn("Metric", width=112),
            "split": columns.TextColumn("Split", width=66),
            "a": columns.TextColumn(f"{found.a} [95 %]", width=168),
            "b": columns.TextColumn(f"{found.b} [95 %]", width=168),
            "difference": columns.TextColumn("Difference, B − A [95 %]", width=186),
            "test": columns.TextColumn(
                "Paired test", width=84, help="Two-sided permutation test over the items that both were scored on"
            ),
            "items": columns.NumberColumn("Items", format="localized", width=56),
            "best": columns.TextColumn("Best of A, of B", width=116),
            "verdict": columns.TextColumn("B is", width=84),
        },
    )


def _score_cells(metric: MetricComparison) -> dict[str, object]:
    a, b, difference, test = metric.a.final.interval, metric.b.final.interval, metric.difference, metric.test
    return {
        "metric": metric.metric,
        "split": metric.split,
        "a": wording.interval(a.mean, a.low, a.high),
        "b": wording.interval(b.mean, b.low, b.high),
        "difference": wording.NOTHING
        if difference is None
        else f"{wording.signed(difference.mean)} [{wording.signed(difference.low)}, {wording.signed(difference.high)}]",
        "test": wording.NOTHING if test is None else wording.p_value(test.p_value),
        "items": None if test is None else test.items,
        "best": f"{wording.score(metric.a.best.interval.mean)}, {wording.score(metric.b.best.interval.mean)}",
        "verdict": metric.verdict.value,
    }


def curves(found: Comparison, rows_a: list[EvaluationRow], rows_b: list[EvaluationRow]) -> None:
    """Both learning curves over a cost of the reader's choice, and what it took to get to the same score."""
    st.markdown("##### Learning curves")
    names = {f"{metric.metric} on {metric.split}": metric for metric in found.metrics}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        first = next(iter(names))
        name = first
        if len(names) > 1:
            name = (
                st.segmented_control("Score", list(names), default=first, required=True, key="score", bind=BOUND)
                or first
            )
        axes = evidence.axes(rows_a, rows_b)
        over = st.segmented_control(
            "Over", axes, default="step", required=True, key="axis", bind=BOUND, format_func=wording.axis
        )
    one, other = evidence.curves(rows_a).get(name, []), evidence.curves(rows_b).get(name, [])
    together, reach = st.columns([13, 6], gap="medium")
    with together:
        drawn = charts.learning_curves({found.a: one, found.b: other}, over=over or "step")
        parts.chart(drawn, "together", alt=f"{name} of both runs over {wording.axis(over or 'step')}")
    with reach:
        st.caption(f"To a mean of {wording.score(names[name].threshold)}, which both reached:")
        st.dataframe(
            pd.DataFrame([_reach(axis) for axis in names[name].axes]),
            hide_index=True,
            height="content",
            placeholder=wording.NOTHING,
            key="reach",
            alt="What it cost either run to get there",
            column_config={
                "axis": st.column_config.TextColumn("It took", width=118),
                "a": st.column_config.TextColumn("A", width=62, alignment="right", help=found.a),
                "b": st.column_config.TextColumn("B", width=62, alignment="right", help=found.b),
            },
        )
    if len(one) and len(other) and len(one[-1].items) > 1:
        st.caption("The last evaluations of these curves, item by item:")
        parts.chart(charts.item_scores({found.a: one[-1], found.b: other[-1]}), "items", alt=f"{name} by dataset item")


def _reach(axis: Axis) -> dict[str, object]:
    a, b = axis.reached
    return {"axis": wording.axis(axis.cost), "a": wording.count(a), "b": wording.count(b)}


def differences(found: Comparison, a: RunDetail, b: RunDetail) -> None:
    """Where specs, code, packages and hardware part."""
    st.markdown("##### What differs")
    rows = [
        {"in": subject, "key": row.path, "a": _side(row.a), "b": _side(row.b)}
        for subject, found_there in found.differences.items()
        for row in found_there
    ]
    if not rows:
        st.caption("Nothing: spec, code, packages and hardware are the same.")
        return
    columns = st.column_config
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content",
        key="differences",
        alt=f"{len(rows)} differences",
        column_config={
            "in": columns.TextColumn("In", width=70),
            "key": columns.TextColumn("Key", width=260),
            "a": columns.TextColumn(f"A: {a.handle}", width=240),
            "b": columns.TextColumn(f"B: {b.handle}", width=240),
        },
    )


def _side(value: object) -> str:
    return "(absent)" if value is ABSENT else wording.value(value)


page()
