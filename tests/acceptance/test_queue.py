"""The queue end to end: a store, a broker, real workers and their stage processes, and what befalls them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from engine.clock import utc_now
from engine.plan.stage import Resources, Stage
from engine.settings import Settings
from engine.store import events, runs, workers
from engine.store.processes import process_started
from engine.store.tables import RunId
from tests.acceptance.lab import Lab
from tests.waiting import until
from workers import dispatch

HERE = Path(__file__).parent
REDIS = os.environ.get("RLX_TEST_REDIS", "redis://127.0.0.1:6379/9")
RABBITMQ = os.environ.get("RLX_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")


@pytest.fixture
def lab(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("RLX_PRELOAD", "")  # these stages need none of it
    lab = Lab(settings, tmp_path / "gate")
    yield lab
    for worker in lab.workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
    lab.db.close()


NOOP = Stage("noop", "test.noop", "queue_stages:noop", (), config={"answer": 2})
DOUBLE = Stage("double", "test.add", "queue_stages:add", (), inputs={"a": "noop", "b": "noop"})
FAIL = Stage("fail", "test.fail", "queue_stages:fail", ())


def test_a_run_is_carried_out_by_the_worker_that_it_was_given(lab: Lab) -> None:
    run = lab.submit(NOOP, DOUBLE, lab.count())
    worker = lab.embedded(run)
    pid = lab.paused()

    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "libtorch" not in maps, "the worker itself never loads torch"
    assert "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    lab.gate.touch()

    assert lab.ended(run) == "succeeded"
    assert worker.wait(30) == 0
    assert lab.output(run, "double", "answer.txt") == "4"
    lab.check_count(run)
    assert process_started(pid) is None
    log = Path(lab.attempts(run, "count")[0].log_path)
    assert log == lab.settings.logs / run.handle / "count-1.log"
    assert "counting from 1" in log.read_text()
    with lab.db.read() as session:
        assert workers.alive(session, utc_now()) == []


def test_the_same_work_is_not_done_twice(lab: Lab) -> None:
    first = lab.submit(NOOP, DOUBLE)
    lab.embedded(first)
    assert lab.ended(first) == "succeeded"
    second = lab.submit(NOOP, DOUBLE)

    assert lab.status(second) == "succeeded"
    assert [stage.cached for stage in lab.stages(second).values()] == [True, True]


def test_a_killed_stage_goes_on_from_its_checkpoint(lab: Lab) -> None:
    run = lab.submit(lab.count())
    lab.embedded(run)
    pid = lab.paused()
    lab.recorded(run, 5)
    os.kill(pid, signal.SIGKILL)
    lab.gate.touch()

    assert lab.ended(run) == "succeeded"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["failed", "succeeded"]
    assert lab.attempts(run, "count")[0].cause == "lost"
    lab.check_count(run)


def test_a_new_worker_adopts_the_stage_of_a_killed_one(lab: Lab) -> None:
    run = lab.submit(lab.count())
    worker = lab.embedded(run)
    pid = lab.paused()
    worker.kill()
    worker.wait()

    with lab.db.write() as session:
        assert not runs.resume(session, runs.get(session, RunId(run.id)), now=utc_now())  # nothing is lost
    lab.embedded(run)
    until(lambda: lab.happened(run, "stage.adopted"))
    assert process_started(pid) is not None
    lab.gate.touch()

    assert lab.ended(run) == "succeeded"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["succeeded"]
    assert process_started(pid) is None
    lab.check_count(run)


def test_a_stage_that_ended_without_its_worker_is_recorded_by_the_next(lab: Lab) -> None:
    run = lab.submit(lab.count())
    worker = lab.embedded(run)
    pid = lab.paused()
    worker.kill()
    worker.wait()
    lab.gate.touch()
    until(lambda: process_started(pid) is None)
    assert lab.status(run) == "running"

    lab.embedded(run)

    assert lab.ended(run) == "succeeded"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["succeeded"]
    lab.check_count(run)


def test_resume_takes_up_a_run_whose_worker_was_killed_with_its_stage(lab: Lab) -> None:
    run = lab.submit(lab.count())
    worker = lab.embedded(run)
    pid = lab.paused()
    lab.recorded(run, 5)
    worker.kill()
    worker.wait()
    os.kill(pid, signal.SIGKILL)
    until(lambda: process_started(pid) is None)
    lab.gate.touch()
    assert lab.status(run) == "running"

    with lab.db.write() as session:
        assert runs.resume(session, runs.get(session, RunId(run.id)), now=utc_now())
    lab.embedded(run)

    assert lab.ended(run) == "succeeded"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["lost", "succeeded"]
    lab.check_count(run)


def test_another_worker_finishes_what_a_killed_one_began(lab: Lab) -> None:
    run = lab.submit(lab.count())
    first = lab.worker(lease_s=3)
    pid = lab.paused()
    lab.recorded(run, 5)
    lab.worker(lease_s=3)
    until(lambda: len(dispatch.find_alive(lab.settings)) == 2)
    # As if the machine went: a living stage would be adopted, or stop and say so, and a living worker record its end.
    first.send_signal(signal.SIGSTOP)
    os.waitpid(first.pid, os.WUNTRACED)
    os.kill(pid, signal.SIGKILL)
    first.kill()
    until(lambda: len(lab.attempts(run, "count")) == 2)
    lab.gate.touch()

    assert lab.ended(run) == "succeeded"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["lost", "succeeded"]
    lab.check_count(run)


def test_a_worker_that_is_told_to_leave_hands_its_stage_on(lab: Lab) -> None:
    run = lab.submit(lab.count())
    first = lab.worker()
    pid = lab.paused()
    first.terminate()

    assert first.wait(60) == 0
    assert process_started(pid) is None
    assert lab.stages(run)["count"].status == "ready"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["cancelled"]
    lab.gate.touch()
    lab.worker()
    assert lab.ended(run) == "succeeded"
    lab.check_count(run)


def test_a_cancelled_run_stops_at_a_checkpoint_and_can_be_resumed(lab: Lab) -> None:
    run = lab.submit(lab.count())
    worker = lab.embedded(run)
    pid = lab.paused()
    with lab.db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())

    assert lab.ended(run) == "cancelled"
    assert process_started(pid) is None
    assert worker.wait(30) == 0
    lab.recorded(run, 5)
    with lab.db.write() as session:
        assert runs.resume(session, runs.get(session, RunId(run.id)), now=utc_now())
    lab.gate.touch()
    lab.embedded(run)
    assert lab.ended(run) == "succeeded"
    lab.check_count(run)


def test_a_cancelled_stage_that_does_not_listen_is_gone_within_seconds(lab: Lab) -> None:
    run = lab.submit(Stage("deaf", "test.deaf", "queue_stages:deaf", (), extra={"gate": str(lab.gate)}))
    lab.embedded(run)
    marker = lab.gate.with_suffix(".reached")
    pids = [int(word) for word in until(lambda: marker.exists() and marker.read_text()).split()]
    with lab.db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())

    assert lab.ended(run) == "cancelled"
    assert [process_started(pid) for pid in pids] == [None, None]
    with lab.db.read() as session:
        ended, asked = (
            next(event.time for event in events.of_run(session, RunId(run.id)) if event.kind == kind)
            for kind in ("run.cancelled", "run.stopping")
        )
    assert (ended - asked).total_seconds() >= runs.STOP_GRACE_S


def test_a_run_that_fails_says_why(lab: Lab) -> None:
    run = lab.submit(FAIL, Stage("after", "test.add", "queue_stages:add", (), inputs={"a": "fail"}))
    worker = lab.embedded(run)

    assert lab.ended(run) == "failed"
    assert worker.wait(30) == 0
    failed = lab.stages(run)["fail"]
    assert (failed.cause, failed.error) == ("data_error", "items.jsonl:3: the answer is missing")
    assert lab.stages(run)["after"].status == "cancelled"
    (attempt,) = lab.attempts(run, "fail")
    assert "about to fail" in attempt.log_tail
    with lab.db.read() as session:
        assert "stage.failed" in [event.kind for event in events.of_run(session, RunId(run.id))]


def test_two_submissions_in_one_home_have_a_worker_each(lab: Lab) -> None:
    one, two = (lab.submit(lab.count(), name=name) for name in ("one", "two"))
    first = lab.embedded(one)
    lab.paused()
    assert dispatch.find_alive(lab.settings) == []  # it serves `one` alone
    second = lab.embedded(two)
    lab.paused()
    lab.gate.touch()

    assert [lab.ended(one), lab.ended(two)] == ["succeeded", "succeeded"]
    assert [first.wait(30), second.wait(30)] == [0, 0]
    for run in (one, two):
        lab.check_count(run)


@pytest.mark.parametrize(
    "broker",
    [
        "filesystem://",
        pytest.param(REDIS, marks=pytest.mark.redis, id="redis"),
        pytest.param(RABBITMQ, marks=pytest.mark.rabbitmq, id="rabbitmq"),
    ],
)
def test_a_worker_hears_of_a_run_from_the_broker(lab: Lab, broker: str) -> None:
    lab.settings, lab.queue = replace(lab.settings, broker_url=broker), f"rlx-test-{uuid4().hex[:12]}"
    try:
        lab.worker(pulse_s=3600)  # it never looks by itself, after the first time
        (alive,) = until(lambda: dispatch.find_alive(lab.settings))
        assert alive.queues == [lab.queue]
        first = lab.submit(NOOP)
        dispatch.publish(lab.settings)
        assert lab.ended(first) == "succeeded"
        second = lab.submit(NOOP, DOUBLE, name="other")
        dispatch.publish(lab.settings)
        assert lab.ended(second) == "succeeded"
    finally:
        _delete_queue(lab)


def _delete_queue(lab: Lab) -> None:
    from workers.app import make_app

    for worker in lab.workers:
        worker.kill()
        worker.wait()
    with make_app(lab.settings).connection_for_write() as connection:
        channel = connection.default_channel
        channel.queue_delete(lab.queue)
        channel.exchange_delete(lab.queue)
        if lab.settings.broker_url.startswith("redis"):
            channel.client.delete(*(f"_kombu.{kind}.{lab.queue}" for kind in ("binding", "binding_permanent")))


def test_a_worker_for_one_run_serves_every_queue_and_leaves_what_it_cannot_carry(lab: Lab) -> None:
    lab.queue = "somewhere-else"
    large = Stage("large", "test.add", "queue_stages:add", (), inputs={"a": "noop"}, resources=Resources(gpus=999))
    run = lab.submit(NOOP, large)

    assert lab.embedded(run).wait(120) == 1
    assert lab.stages(run)["noop"].status == "succeeded"
    assert lab.stages(run)["large"].status == "ready"
    with lab.db.read() as session:
        (message,) = [e.message for e in events.of_run(session, RunId(run.id)) if e.kind == "run.stuck"]
    assert "large needs 999 GPUs" in message


def test_without_a_broker_a_worker_still_works(lab: Lab) -> None:
    lab.settings = replace(lab.settings, broker_url="redis://127.0.0.1:1/0")
    run = lab.submit(NOOP)
    assert dispatch.publish(lab.settings) == 0
    lab.worker()
    assert lab.ended(run) == "succeeded"


def drain(lab: Lab, how: workers.Drain) -> None:
    until(lambda: dispatch.find_alive(lab.settings))
    with lab.db.write() as session:
        assert workers.drain(session, None, how, now=utc_now())


def test_a_drained_worker_hands_its_stage_on_at_a_checkpoint(lab: Lab) -> None:
    run = lab.submit(lab.count())
    worker = lab.worker()
    pid = lab.paused()
    drain(lab, workers.Drain.NOW)

    assert worker.wait(60) == 0
    assert process_started(pid) is None
    assert lab.stages(run)["count"].status == "ready"
    with lab.db.read() as session:
        assert workers.alive(session, utc_now()) == []
    lab.gate.touch()
    lab.worker()
    assert lab.ended(run) == "succeeded"
    lab.check_count(run)


def test_a_worker_drained_after_its_current_stage_ends_it_and_takes_no_other(lab: Lab) -> None:
    run = lab.submit(lab.count())
    worker = lab.worker()
    lab.paused()
    drain(lab, workers.Drain.AFTER_CURRENT)
    until(lambda: [found for found in dispatch.find_alive(lab.settings) if found.status == "draining"])
    other = lab.submit(NOOP, name="other")
    lab.gate.touch()

    assert worker.wait(60) == 0
    assert lab.status(run) == "succeeded"
    assert [attempt.status for attempt in lab.attempts(run, "count")] == ["succeeded"]
    lab.check_count(run)
    assert lab.stages(other)["noop"].status == "ready"


def test_a_stage_that_kills_its_workers_is_set_aside_and_the_others_go_on(lab: Lab) -> None:
    run = lab.submit(
        Stage("poison", "test.poison", "queue_stages:kill_worker", ()),
        Stage("noop", "test.noop", "queue_stages:noop", ()),
    )
    for _ in range(3):
        worker = lab.worker(lease_s=9)  # long enough for a worker that is silent all the while to count as dead
        assert worker.wait(120) == -signal.SIGKILL
    lab.worker(lease_s=9)
    assert lab.ended(run) == "failed"

    found = lab.stages(run)
    assert (found["noop"].status, found["poison"].status, found["poison"].cause) == ("succeeded", "failed", "lost")
    assert "quarantined: 3 workers in a row" in found["poison"].error
    assert [attempt.status for attempt in lab.attempts(run, "poison")] == ["lost"] * 3
    assert len(lab.attempts(run, "poison")[-1].detail["quarantine"]) == 3
    assert len(lab.attempts(run, "noop")) == 1
