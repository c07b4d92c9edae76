from __future__ import annotations

from sqlalchemy import event

from engine.errors import Cause
from engine.plan.hashing import cache_key
from engine.plan.stage import Stage
from engine.store.readiness import _MANY
from engine.store.session import Database
from engine.store.stages import Outcome
from tests.store.walk import Queue


def test_the_stored_key_is_the_plans_key(queue: Queue) -> None:
    run = queue.submit("a", "b<a", seed=3, salt="x")
    queue.finish(queue.claim(run, "a"))
    planned = Stage("b", "test.b", "tests:stage", (), inputs={"a": "a"}, extra={"salt": "x"})
    assert queue.claim(run, "b").cache_key == cache_key(planned, 3, {"a": queue.artifact().sha256})


def test_what_is_known_is_not_run_again(queue: Queue) -> None:
    first = queue.submit("a", "b<a")
    queue.finish(queue.claim(first, "a"), Outcome.succeeded(queue.artifact("a")))
    queue.finish(queue.claim(first, "b"), Outcome.succeeded(queue.artifact("b")))
    queue.announced()

    second = queue.submit("a", "b<a")

    assert queue.status(second) == "succeeded"
    assert queue.announced() == []
    assert all(stage.cached for stage in queue.stages(second))
    assert [a.artifact_id for a in queue.stages(first)] == [a.artifact_id for a in queue.stages(second)]


def test_another_seed_or_another_config_is_another_key(queue: Queue) -> None:
    queue.finish(queue.claim(queue.submit("a"), "a"))
    assert queue.status(queue.submit("a", seed=1)) == "queued"
    assert queue.status(queue.submit("a", salt="other")) == "queued"
    assert queue.status(queue.submit("a", name="other-name")) == "succeeded"


def test_the_cache_can_be_left_aside_and_is_renewed_then(queue: Queue) -> None:
    queue.finish(queue.claim(queue.submit("a"), "a"), Outcome.succeeded(queue.artifact("old")))
    fresh = queue.submit("a", no_cache=True)
    assert queue.status(fresh) == "queued"
    queue.finish(queue.claim(fresh, "a"), Outcome.succeeded(queue.artifact("new")))
    third = queue.submit("a")
    assert queue.stages(third)[0].artifact_id == queue.stages(fresh)[0].artifact_id


def test_two_that_compute_the_same_at_once_both_succeed_and_the_first_answers(queue: Queue) -> None:
    one, two = queue.submit("a"), queue.submit("a")
    claims = [queue.claim(one, "a"), queue.claim(two, "a")]
    queue.finish(claims[1], Outcome.succeeded(queue.artifact("second run's")))
    queue.finish(claims[0], Outcome.succeeded(queue.artifact("first run's")))
    assert queue.status(one) == queue.status(two) == "succeeded"
    assert queue.stages(queue.submit("a"))[0].artifact_id == queue.stages(two)[0].artifact_id


def test_what_became_known_after_it_was_announced_ends_at_its_claim(queue: Queue) -> None:
    one, two = queue.submit("a", "b<a"), queue.submit("a", "b<a")
    queue.announced()
    queue.finish(queue.claim(one, "a"))

    assert queue.try_claim(queue.stage(two, "a")) is None

    stage = queue.stages(two)[0]
    assert (stage.status, stage.cached, stage.attempt) == ("succeeded", True, 0)
    assert queue.statuses(two)["b"] == "ready"
    assert set(queue.announced()) == {queue.stage(one, "b"), queue.stage(two, "b")}


def test_failures_are_not_cached(queue: Queue) -> None:
    queue.finish(queue.claim(queue.submit("a"), "a"), Outcome.failed(Cause.REWARD_ERROR, "bad"))
    assert queue.status(queue.submit("a")) == "queued"


def test_a_chain_from_the_cache_stops_where_it_is_unknown(queue: Queue) -> None:
    first = queue.submit("a", "b<a", "c<b")
    queue.finish(queue.claim(first, "a"), Outcome.succeeded(queue.artifact("a")))
    queue.finish(queue.claim(first, "b"), Outcome.succeeded(queue.artifact("b")))
    second = queue.submit("a", "b<a", "c<b")
    assert queue.statuses(second) == {"a": "succeeded", "b": "succeeded", "c": "ready"}
    assert queue.claim(second, "c").inputs["b"][0] == queue.artifact("b").sha256


def test_a_wide_run_is_made_ready_in_few_statements(db: Database, queue: Queue) -> None:
    wide = [f"s{n}" for n in range(_MANY + 2)]
    known = queue.submit("s0")
    queue.finish(queue.claim(known, "s0"))
    queue.announced()
    executed = []

    def note(*_: object) -> None:
        executed.append(1)

    event.listen(db.engine, "before_cursor_execute", note)
    run = queue.submit(*wide, "after<s0", "joined<s0,s1", queue="nobody known listens here")  # so all are announced
    event.remove(db.engine, "before_cursor_execute", note)

    statuses = queue.statuses(run)
    assert statuses.pop("s0") == "succeeded"
    assert statuses.pop("joined") == "waiting"
    assert set(statuses.values()) == {"ready"}
    announced = [stage_id for page in iter(queue.announced, []) for stage_id in page]
    assert sorted(announced) == sorted(stage.id for stage in queue.stages(run) if stage.status == "ready")
    assert len(executed) < 100


def test_what_a_dead_stage_leaves_behind_is_cancelled_along_the_chain(queue: Queue) -> None:
    run = queue.submit("a", "b<a", "c<b", "d")
    queue.finish(queue.claim(run, "a"), Outcome.failed(Cause.REWARD_ERROR, "bad"))
    assert queue.statuses(run) == {"a": "failed", "b": "cancelled", "c": "cancelled", "d": "ready"}
