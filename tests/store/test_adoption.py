"""Attempts of dead workers: found by their successor on the same host, and made its own once."""

from __future__ import annotations

from uuid import UUID

import pytest

from engine.clock import utc_now
from engine.errors import Refused
from engine.plan.stage import Plan, Stage
from engine.store import adoption, runs, stages, workers
from engine.store.processes import host_name
from engine.store.session import Database
from engine.store.stages import Outcome
from engine.store.tables import StageId, WorkerId


def register(db: Database, *, host: str = "", pid: int = 7, run_id: UUID | None = None) -> WorkerId:
    with db.write() as session:
        return workers.register(
            session,
            name="w",
            host=host or host_name(),
            pid=pid,
            pid_started=1.0,
            queues=["default"],
            slots=2,
            run_id=run_id,
            now=utc_now(),
        )


def claim(db: Database, worker: WorkerId, *devices: str) -> stages.Claimed:
    with db.write() as session:
        run = runs.submit(
            session,
            Plan("test", 3, (Stage("noop", "test.noop", "m:f", ()),)),
            runs.Submission(source="", resolved={}, no_cache=True),
            now=utc_now(),
        )
        stage = stages.for_run(session, run.id)[0]
        claimed = stages.claim(session, StageId(stage.id), worker=worker, devices=devices, now=utc_now(), lease_s=15)
        assert claimed is not None
        stages.start(session, claimed, pid=99, pid_started=2.0)
        return claimed


def found(db: Database, *, gone: bool = True, run_id: UUID | None = None) -> list[adoption.Orphan]:
    with db.read() as session:
        return adoption.orphans(session, run_id=run_id, gone=lambda *_: gone)


def adopt(db: Database, orphan: adoption.Orphan, worker: WorkerId, *devices: str) -> bool:
    with db.write() as session:
        return adoption.adopt(session, orphan, worker=worker, devices=devices, now=utc_now(), lease_s=15)


def test_an_orphan_is_adopted_once_with_the_devices_of_its_new_worker(db: Database) -> None:
    claimed = claim(db, register(db, pid=7), "slot:0", "gpu:3")
    second, third = register(db, pid=8), register(db, pid=9)
    (orphan,) = found(db)
    assert (orphan.attempt_id, orphan.worker_pid, orphan.pid) == (claimed.attempt_id, 7, 99)
    assert sorted(orphan.devices) == ["gpu:3", "slot:0"]

    assert adopt(db, orphan, second, "slot:1", "gpu:3")
    assert not adopt(db, orphan, third, "slot:0", "gpu:3")

    with db.write() as session:
        (attempt,) = stages.attempts(session, claimed.stage_id)
        assert (attempt.worker_id, attempt.number, attempt.status) == (second, 1, "running")
        assert stages.heartbeat(session, claimed, now=utc_now(), lease_s=15) is stages.Signal.KEEP
        assert stages.finish(session, claimed, Outcome.stopped(), now=utc_now()) == "ready"


def test_devices_that_are_lent_are_not_lent_again(db: Database) -> None:
    claim(db, register(db, pid=7), "slot:0")
    second = register(db, pid=8)
    claim(db, second, "slot:0")
    orphan = next(one for one in found(db) if one.worker_pid == 7)
    with pytest.raises(Refused, match="slot:0"):
        adopt(db, orphan, second, "slot:0")


def test_what_is_over_is_nobodys(db: Database) -> None:
    claimed = claim(db, register(db))
    (orphan,) = found(db)
    with db.write() as session:
        stages.lose(session, claimed.run_id, claimed.attempt_id, now=utc_now())
    assert not adopt(db, orphan, register(db, pid=8))
    assert found(db) == []


def test_only_the_dead_of_this_host_leave_orphans(db: Database) -> None:
    claim(db, register(db, host="elsewhere"))
    claim(db, register(db))
    assert found(db, gone=False) == []
    assert len(found(db)) == 1


def test_a_worker_of_one_run_looks_at_no_other(db: Database) -> None:
    mine = claim(db, register(db)).run_id
    assert found(db, run_id=mine) == []  # its worker served others too
    worker = register(db, pid=8, run_id=mine)
    claim(db, worker)
    assert [one.worker_id for one in found(db, run_id=mine)] == [worker]
