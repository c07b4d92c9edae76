"""Who counts as a worker that will take a new run's stages."""

from __future__ import annotations

import os
from uuid import uuid4

from engine.clock import utc_now
from engine.settings import Settings
from engine.store import workers
from engine.store.processes import host_name, process_started
from engine.store.session import Database, open_database
from workers import dispatch


def register(db: Database, name: str, **fields: object) -> None:
    given = {"host": host_name(), "pid": os.getpid(), "pid_started": process_started(os.getpid())} | fields
    with db.write() as session:
        workers.register(session, name=name, queues=["default"], slots=1, now=utc_now(), **given)  # type: ignore[arg-type]


def test_a_worker_counts_while_its_process_lives(settings: Settings) -> None:
    db = open_database(settings)
    register(db, "alive")
    register(db, "elsewhere", host="another-host", pid=1, pid_started=1.0)
    register(db, "reused pid", pid_started=1.0)
    register(db, "for one run", run_id=uuid4())
    with db.write() as session:
        gone = workers.register(
            session, name="left", host="h", pid=1, pid_started=None, queues=[], slots=1, now=utc_now()
        )
        workers.mark_gone(session, gone)

    assert sorted(worker.name for worker in dispatch.find_alive(settings)) == ["alive", "elsewhere"]


def test_nobody_is_told_where_nobody_listens(settings: Settings) -> None:
    open_database(settings).close()
    assert dispatch.publish(settings) == 0
    assert not settings.broker.exists()
