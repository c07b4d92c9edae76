"""Where stages take milliseconds, what comes next is remembered for a moment, and nobody is passed over for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from sqlalchemy.orm import Session

from engine.store.session import Database
from engine.store.tables import StageId
from tests.store.walk import Clock, Queue
from workers.choice import Chooser
from workers.devices import Devices


class Rush:
    """A worker of one slot whose stages end at once."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self.queue, self._devices = Queue(db, clock), Devices(1)
        self.chooser = Chooser(db, self.queue.worker, self._devices, ["default"], None, clock)
        self.started: list[StageId] = []
        self._salts = count()

    def submit(self, number: int, **submission: object) -> list[StageId]:
        runs = [self.queue.submit(salt=str(next(self._salts)), **submission) for _ in range(number)]
        return [self.queue.stage(run, "train") for run in runs]

    def next(self) -> StageId:
        ((stage, devices),) = self.chooser.choose(ended=True)
        if self.queue.try_claim(stage.stage_id) is None:
            self.chooser.missed()
        self._devices.give_back(devices)
        self.started.append(stage.stage_id)
        return stage.stage_id


@pytest.fixture
def rush(db: Database, clock: Clock) -> Rush:
    return Rush(db, clock)


@pytest.fixture
def looks(db: Database, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for every time that the queue was read."""
    found: list[None] = []
    read = db.read

    @contextmanager
    def counted() -> Iterator[Session]:
        found.append(None)
        with read() as session:
            yield session

    monkeypatch.setattr(db, "read", counted)
    return found


def test_every_stage_starts_once_in_its_order_and_few_looks_do(rush: Rush, clock: Clock, looks: list[None]) -> None:
    stages = []
    for _ in range(20):
        stages += rush.submit(1)
        clock.advance(1)
    rush.next()
    looks.clear()
    for _ in range(19):
        clock.advance(0.01)
        rush.next()

    assert rush.started == stages
    assert len(looks) <= 3


def test_what_is_more_urgent_waits_a_moment_at_most(rush: Rush, clock: Clock) -> None:
    stages = rush.submit(4)
    assert {rush.next(), rush.next()} < set(stages)
    (urgent,) = rush.submit(1, priority=5)
    clock.advance(0.2)

    assert rush.next() == urgent


def test_what_another_worker_took_is_looked_for_no_more(rush: Rush, clock: Clock, looks: list[None]) -> None:
    stages = rush.submit(12)
    started = [rush.next(), rush.next()]
    taken = min(set(stages) - set(started))  # all have been ready for equally long
    assert rush.queue.try_claim(taken, worker=rush.queue.new_worker("other")) is not None
    assert rush.next() == taken, "remembered, and gone by now"
    looks.clear()
    rest = [rush.next() for _ in range(9)]

    assert sorted([*started, taken, *rest]) == sorted(stages)
    assert len(looks) == len(rest), "beside another worker each look is a look"
    clock.advance(6)
    more = rush.submit(8)
    looks.clear()
    assert sorted(rush.next() for _ in more) == sorted(more)
    assert len(looks) <= 3
