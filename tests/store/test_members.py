"""The nodes of an attempt: leased all at once or not at all, each with a lease of its own, over with their attempt."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import select

from engine.errors import Refused, StaleAttempt
from engine.plan.stage import Needs, Resources
from engine.store import events, members, runs, stages, workers
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Run, StageId, WorkerId
from tests.store.nodes import Nodes
from tests.store.walk import Clock


@pytest.fixture
def nodes(db: Database, clock: Clock) -> Nodes:
    return Nodes(db, clock)


def test_one_claim_leases_what_every_node_needs(nodes: Nodes) -> None:
    one, two, three = nodes.worker("one", 2), nodes.worker("two", 2), nodes.worker("three")
    stage = nodes.submit(slots=2)

    claimed = nodes.claim(stage, one, "slot:0", "slot:1")

    assert claimed is not None
    assert claimed.gang is not None
    assert list(map(str, claimed.gang.nodes)) == ["one on host-one", "two on host-two"]
    assert nodes.leases() == {(worker, f"slot:{slot}") for worker in (one, two) for slot in (0, 1)}
    (call,) = nodes.calls(two)
    assert (call.node, call.stage_id, set(call.devices)) == (1, stage, {"slot:0", "slot:1"})
    assert nodes.calls(one) == nodes.calls(three) == []
    with nodes.db.read() as session:
        (on_one,), (on_two,) = (workers.held(session, [worker])[worker] for worker in (one, two))
    assert [(it.node, it.nodes, set(it.devices)) for it in (on_one, on_two)] == [
        (0, 2, {"slot:0", "slot:1"}),
        (1, 2, {"slot:0", "slot:1"}),
    ]


def test_with_too_few_workers_nothing_is_leased_and_the_queue_says_why(nodes: Nodes) -> None:
    one = nodes.worker("one")
    stage = nodes.submit()
    assert nodes.claim(stage, one) is None
    assert nodes.leases() == set()
    assert nodes.why() == ["needs 2 workers with 1 slot each; 1 worker lends that"]

    two = nodes.worker("two")
    nodes.worker("elsewhere", queues=("other",))
    assert nodes.claim(nodes.submit(nodes=1), two) is not None
    assert nodes.claim(stage, one) is None
    assert nodes.leases() == {(two, "slot:0")}
    assert nodes.why() == ["needs 2 workers with 1 slot each; 1 of 2 has them free"]


def test_a_worker_that_drains_or_is_gone_takes_no_part(nodes: Nodes, clock: Clock) -> None:
    one, two = nodes.worker("one"), nodes.worker("two")
    stage = nodes.submit()
    with nodes.db.write() as session:
        workers.drain(session, "two", workers.Drain.NOW, now=clock())
    assert nodes.claim(stage, one) is None
    three = nodes.worker("three")
    clock.advance(workers.ALIVE_WITHIN_S + 1)
    nodes.beat(one, two)
    assert nodes.claim(stage, one) is None
    nodes.beat(three)
    assert nodes.claim(stage, one) is not None


def test_two_gangs_at_once_get_all_or_nothing_each(nodes: Nodes) -> None:
    """Four workers that each try to begin their own gang of three: one begins, and none holds a part."""
    ids = [nodes.worker(f"w{number}") for number in range(4)]
    gangs = [nodes.submit(nodes=3) for _ in ids]
    start, won = threading.Barrier(len(ids)), []

    def race(stage: StageId, worker: WorkerId) -> None:
        start.wait()
        try:
            claimed = nodes.claim(stage, worker)
        except Refused:  # another's claim has just leased our own device
            return
        if claimed is not None:
            won.append(claimed)

    threads = [threading.Thread(target=race, args=pair) for pair in zip(gangs, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert len(nodes.leases()) == 3
    nodes.queue.finish(won[0])
    assert nodes.leases() == set()


def test_a_device_that_was_leased_to_a_gang_is_refused_to_its_own_worker(nodes: Nodes) -> None:
    one, two = nodes.worker("one"), nodes.worker("two")
    assert nodes.claim(nodes.submit(), one) is not None

    with pytest.raises(Refused, match="leased to another attempt"):
        nodes.claim(nodes.submit(nodes=1), two)


def test_silence_of_any_node_ends_the_attempt_names_it_and_frees_all(nodes: Nodes, clock: Clock) -> None:
    one, two = nodes.worker("one"), nodes.worker("two")
    stage = nodes.submit()
    claimed = nodes.claim(stage, one)
    assert claimed is not None
    clock.advance(10)
    nodes.queue.heartbeat(claimed)
    nodes.renew(claimed)
    clock.advance(10)
    assert nodes.queue.expire() == []
    nodes.queue.heartbeat(claimed)
    clock.advance(10)
    nodes.queue.heartbeat(claimed)

    (lost,) = nodes.queue.expire()

    assert (lost.stage_id, lost.status) == (stage, "ready")
    assert nodes.leases() == set()
    assert nodes.queue.expire() == []
    with nodes.db.read() as session:
        (attempt,) = stages.attempts(session, stage)
        assert (attempt.status, attempt.cause) == ("lost", "lost")
        assert str(attempt.error).startswith("node 1 (two on host-two) fell silent")
        assert "stage.lost" in [event.kind for event in events.of_run(session, claimed.run_id)]
    with pytest.raises(StaleAttempt):
        nodes.queue.heartbeat(claimed)
    with pytest.raises(StaleAttempt):
        nodes.renew(claimed)
    assert nodes.claim(stage, one) is None, "two has not been heard of since"
    clock.advance(1)
    nodes.beat(one, two)
    again = nodes.claim(stage, one)
    assert again is not None
    assert again.number == 2


def test_silence_of_the_first_node_is_that_of_the_attempt(nodes: Nodes, clock: Clock) -> None:
    claimed = nodes.claim(nodes.submit(), nodes.worker("one")) or nodes.claim(nodes.submit(), nodes.worker("two"))
    assert claimed is not None
    clock.advance(10)
    nodes.renew(claimed)
    clock.advance(6)
    assert len(nodes.queue.expire()) == 1
    assert nodes.leases() == set()


@pytest.mark.parametrize("outcome", [Outcome.stopped(), Outcome.failed("oom", "no memory")])  # type: ignore[arg-type]
def test_the_end_of_the_attempt_frees_every_node_and_calls_nobody(nodes: Nodes, outcome: Outcome) -> None:
    one, two = nodes.worker("one"), nodes.worker("two")
    claimed = nodes.claim(nodes.submit(), one)
    assert claimed is not None

    nodes.queue.finish(claimed, outcome)

    assert nodes.leases() == set()
    assert nodes.calls(two) == []
    with nodes.db.read() as session, pytest.raises(StaleAttempt):
        stages.joined(session, claimed.attempt_id, 1)


def test_a_node_sees_the_attempt_and_where_to_go_once_that_is_open(nodes: Nodes) -> None:
    one, two = nodes.worker("one"), nodes.worker("two")
    claimed = nodes.claim(nodes.submit(), one)
    assert claimed is not None
    assert claimed.gang is not None
    (call,) = nodes.calls(two)

    def joined() -> Claimed:
        with nodes.db.read() as session:
            return stages.joined(session, call.attempt_id, call.node)

    assert joined() == replace(claimed, gang=replace(claimed.gang, node=1))
    with nodes.db.write() as session:
        members.open_at(session, claimed.attempt_id, "10.0.0.1", 4711)
    assert joined().gang == replace(claimed.gang, node=1, address="10.0.0.1", port=4711)
    assert Claimed.from_data(joined().as_data()) == joined()


def test_a_run_that_is_given_one_node_needs_no_other_worker(nodes: Nodes) -> None:
    one = nodes.worker("one")
    stage = nodes.submit()
    with nodes.db.write() as session:
        run = session.get_one(Run, session.scalars(select(Run.id)).one())
        runs.request_stop(session, run, now=nodes.clock(), by="me")
        runs.resume(session, run, now=nodes.clock(), resources={"train": Resources(launcher="torchrun", processes=1)})
    claimed = nodes.claim(stage, one)
    assert claimed is not None
    assert claimed.gang is None
    assert claimed.resources.needs == Needs(1)
