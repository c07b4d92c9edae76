"""Two hosts with a network of their own, one of them cut off from database and broker for longer than its lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from engine.clock import utc_now
from engine.settings import Settings
from engine.store import workers
from engine.store.processes import process_started
from tests.faults import ledger, training
from tests.faults.fleet import Fleet
from tests.faults.network import Network
from tests.faults.servers import Postgres, Redis
from tests.faults.undisturbed import undisturbed
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_host_that_was_cut_off_changes_nothing_when_it_is_back(stack: ExitStack, tmp_path: Path) -> None:
    for kind in (Postgres, Redis):
        if reason := kind.absent():
            pytest.skip(reason)
    (expected,) = undisturbed(tmp_path / "undisturbed", [training.plan(7, pace_s=0)])
    network = stack.enter_context(Network(["one", "two"]))
    database = stack.enter_context(Postgres(host="0.0.0.0", inside=network.hub.inside))
    broker = stack.enter_context(Redis(host="0.0.0.0", inside=network.hub.inside))
    fleet = stack.enter_context(Fleet(tmp_path / "shared", database_url=database.socket_url, lease_s=4))

    def seen_from(host: str) -> Settings:
        address = network.address(host)
        return replace(fleet.settings, database_url=database.url_at(address), broker_url=broker.url_at(address))

    gate, later = tmp_path / "gate", tmp_path / "later"
    run = fleet.submit(training.plan(7, gates=[gate, later]))
    fleet.start_worker(settings=seen_from("one"), inside=network.hosts["one"].inside)
    cut_off = fleet.trained(run, attempt=1, step=training.HELD_AT)
    fleet.start_worker(settings=seen_from("two"), inside=network.hosts["two"].inside)

    def hosts() -> list[str]:
        with fleet.db.read() as session:
            return sorted(worker.host for worker in workers.alive(session, utc_now()))

    until(lambda: hosts() == ["one", "two"], "both hosts have a worker")
    network.cut("one")
    gate.touch()  # it goes on, and nobody hears of it
    taken_over = fleet.trained(run, attempt=2, step=training.HELD_AGAIN_AT)
    later.touch()
    assert process_started(cut_off.pid) == cut_off.pid_started, "the stage that was cut off knows of nothing"
    assert taken_over.worker_pid != cut_off.worker_pid
    network.mend("one")

    assert fleet.ended(run) == "succeeded"
    assert [attempt.status for attempt in fleet.attempts(run)] == ["lost", "succeeded"]
    assert ledger.losses(ledger.read(fleet.db, run), expected) == []
    assert ledger.breaches(fleet.db, run) == []
    until(lambda: process_started(cut_off.pid) != cut_off.pid_started, "the stage that was cut off ends")
    until(lambda: hosts() == ["one", "two"], "the host is back")

    again = fleet.submit(training.plan(7))
    network.cut("two")
    assert fleet.ended(again) == "succeeded", "the host that was cut off first does it"
    assert ledger.losses(ledger.read(fleet.db, again), expected) == []
    assert ledger.breaches(fleet.db, again) == []
