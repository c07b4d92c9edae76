"""The order in which ready stages come up: priority, then users alike, then who waits longest."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, update

from engine.plan.stage import Needs, Plan, Resources, Stage
from engine.store import lending, queue, runs
from engine.store.queue import Line, Waiting
from engine.store.session import Database
from engine.store.tables import Run, StageId, WorkerId
from engine.store.tables import Stage as Row
from tests.store.walk import Clock

Submit = Callable[..., Run]
PLAIN = Resources()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def submit(db: Database, clock: Clock) -> Submit:
    """`submit("name", count=…, user=…, priority=…, resources=…)`: a run of so many ready stages."""

    def submit(
        name: str, *, count: int = 1, user: str = "", priority: int = 0, resources: Resources | None = None
    ) -> Run:
        plan = tuple(
            Stage(
                f"{name}{i}", "test", "tests:stage", (), extra={"of": name, "i": i}, resources=resources or Resources()
            )
            for i in range(count)
        )
        clock.advance(1)
        submission = runs.Submission(source="", resolved={}, user=user, priority=priority)
        with db.write() as session:
            return runs.submit(session, Plan("queue", 0, plan), submission, now=clock())

    return submit


def names(db: Database, clock: Clock, *, queues: tuple[str, ...] = ("default",), **order: object) -> list[str]:
    with db.read() as session:
        return [stage.name for stage in queue.ready(session, queues=queues, now=clock(), **order)]  # type: ignore[arg-type]


def test_priority_first_then_who_is_ready_longest(db: Database, clock: Clock, submit: Submit) -> None:
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", -1)):
        submit(name, priority=priority)
    assert names(db, clock) == ["b0", "a0", "c0", "d0"]


def test_sizes_do_not_change_the_order_and_too_large_ones_are_left_out(
    db: Database, clock: Clock, submit: Submit
) -> None:
    for name, gpus in (("a", 1), ("b", 8), ("c", 0), ("d", 1)):
        submit(name, resources=Resources(gpus=gpus))
    assert names(db, clock) == ["a0", "b0", "c0", "d0"]
    with db.read() as session:
        line = queue.line(session, queues=["default"], now=clock())
        got = [line.next(Needs(4, 4)), line.next(Needs(4, 0)), line.next(Needs(4, 4)), line.next(Needs(4, 4))]
    assert [stage and stage.name for stage in got] == ["a0", "c0", "d0", None]


def test_a_queue_longer_than_a_page_is_read_to_its_end(db: Database, clock: Clock, submit: Submit) -> None:
    run = submit("a", count=50)
    submit("b", count=3)
    found = names(db, clock, limit=1000)
    assert sorted(found[:50]) == sorted(f"a{i}" for i in range(50))
    assert sorted(found[50:]) == ["b0", "b1", "b2"]
    assert sorted(names(db, clock, run_id=run.id, limit=1000)) == sorted(found[:50])


def test_queues_are_apart(db: Database, clock: Clock, submit: Submit) -> None:
    submit("a", resources=Resources(queue="x"))
    submit("b", resources=Resources(queue="y"))
    submit("c", resources=Resources(queue="z"))
    assert names(db, clock, queues=("x", "z")) == ["a0", "c0"]
    assert names(db, clock, queues=("nobody",)) == []


def test_what_backs_off_waits_and_is_passed(db: Database, clock: Clock, submit: Submit) -> None:
    submit("a")
    submit("b")
    with db.write() as session:
        session.execute(update(Row).where(Row.name == "a0").values(not_before=clock.advance(60)))
    clock.advance(-1)
    assert names(db, clock) == ["b0"]
    clock.advance(1)
    assert names(db, clock) == ["a0", "b0"]


def test_one_users_thousand_do_not_starve_anothers_two(db: Database, clock: Clock, submit: Submit) -> None:
    submit("many", count=100, user="ann")
    submit("few", count=2, user="bob")
    held = {"ann": Needs(3, 0)}

    def share(user: str, more: Needs) -> float:
        return (held.get(user, Needs()) + more).slots / 8

    found = names(db, clock, share=share, limit=6)
    # Ann holds three: Bob's two come first, and then there is nobody to share with.
    assert found[:2] in (["few0", "few1"], ["few1", "few0"])
    assert all(name.startswith("many") for name in found[2:])


def test_users_who_hold_as_much_take_turns(db: Database, clock: Clock, submit: Submit) -> None:
    submit("a", count=3, user="ann")
    submit("b", count=3, user="bob")
    found = names(db, clock, share=lambda user, more: more.slots / 8)
    assert [name[0] for name in found] == ["a", "b", "a", "b", "a", "b"]


def test_a_higher_priority_comes_before_fairness(db: Database, clock: Clock, submit: Submit) -> None:
    submit("a", user="ann", priority=1)
    submit("b", user="bob")
    assert names(db, clock, share=lambda user, more: {"ann": 1.0, "bob": 0.0}[user]) == ["a0", "b0"]


def test_the_share_is_that_of_the_device_a_user_holds_most_of() -> None:
    def lender(total: Needs, held: dict[str, Needs], *queues: str) -> lending.Lender:
        return lending.Lender(WorkerId(uuid4()), "w", "h", frozenset(queues), total, held)

    cluster = [
        lender(Needs(8, 4), {"ann": Needs(2, 2), "bob": Needs(3, 0)}, "default"),
        lender(Needs(8, 4), {"bob": Needs(1, 0)}, "default", "x"),
        lender(Needs(8, 8), {"bob": Needs(8, 8)}, "other"),
    ]
    share = partial(lending.share, cluster, ["default"])
    assert share("ann", Needs()) == 2 / 8  # GPUs: 2 of 8, slots: 2 of 16
    assert share("bob", Needs()) == 4 / 16
    assert share("bob", Needs(1, 1)) == 5 / 16
    assert share("eve", Needs()) == 0.0


def test_the_kept_stage_comes_first_in_its_priority_and_busy_ones_not_at_all(
    db: Database, clock: Clock, submit: Submit
) -> None:
    submit("high", priority=1)
    submit("a")
    submit("b")
    submit("c")
    with db.read() as session:
        every = {stage.name: stage for stage in queue.ready(session, queues=["default"], now=clock())}
    assert names(db, clock, first=every["c0"], busy={every["a0"].stage_id}) == ["high0", "c0", "b0"]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["ann", "bob", "eve"]), st.integers(0, 3), st.integers(1, 2)),
        max_size=40,
    ),
    st.integers(0, 3),
)
def test_the_line_is_what_sorting_everything_at_every_step_would_give(
    wanted: list[tuple[int, str, int, int]], most: int
) -> None:
    """Progressive filling by brute force: at each step the best of all that is left, from a list in memory."""
    stages = []
    for index, (priority, user, gpus, slots) in enumerate(wanted):
        since = NOON + timedelta(seconds=index // 3)
        needs = Needs(slots, gpus)
        stages.append(Waiting(StageId(uuid4()), uuid4(), f"s{index}", needs, "default", priority, user, since))
    largest, taken = Needs(2, most), dict.fromkeys(("ann", "bob", "eve"), Needs())

    def share(user: str, more: Needs) -> float:
        return max(more.slots / 16, more.gpus / 8)

    line, left = Line(queue.grouped(stages), share=share), [stage for stage in stages if stage.needs.within(largest)]
    while left:
        best = min(left, key=lambda stage: (-stage.priority, share(stage.user, taken[stage.user]), stage.place))
        left.remove(best)
        taken[best.user] += best.needs
        assert line.next(largest) == best
    assert line.next(largest) is None


def test_a_long_queue_is_neither_sorted_nor_read_through(db: Database, clock: Clock, submit: Submit) -> None:
    """Every statement of a look seeks in the index of ready stages: none sorts, none scans."""
    submit("a", count=40, user="ann")
    submit("b", count=2, user="bob", resources=Resources(gpus=2))
    statements: list[tuple[str, Any]] = []

    @event.listens_for(db.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        statements.append((statement, parameters))

    with db.read() as session:
        queue.ready(session, queues=["default"], now=clock(), limit=30)
    event.remove(db.engine, "before_cursor_execute", note)

    looks = [(text, given) for text, given in statements if "FROM stages" in text]
    assert len(looks) >= 3  # the groups, and two pages of one of them
    sqlite = db.engine.dialect.name == "sqlite"
    explain, bad = ("EXPLAIN QUERY PLAN", ("TEMP B-TREE", "SCAN s")) if sqlite else ("EXPLAIN", ("Sort",))
    with db.engine.connect() as connection:
        if not sqlite:  # which a table of this size would be
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for statement, given in looks:
            steps = [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", given)]
            assert any("ix_stages_ready" in step for step in steps)
            assert not [step for step in steps if any(word in step for word in bad)]
