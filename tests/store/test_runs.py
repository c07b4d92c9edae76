from __future__ import annotations

import os
import threading

import pytest
from sqlalchemy import select

from engine.errors import Cause, NotFound, Refused
from engine.store import events, runs, stages, workers
from engine.store.processes import host_name, process_started, provably_gone
from engine.store.session import Database
from engine.store.stages import Outcome, Signal
from engine.store.tables import Spec
from tests.store.walk import Clock, Queue


def test_handles_count_up_under_the_specs_name(queue: Queue) -> None:
    handles = [queue.submit(name="best_lang").handle, queue.submit(name="qa").handle, queue.submit().handle]
    assert handles == ["best-lang-1", "qa-1", "best-lang-2"]


def test_two_submissions_at_once_get_two_handles(queue: Queue) -> None:
    start, handles = threading.Barrier(5), []

    def submit(number: int) -> None:
        start.wait()
        handles.append(queue.submit(salt=str(number)).handle)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(handles) == [f"best-lang-{n}" for n in range(1, 6)]


def test_a_revision_grows_when_the_content_changes_and_only_then(db: Database, queue: Queue) -> None:
    for base, overrides in (({"lr": 1}, ["seed=1"]), ({"lr": 1}, ["seed=2"]), ({"lr": 2}, []), ({"lr": 1}, [])):
        queue.submit(base=base, overrides=overrides)
    with db.read() as session:
        rows = session.execute(select(Spec.revision, Spec.resolved).order_by(Spec.revision)).all()
        used = [summary.spec for summary in runs.listing(session)]
    assert [tuple(row) for row in rows] == [(1, {"lr": 1}), (2, {"lr": 2}), (3, {"lr": 1})]
    assert used == ["best_lang@3", "best_lang@2", "best_lang@1", "best_lang@1"]


def test_everything_said_at_submission_is_kept(db: Database, queue: Queue) -> None:
    run = queue.submit(
        source="version: 1\n# ours",
        resolved={"model": {"name": "x"}, "token": "${env:HF_TOKEN}"},
        overrides=["seed=3"],
        tags=["night"],
        notes="why not",
        user="ada",
        code={"commit": "abc"},
        packages={"torch": "2.13"},
        hardware={"cpus": 2},
        tiny=True,
        functions_hash="f" * 64,
        priority=5,
        seed=3,
    )
    with db.read() as session:
        found = runs.find(session, run.handle)
        spec = runs.spec_of(session, found)
    assert spec.source == "version: 1\n# ours"
    assert found.resolved == {"model": {"name": "x"}, "token": "${env:HF_TOKEN}"}
    assert (found.overrides, found.tags, found.notes, found.user) == (["seed=3"], ["night"], "why not", "ada")
    assert (found.code, found.packages, found.hardware) == ({"commit": "abc"}, {"torch": "2.13"}, {"cpus": 2})
    assert (found.tiny, found.functions_hash, found.priority, found.seed) == (True, "f" * 64, 5, 3)


def test_runs_are_found_by_what_people_type(db: Database, queue: Queue, clock: Clock) -> None:
    for name in ("best_lang", "best_lang", "qa_hop"):
        queue.submit(name=name)
        clock.advance(1)
    with db.read() as session:
        for typed, handle in {
            "best-lang-1": "best-lang-1",
            "best_lang_2": "best-lang-2",
            "qa": "qa-hop-1",
            "@last": "qa-hop-1",
        }.items():
            assert runs.find(session, typed).handle == handle
        for typed, said in {
            "best": "several runs: best-lang-2, best-lang-1",
            "best-lnag-1": "Did you mean 'best-lang-1'",
            "nothing-like-it": "rlx ls",
            "%": "rlx ls",
        }.items():
            with pytest.raises(NotFound, match=said):
                runs.find(session, typed)


def test_an_exact_handle_is_not_a_prefix(db: Database, queue: Queue) -> None:
    for number in range(10):
        queue.submit(salt=str(number))
    with db.read() as session:
        assert runs.find(session, "best-lang-1").handle == "best-lang-1"


def test_the_last_of_nothing_is_not_found(db: Database) -> None:
    with pytest.raises(NotFound, match="rlx submit"), db.read() as session:
        runs.find(session, "@last")


def test_a_queued_run_is_cancelled_at_once(queue: Queue) -> None:
    run = queue.submit("a", "b<a")
    assert queue.stop(run) is True
    assert queue.status(run) == "cancelled"
    assert set(queue.statuses(run).values()) == {"cancelled"}
    assert queue.try_claim(queue.stage(run, "a")) is None


def test_a_running_run_stops_when_its_stages_have_left(queue: Queue) -> None:
    run = queue.submit("a", "b", "c<a")
    claimed = queue.claim(run, "a")
    queue.stop(run)
    assert queue.status(run) == "stopping"
    assert queue.statuses(run) == {"a": "running", "b": "cancelled", "c": "cancelled"}
    assert queue.heartbeat(claimed) is Signal.STOP
    assert queue.finish(claimed, Outcome.stopped()) == "cancelled"
    assert queue.status(run) == "cancelled"


def test_work_that_was_done_when_the_stop_came_is_kept(queue: Queue) -> None:
    run = queue.submit("a", "b<a")
    claimed = queue.claim(run, "a")
    queue.stop(run)
    assert queue.finish(claimed) == "succeeded"
    assert queue.status(run) == "cancelled"
    assert queue.statuses(queue.submit("a", "b<a")) == {"a": "succeeded", "b": "ready"}


@pytest.mark.parametrize("cause", [Cause.INTERNAL, Cause.REWARD_ERROR])
def test_nothing_is_tried_again_while_stopping(queue: Queue, cause: Cause) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    queue.stop(run)
    assert queue.finish(claimed, Outcome.failed(cause, "killed")) == "cancelled"
    assert queue.status(run) == "cancelled"


def test_a_worker_that_dies_while_stopping_does_not_hold_the_run(queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    queue.claim(run)
    queue.stop(run)
    clock.advance(16)
    assert [lost.status for lost in queue.expire()] == ["cancelled"]
    assert queue.status(run) == "cancelled"


def test_an_ended_run_cannot_be_stopped(queue: Queue) -> None:
    run = queue.submit()
    queue.finish(queue.claim(run))
    assert queue.stop(run) is False
    assert queue.status(run) == "succeeded"


def test_resume_tries_what_is_left_with_fresh_attempts(queue: Queue, clock: Clock) -> None:
    run = queue.submit("a", "b<a", "c<b", max_attempts=1)
    queue.finish(queue.claim(run, "a"))
    queue.finish(queue.claim(run, "b"), Outcome.failed(Cause.INTERNAL, "crash"))
    assert queue.status(run) == "failed"
    queue.announced()

    assert queue.resume(run) is True

    assert queue.status(run) == "queued"
    assert queue.statuses(run) == {"a": "succeeded", "b": "ready", "c": "waiting"}
    assert queue.announced() == [queue.stage(run, "b")]
    claimed = queue.claim(run, "b")
    assert claimed.number == 2
    queue.finish(claimed)
    queue.finish(queue.claim(run, "c"))
    assert queue.status(run) == "succeeded"


def test_a_cancelled_run_can_be_resumed_and_stopped_again(queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    queue.stop(run)
    queue.finish(claimed, Outcome.stopped())
    queue.resume(run)
    assert queue.heartbeat(queue.claim(run)) is Signal.KEEP
    assert queue.stop(run) is True


def test_success_is_not_resumed(queue: Queue) -> None:
    run = queue.submit()
    queue.finish(queue.claim(run))
    with pytest.raises(Refused, match="succeeded"):
        queue.resume(run)


def test_a_live_run_needs_no_resume(queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    assert queue.resume(run) is False
    assert queue.heartbeat(claimed) is Signal.KEEP


def test_resume_refuses_while_a_live_stage_is_still_stopping(queue: Queue) -> None:
    run = queue.submit()
    queue.claim(run)
    queue.stop(run)
    with pytest.raises(Refused, match="stopping"):
        queue.resume(run)


@pytest.mark.parametrize("stopping", [False, True])
def test_resume_does_not_wait_for_the_lease_of_the_dead(queue: Queue, stopping: bool) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    with queue.db.write() as session:
        stages.start(session, claimed, pid=4711, pid_started=1.0)
    if stopping:
        queue.stop(run)
    asked = []

    def gone(host: str, pid: int, started: float | None) -> bool:
        asked.append((host, pid, started))
        return True

    assert queue.resume(run, gone=gone) is True

    assert asked == [("elsewhere", 4711, 1.0), ("elsewhere", 1, None)]
    assert queue.claim(run).number == 2


@pytest.mark.parametrize("survivor", [4711, 1])
def test_resume_leaves_an_attempt_alone_while_either_process_may_live(queue: Queue, survivor: int) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    with queue.db.write() as session:
        stages.start(session, claimed, pid=4711)
    assert queue.resume(run, gone=lambda host, pid, started: pid != survivor) is False
    assert queue.heartbeat(claimed) is Signal.KEEP


def test_whether_a_process_is_gone_is_told_by_pid_and_start() -> None:
    me, here = os.getpid(), host_name()
    began = process_started(me)
    assert began is not None
    assert not provably_gone(here, me, began)
    assert not provably_gone(here, me, None)
    assert provably_gone(here, me, began + 1)  # another process had this pid
    assert not provably_gone("another-host", me, began + 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert provably_gone(here, child, None)  # a zombie does nothing more
    os.waitpid(child, 0)
    assert provably_gone(here, child, None)


def test_what_happened_can_be_read_in_order(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    clock.advance(16)
    queue.expire()
    queue.finish(queue.claim(run), Outcome.failed(Cause.REWARD_ERROR, "bad"))
    with db.read() as session:
        told = [(event.kind, event.attempt) for event in events.of_run(session, run.id)]
    assert told == [
        ("run.submitted", None),
        ("stage.started", 1),
        ("stage.lost", 1),
        ("stage.started", 2),
        ("stage.failed", 2),
        ("run.failed", None),
    ]
    assert claimed.number == 1


def test_workers_are_alive_while_they_give_signs(db: Database, queue: Queue, clock: Clock) -> None:
    def names() -> list[str]:
        with db.read() as session:
            return [worker.name for worker in workers.alive(session, clock())]

    assert names() == ["w"]
    clock.advance(10)
    with db.write() as session:
        workers.heartbeat(session, queue.worker, now=clock())
    clock.advance(10)
    assert names() == ["w"]
    clock.advance(10)
    assert names() == []
    with db.write() as session:
        workers.heartbeat(session, queue.worker, now=clock())
    assert names() == ["w"]
    with db.write() as session:
        workers.mark_gone(session, queue.worker)
    assert names() == []
