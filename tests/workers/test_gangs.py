"""What workers do about stages of several nodes: begin when all fit, keep devices meanwhile, and starve nobody."""

from __future__ import annotations

import pytest

from engine.errors import Refused
from engine.store.session import Database
from engine.store.stages import Claimed
from engine.store.tables import StageId
from tests.store.nodes import Nodes
from tests.store.walk import Clock
from workers.choice import Chooser
from workers.devices import Devices


class Cluster(Nodes):
    """Workers of one slot each that look in turn, and stages that end when a test says so."""

    def __init__(self, db: Database, clock: Clock, *names: str) -> None:
        super().__init__(db, clock)
        self.ids = {name: self.worker(name) for name in names}
        self.devices = {name: Devices(1) for name in names}
        self._choosers = {
            name: Chooser(db, self.ids[name], self.devices[name], ["default"], None, clock) for name in names
        }
        self.running: dict[StageId, tuple[Claimed, set[str]]] = {}

    def look(self, name: str) -> StageId | None:
        """What the worker starts."""
        self.answer(name)
        for stage, devices in self._choosers[name].choose():
            claimed = self.claim(stage.stage_id, self.ids[name], *devices)
            if claimed is not None:
                self.running[stage.stage_id] = (claimed, {name})
                return stage.stage_id
            self.devices[name].give_back(devices)
        return None

    def answer(self, name: str) -> None:
        """The worker answers its calls."""
        for call in self.calls(self.ids[name]):
            if self.devices[name].lend_exactly(call.devices):
                self.running[call.stage_id][1].add(name)
                self.renew(self.running[call.stage_id][0], call.node)

    def end(self, stage: StageId) -> None:
        claimed, names = self.running.pop(stage)
        self.queue.finish(claimed)
        for name in names:
            self.devices[name].give_back(["slot:0"])

    def holders(self, stage: StageId) -> set[str]:
        return self.running[stage][1]


@pytest.fixture
def cluster(db: Database, clock: Clock) -> Cluster:
    return Cluster(db, clock, "one", "two")


def test_whoever_looks_begins_once_all_fit(cluster: Cluster) -> None:
    gang = cluster.submit()
    assert cluster.look("two") == gang
    assert cluster.look("one") is None
    assert cluster.holders(gang) == {"one", "two"}
    cluster.end(gang)


def test_small_stages_that_keep_coming_do_not_starve_it(cluster: Cluster, clock: Clock) -> None:
    small = [cluster.submit(nodes=1) for _ in range(2)]
    assert {cluster.look("one"), cluster.look("two")} == set(small)
    clock.advance(1)
    gang = cluster.submit()
    clock.advance(1)
    behind = [cluster.submit(nodes=1) for _ in range(4)]
    first = next(stage for stage in small if cluster.holders(stage) == {"one"})
    cluster.end(first)

    assert cluster.look("one") is None, "it keeps its slot for the gang"
    assert cluster.why()[0].startswith("needs 2 workers with 1 slot each; 1 of 2 has them free, kept by one")
    cluster.end(*(stage for stage in small if stage != first))
    assert cluster.look("one") == gang
    assert cluster.look("two") is None
    cluster.end(gang)
    assert {cluster.look("one"), cluster.look("two")} < set(behind)


def test_it_waits_for_what_is_more_urgent_and_is_passed_by_nothing_else(cluster: Cluster, clock: Clock) -> None:
    gang = cluster.submit()
    urgent = cluster.submit(nodes=1, priority=5)
    assert cluster.look("one") == urgent
    assert cluster.look("two") is None
    cluster.end(urgent)
    assert cluster.look("two") == gang


def test_two_gangs_that_keep_for_each_other_do_not_wait_for_ever(db: Database, clock: Clock) -> None:
    cluster = Cluster(db, clock, "one", "two", "three")
    small = [cluster.submit(nodes=1) for _ in range(3)]
    for name in cluster.ids:
        cluster.look(name)
    gangs = []
    for _ in range(2):
        clock.advance(1)
        gangs.append(cluster.submit())
    by_worker = {name: stage for stage in small for name in cluster.holders(stage)}
    done: list[StageId] = []
    for name in ("three", "one", "two"):
        cluster.end(by_worker[name])
        for looker in ("two", "one", "three"):
            started = cluster.look(looker)
            done += [started] if started else []
    for name in cluster.ids:
        cluster.answer(name)
    assert done == gangs[:1]
    cluster.end(gangs[0])
    assert [cluster.look(name) for name in ("three", "one", "two")] == [gangs[1], None, None]


def test_a_worker_whose_slot_was_leased_meanwhile_is_refused_and_answers_the_call(
    cluster: Cluster, clock: Clock
) -> None:
    gang = cluster.submit()
    clock.advance(1)
    small = cluster.submit(nodes=1)
    assert cluster.look("one") == gang
    assert cluster.devices["two"].any_free, "it has not noticed yet"

    with pytest.raises(Refused):
        cluster.claim(small, cluster.ids["two"], "slot:0")

    cluster.answer("two")
    assert not cluster.devices["two"].any_free
    assert cluster.holders(gang) == {"one", "two"}
