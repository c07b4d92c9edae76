"""Workers enter with a name and devices of their own, and are told to leave."""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

import pytest

from engine.errors import NotFound, Refused
from engine.store import workers
from engine.store.processes import host_name, process_started
from engine.store.session import Database
from engine.store.workers import Drain
from tests.store.walk import Clock


def enter(db: Database, clock: Clock, name: str = "w", **fields: Any) -> UUID:
    given = {"host": "h", "pid": 1, "pid_started": None, "queues": ["default"], "slots": 1} | fields
    with db.write() as session:
        return workers.register(session, name=name, now=clock(), **given)


def test_a_gpu_that_is_lent_on_the_host_already_is_refused(db: Database, clock: Clock) -> None:
    enter(db, clock, "first", gpus=[0, 1])
    enter(db, clock, "elsewhere", gpus=[0, 1], host="other")
    enter(db, clock, "beside", gpus=["2"])
    with pytest.raises(Refused, match=r"GPU 0, 1 of h are lent by worker first .*--gpus"):
        enter(db, clock, "again", gpus=["0", "1", "5"])
    with db.read() as session:
        assert workers.lent_gpus(session, "h", clock()) == {"0", "1", "2"}


def test_the_gpus_of_a_worker_that_is_gone_are_free(db: Database, clock: Clock) -> None:
    here = {"host": host_name(), "pid": os.getpid()}
    enter(db, clock, "reused pid", gpus=[0], **here, pid_started=1.0)
    enter(db, clock, gpus=[0], **here, pid_started=process_started(os.getpid()))
    enter(db, clock, gpus=[3])
    clock.advance(60)
    enter(db, clock, gpus=[3])


def test_names_of_the_living_are_unique(db: Database, clock: Clock) -> None:
    for _ in range(3):
        enter(db, clock, "gpu-box")
    with db.read() as session:
        assert sorted(found.name for found in workers.alive(session, clock())) == ["gpu-box", "gpu-box-2", "gpu-box-3"]


def test_the_next_heartbeat_tells_a_worker_to_drain(db: Database, clock: Clock) -> None:
    one, two = enter(db, clock, "one"), enter(db, clock, "two")

    def beats() -> list[Drain]:
        with db.write() as session:
            return [workers.heartbeat(session, worker, now=clock()) for worker in (one, two)]  # type: ignore[arg-type]

    assert beats() == [Drain.NO, Drain.NO]
    with db.write() as session:
        (told,) = workers.drain(session, "tw", Drain.AFTER_CURRENT, now=clock())
    assert told.name == "two"
    assert beats() == [Drain.NO, Drain.AFTER_CURRENT]
    with db.write() as session:
        assert len(workers.drain(session, None, Drain.NOW, now=clock())) == 2
    assert beats() == [Drain.NOW, Drain.NOW]


def test_draining_whom_nobody_knows_says_who_there_is(db: Database, clock: Clock) -> None:
    with db.write() as session, pytest.raises(NotFound, match="None is alive"):
        workers.drain(session, "x", Drain.NOW, now=clock())
    enter(db, clock, "box-a")
    enter(db, clock, "box-b")
    with db.write() as session, pytest.raises(NotFound, match="Alive: box-a, box-b"):
        workers.drain(session, "x", Drain.NOW, now=clock())
    with db.write() as session, pytest.raises(NotFound, match="several workers: box-a, box-b"):
        workers.drain(session, "box", Drain.NOW, now=clock())
