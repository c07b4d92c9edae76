from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from sqlalchemy import select

from engine.errors import Cause, StaleAttempt
from engine.store import artifacts, stages
from engine.store.session import Database
from engine.store.stages import Outcome
from engine.store.tables import Attempt, Lease, Run, Stage
from engine.store.transitions import ENDED
from tests.store.walk import Clock, Queue

NEVER = [Cause.SPEC_ERROR, Cause.DATA_ERROR, Cause.REWARD_ERROR, Cause.IMPORT]
RETRIED = [cause for cause in Cause if cause not in NEVER]


def test_success_ends_stage_and_run(db: Database, queue: Queue) -> None:
    run = queue.submit()
    assert queue.finish(queue.claim(run, "train", "slot:0")) == "succeeded"
    assert queue.status(run) == "succeeded"
    with db.read() as session:
        assert artifacts.of_run(session, run.id)["train"].sha256 == queue.artifact().sha256
        assert session.scalars(select(Lease)).all() == []


def test_success_wakes_those_that_wait_for_all_they_need(queue: Queue) -> None:
    run = queue.submit("a", "b", "c<a,b", "d<c")
    assert len(queue.announced()) == 2
    queue.finish(queue.claim(run, "a"))
    assert queue.statuses(run) == {"a": "succeeded", "b": "ready", "c": "waiting", "d": "waiting"}
    assert queue.announced() == []
    queue.finish(queue.claim(run, "b"))
    assert queue.announced() == [queue.stage(run, "c")]
    assert queue.statuses(run)["d"] == "waiting"


@pytest.mark.parametrize("cause", NEVER)
def test_what_will_be_wrong_again_is_not_tried_again(queue: Queue, cause: Cause) -> None:
    run = queue.submit("a", "b<a", "c<b", "d")
    assert queue.finish(queue.claim(run, "a"), Outcome.failed(cause, "broken")) == "failed"
    # What can never run is cancelled; what does not depend on it goes on, and then the run has failed.
    assert queue.statuses(run) == {"a": "failed", "b": "cancelled", "c": "cancelled", "d": "ready"}
    assert queue.status(run) == "running"
    queue.finish(queue.claim(run, "d"))
    assert queue.status(run) == "failed"


@pytest.mark.parametrize("cause", RETRIED)
def test_what_may_pass_is_tried_again(queue: Queue, cause: Cause) -> None:
    run = queue.submit()
    assert queue.finish(queue.claim(run), Outcome.failed(cause, "bad luck")) == "ready"
    assert queue.status(run) == "running"


def test_back_off_doubles_until_attempts_run_out(queue: Queue, clock: Clock) -> None:
    run = queue.submit(max_attempts=3)
    queue.announced()
    for delay in (5, 10):  # an internal failure waits 5 s, then twice that, and up to a quarter more
        assert queue.finish(queue.claim(run), Outcome.failed(Cause.INTERNAL, "crash")) == "ready"
        clock.advance(delay - 0.01)
        assert queue.announced() == []
        assert queue.try_claim(queue.stage(run, "train")) is None
        clock.advance(delay / 4 + 0.01)
        assert queue.announced() == [queue.stage(run, "train")]
    assert queue.finish(queue.claim(run), Outcome.failed(Cause.INTERNAL, "crash")) == "failed"
    assert queue.status(run) == "failed"


def test_a_cause_with_a_number_of_its_own_is_counted_apart(queue: Queue, clock: Clock) -> None:
    run = queue.submit(max_attempts=2, retries={"lost": 2, "oom": 0})
    for became in ("ready", "ready"):
        queue.claim(run)
        clock.advance(20)
        assert [lost.status for lost in queue.expire()] == [became]
    assert queue.finish(queue.claim(run), Outcome.failed(Cause.DISK, "full")) == "ready"
    clock.advance(10_000)
    assert queue.finish(queue.claim(run), Outcome.failed(Cause.OOM, "no memory")) == "failed"


def test_resuming_counts_from_the_start(queue: Queue, clock: Clock) -> None:
    run = queue.submit(max_attempts=2)
    for _ in range(2):
        for became in ("ready", "failed"):
            assert queue.finish(queue.claim(run), Outcome.failed(Cause.INTERNAL, "crash")) == became
            clock.advance(1000)
        assert queue.resume(run)


def test_being_sent_away_costs_no_attempt(queue: Queue) -> None:
    run = queue.submit(max_attempts=1)
    for number in (1, 2, 3):
        claimed = queue.claim(run)
        assert claimed.number == number
        assert queue.finish(claimed, Outcome.stopped()) == "ready"
    assert queue.finish(queue.claim(run)) == "succeeded"


def test_the_autopsy_is_kept_whatever_is_in_it(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    outcome = Outcome.failed(
        Cause.REWARD_ERROR,
        "score_fn said \x00",
        detail={"trace": "\ud800 line 3", "score": float("nan"), "at": timedelta(seconds=3)},
        log_tail="last\x00words",
    )
    queue.finish(claimed, outcome)
    with db.read() as session:
        (attempt,) = stages.attempts(session, claimed.stage_id)
    assert (attempt.status, attempt.cause, attempt.error) == ("failed", "reward_error", "score_fn said ␀")
    assert attempt.detail["score"] is None
    assert attempt.detail["trace"].endswith("line 3")
    assert attempt.detail["at"] == "0:00:03"
    assert attempt.log_tail == "last␀words"
    (stage,) = queue.stages(run)
    assert (stage.cause, stage.error) == ("reward_error", "score_fn said ␀")


def test_success_after_a_failure_leaves_no_error_on_the_stage(queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    queue.finish(queue.claim(run), Outcome.failed(Cause.INTERNAL, "crash"))
    clock.advance(5 * 1.25)
    queue.finish(queue.claim(run))
    (stage,) = queue.stages(run)
    assert (stage.cause, stage.error, stage.failures) == (None, None, 1)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.succeeded(Queue.artifact(), log_tail="bye"),
        Outcome.failed(Cause.OOM, "no memory", detail={"peak": 3}),
        Outcome.stopped(),
        replace(Outcome.stopped(), pid=7, pid_started=1.5, log_path="/logs/train-1.log"),
    ],
)
def test_an_outcome_survives_the_way_from_a_child_process(outcome: Outcome) -> None:
    assert Outcome.from_data(json.loads(json.dumps(outcome.as_data()))) == outcome


def test_silence_past_the_lease_is_loss_and_a_new_attempt(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run, "train", "slot:0", lease_s=15)
    queue.announced()
    clock.advance(14.9)
    assert queue.expire() == []
    clock.advance(0.1)
    (lost,) = queue.expire()
    assert (lost.stage_id, lost.run_id, lost.number, lost.status) == (claimed.stage_id, run.id, 1, "ready")
    assert queue.expire() == []
    assert queue.announced() == [claimed.stage_id]
    with db.read() as session:
        assert [(a.status, a.cause) for a in stages.attempts(session, claimed.stage_id)] == [("lost", "lost")]
        assert session.scalars(select(Lease)).all() == []
    assert queue.claim(run, "train", "slot:0").number == 2


def test_a_stage_that_keeps_killing_its_worker_is_given_up(queue: Queue, clock: Clock) -> None:
    run = queue.submit(max_attempts=2)
    for became in ("ready", "failed"):
        queue.claim(run)
        clock.advance(20)
        assert [lost.status for lost in queue.expire()] == [became]
        clock.advance(20)
    assert queue.status(run) == "failed"


def test_lost_attempts_of_many_runs_end_together(queue: Queue, clock: Clock) -> None:
    submitted = [queue.submit(salt=str(n)) for n in range(5)]
    for run in submitted:
        queue.claim(run)
    clock.advance(20)
    assert {lost.run_id for lost in queue.expire()} == {run.id for run in submitted}


REPORTS = {
    "success": lambda queue, run, claimed: queue.finish(claimed),
    "failure": lambda queue, run, claimed: queue.finish(claimed, Outcome.failed(Cause.SPEC_ERROR, "bad")),
    "retry": lambda queue, run, claimed: queue.finish(claimed, Outcome.failed(Cause.LOST, "killed")),
    "stop": lambda queue, run, claimed: queue.finish(claimed, Outcome.stopped()),
    "expiry": lambda queue, run, claimed: queue.expire(),
    "cancel": lambda queue, run, claimed: queue.stop(run),
}


@pytest.mark.parametrize("order", list(permutations(REPORTS, 3)), ids="-".join)
@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_an_end_is_written_once_whatever_is_reported_after_it(
    db: Database, queue: Queue, clock: Clock, order: tuple[str, ...]
) -> None:
    run = queue.submit(max_attempts=1)
    claimed = queue.claim(run)
    clock.advance(20)
    first: dict[str, object] = {}
    for report in order:
        with suppress(StaleAttempt):
            REPORTS[report](queue, run, claimed)
        with db.read() as session:
            for row in [
                *session.scalars(select(Attempt)),
                *session.scalars(select(Stage)),
                *session.scalars(select(Run)),
            ]:
                kind = type(row)
                if row.status in ENDED[kind] and (kind.__name__, row.id) not in first:
                    first[kind.__name__, row.id] = _told(row)
                assert first.get((kind.__name__, row.id), _told(row)) == _told(row)


def _told(row: Attempt | Stage | Run) -> tuple[object, ...]:
    fields = ("status", "cause", "error", "detail", "log_tail", "artifact_id", "finished_at")
    return tuple(getattr(row, field, None) for field in fields)


@pytest.mark.parametrize("late", ["success", "failure", "retry", "stop"])
def test_a_late_report_of_an_earlier_attempt_is_refused(queue: Queue, clock: Clock, late: str) -> None:
    run = queue.submit()
    stale = queue.claim(run)
    clock.advance(20)
    queue.expire()
    current = queue.claim(run)
    with pytest.raises(StaleAttempt):
        REPORTS[late](queue, run, stale)
    assert queue.statuses(run) == {"train": "running"}
    assert queue.finish(current) == "succeeded"
    with pytest.raises(StaleAttempt):
        REPORTS[late](queue, run, stale)
    assert queue.status(run) == "succeeded"
