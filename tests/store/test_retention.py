"""Checkpoints that may go by count, age and bytes, and those that never may."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.store import checkpoints, retention, runs
from engine.store.retention import Limits, Shelved, surplus
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Run
from tests.store.walk import Clock, Queue, plan, until_it_waits

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RUN = UUID(int=1)


def shelved(step: int, *labels: str, days: float = 0.0, size: int = 10, **more: bool) -> Shelved:
    return Shelved(
        id=step,
        run_id=RUN,
        handle="best-lang-1",
        stage="train",
        step=step,
        labels=labels,
        uri=f"/c/{step}",
        bytes=size,
        created_at=NOW - timedelta(days=days),
        **more,
    )


def steps(chosen: list[tuple[Shelved, str]]) -> list[int]:
    return [one.step for one, _ in chosen]


SHELF = [shelved(1, days=40), shelved(2, "best", days=30), shelved(3, days=20), shelved(4, "latest", days=10)]


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        (Limits(), []),
        (Limits(keep=4), []),
        (Limits(keep=2), [1]),
        (Limits(keep=1), [1, 3]),
        (Limits(keep=0), [1, 3, 4]),
        (Limits(older_than_s=25 * 86400), [1, 2]),
        (Limits(older_than_s=0), [1, 2, 3, 4]),
        (Limits(max_bytes=40), []),
        (Limits(max_bytes=39), [1]),
        (Limits(max_bytes=20), [1, 3]),  # what bears a label goes last
        (Limits(max_bytes=19), [1, 2, 3]),
        (Limits(max_bytes=0), [1, 2, 3, 4]),
        (Limits(keep=2, older_than_s=25 * 86400), [1, 2]),
        (Limits(keep=2, max_bytes=30), [1]),
    ],
)
def test_what_the_limits_let_go(limits: Limits, gone: list[int]) -> None:
    assert steps(surplus(SHELF, limits, now=NOW)) == gone


@pytest.mark.parametrize(
    "why",
    [
        {"live": True},
        {"referred": True},
        {"unfinished": True, "newest": True},
        {"tagged": True},
    ],
)
def test_what_is_needed_stays_whatever_the_limits(why: dict[str, bool]) -> None:
    needed = replace(SHELF[1], **why)
    assert needed.needed is not None
    gone = steps(surplus([SHELF[0], needed, *SHELF[2:]], Limits(keep=0, older_than_s=0, max_bytes=0), now=NOW))
    assert gone == [1, 3, 4]


def test_of_a_tagged_run_what_bears_no_label_may_go() -> None:
    shelf = [replace(one, tagged=True) for one in SHELF]
    assert steps(surplus(shelf, Limits(older_than_s=0), now=NOW)) == [1, 3]


def test_each_stage_keeps_its_own_newest() -> None:
    other = [replace(shelved(10 + n), stage="model") for n in range(3)]
    assert steps(surplus([*SHELF, *other], Limits(keep=1), now=NOW)) == [1, 3, 10, 11]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60), st.integers(1, 100), st.booleans(), st.sampled_from([(), ("best",), ("latest",)])
        ),
        max_size=12,
    ),
    st.integers(0, 400),
)
def test_bytes_fit_or_all_that_is_left_is_needed(
    given_: list[tuple[int, int, bool, tuple[str, ...]]], most: int
) -> None:
    shelf = [
        shelved(n, *labels, days=days, size=size, live=live) for n, (days, size, live, labels) in enumerate(given_)
    ]
    gone = set(steps(surplus(shelf, Limits(max_bytes=most), now=NOW)))
    left = [one for one in shelf if one.step not in gone]
    assert sum(one.bytes for one in left) <= most or all(one.live for one in left)
    assert not any(shelf[step].live for step in gone)
    # No more than was necessary: without the last that went, it would not have fitted.
    if gone:
        last = max(gone, key=lambda step: (bool(shelf[step].labels), shelf[step].created_at, step))
        assert sum(one.bytes for one in left) + shelf[last].bytes > most


def _checkpoint(queue: Queue, claimed: Claimed, step: int, *labels: str) -> None:
    with queue.db.write() as session:
        checkpoints.record(
            session,
            run_id=claimed.run_id,
            stage_id=claimed.stage_id,
            number=claimed.number,
            step=step,
            labels=labels,
            uri=f"/c/{claimed.handle}/{step}",
            sha256="0" * 64,
            size=10,
            now=queue.clock.advance(1),
        )


def _trained(queue: Queue, outcome: Outcome | None = None, **more: object) -> Run:
    run = queue.submit(**more)  # type: ignore[arg-type]
    claimed = queue.claim(run)
    _checkpoint(queue, claimed, 1)
    _checkpoint(queue, claimed, 2, "latest")
    if outcome is not None:
        queue.finish(claimed, outcome)
    return run


def _refer(queue: Queue, extra: dict[str, object]) -> Run:
    """A run with a stage that is told of a folder."""
    child = plan("prepare", name="child")
    child = replace(child, stages=(replace(child.stages[0], extra=extra),))
    with queue.db.write() as session:
        return runs.submit(session, child, runs.Submission(source="v", resolved={}), now=queue.clock())


def _needed(db: Database, run: Run) -> dict[int, str | None]:
    with db.read() as session:
        return {one.step: one.needed for one in retention.shelved(session, run.id)}


def test_the_store_tells_what_is_needed(db: Database, queue: Queue) -> None:
    done = Outcome.succeeded(queue.artifact())
    assert _needed(db, _trained(queue, done)) == {1: None, 2: None}
    assert _needed(db, _trained(queue, done, tags=["paper"], salt="1")) == {
        1: None,
        2: "it is labelled, and its run has a tag",
    }
    alive = _trained(queue, salt="2")
    assert set(_needed(db, alive).values()) == {"its run is alive"}
    queue.stop(alive)
    assert set(_needed(db, alive).values()) == {"its run is alive"}
    queue.clock.advance(60)
    queue.expire()
    assert _needed(db, alive) == {1: None, 2: "`rlx resume` goes on from it"}


@pytest.mark.parametrize(
    "extra", [{"model_path": "/c/best-lang-1/1/policy"}, {"checkpoint": {"path": "/c/best-lang-1/1", "step": 1}}]
)
def test_a_checkpoint_that_another_run_was_told_of_is_needed(
    db: Database, queue: Queue, extra: dict[str, object]
) -> None:
    run = _trained(queue, Outcome.succeeded(queue.artifact()))
    _refer(queue, extra)
    assert _needed(db, run) == {1: "another run refers to it", 2: None}


def test_who_comes_to_refer_to_it_between_the_look_and_the_removal_is_seen(db: Database, queue: Queue) -> None:
    run = _trained(queue, Outcome.succeeded(queue.artifact()))
    looked_at = queue.clock.advance(10 * 86400)
    with db.read() as session:
        shelf = retention.shelved(session, run.id)
    _refer(queue, {"checkpoint": {"path": shelf[0].uri}})
    with db.write() as session:
        ids = [one.id for one in shelf]
        assert retention.forget(session, run.id, ids, looked_at=looked_at) == {shelf[1].id}


def test_forgetting_asks_once_more(db: Database, queue: Queue, clock: Clock) -> None:
    run = _trained(queue, Outcome.stopped())
    queue.stop(run)
    with db.read() as session:
        shelf = retention.shelved(session, run.id)
    ids = [one.id for one in shelf]
    queue.resume(run)
    with db.write() as session:
        assert retention.forget(session, run.id, ids) == set()  # it came alive meanwhile
    queue.stop(run)
    with db.write() as session:
        assert retention.forget(session, run.id, ids) == {shelf[0].id}
    queue.resume(run)
    claimed = queue.claim(run)
    assert claimed.resume is not None
    assert claimed.resume.step == 2


def test_a_run_is_not_resumed_while_its_checkpoints_are_looked_through(db: Database, queue: Queue) -> None:
    run = _trained(queue, Outcome.stopped())
    queue.stop(run)
    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            gone = retention.forget(session, run.id, [one.id for one in retention.shelved(session, run.id)])
            resuming = pool.submit(queue.resume, run)
            until_it_waits(db, resuming)
            assert not resuming.done()
        assert resuming.result(60)
    assert len(gone) == 1
    claimed = queue.claim(run)
    assert claimed.resume is not None
    assert claimed.resume.step == 2
