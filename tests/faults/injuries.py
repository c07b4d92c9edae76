"""What can befall a fleet: one generator a kind of fault.

What comes before the first `yield` does the harm, what follows heals it; each `yield` says in how many seconds to go
on. `storm.hit` counts a fault that found something to hurt. Who is hurt when is `storm`'s.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import select

from engine.clock import utc_now
from engine.errors import Refused, Unreachable
from engine.runtime import trees
from engine.store import runs
from engine.store.connection import sqlite_file
from engine.store.processes import process_started
from engine.store.tables import Stage

if TYPE_CHECKING:
    from tests.faults.servers import Server
    from tests.faults.storm import Storm

Injury = Callable[["Storm", int, float], Iterator[float]]
"""Takes the storm, a number that picks the victim, and for how many seconds the harm should last."""


def kill_stage(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGKILL to the process of a running stage."""
    if found := storm.fleet.running():
        with suppress(ProcessLookupError):
            os.kill(found[pick % len(found)].pid, signal.SIGKILL)
            storm.hit("kill_stage")
    yield from ()


def kill_worker(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGKILL to a worker alone; what becomes of its stage's process is the worker's own business."""
    yield from _signal_worker(storm, pick, signal.SIGKILL, "kill_worker")


def preempt_worker(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGTERM to a worker, as a cluster sends it before it takes the machine away."""
    yield from _signal_worker(storm, pick, signal.SIGTERM, "preempt_worker")


def _signal_worker(storm: Storm, pick: int, number: int, kind: str) -> Iterator[float]:
    if (worker := storm.a_worker(pick)) is not None:
        storm.doomed.add(worker.pid)
        worker.send_signal(number)
        storm.hit(kind)
    yield from ()


def kill_nursery(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGKILL to the warm parent of a worker's stages."""
    worker = storm.a_worker(pick)
    if worker is not None and (below := sorted(trees.children(worker.pid))):
        with suppress(ProcessLookupError):
            os.kill(below[0], signal.SIGKILL)
            storm.hit("kill_nursery")
    yield from ()


def freeze(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGSTOP to a worker and all its processes until its leases have run out, then SIGCONT: its writes come late."""
    worker = storm.a_worker(pick)
    if worker is None:
        return
    frozen = {pid: process_started(pid) for pid in storm.fleet.family(worker)}
    for pid in [worker.pid, *frozen]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    storm.frozen.add(worker.pid)
    storm.hit("freeze")
    yield 1.6 * storm.fleet.lease_s + seconds
    for pid, started in frozen.items():
        if started is not None and process_started(pid) == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    storm.frozen.discard(worker.pid)


def restart_database(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """The database shuts down, cutting off its clients, and comes back."""
    yield from _restart(storm, storm.database, seconds, "restart_database", kill=False)


def kill_database(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGKILL to every process of the database; it comes back and recovers."""
    yield from _restart(storm, storm.database, seconds, "kill_database", kill=True)


def kill_session(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGKILL to one session of PostgreSQL, upon which it drops all of them and recovers."""
    server = storm.database
    if server is not None and server.pid is not None and (below := sorted(trees.children(server.pid))):
        with suppress(ProcessLookupError):
            os.kill(below[-1 - pick % min(3, len(below))], signal.SIGKILL)  # the newest are sessions
            storm.hit("kill_session")
    yield from ()


def hold_database(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """Another program holds SQLite's write lock, longer than a lease: nobody can write."""
    file = sqlite_file(storm.fleet.settings.database_url)
    if file is None:
        return
    while storm.held_up:
        yield 0.3
    rival = sqlite3.connect(file, timeout=0.5, isolation_level=None)
    try:
        rival.execute("BEGIN IMMEDIATE")
        storm.holding = True
        storm.hit("hold_database")
        yield storm.fleet.lease_s + seconds
    except sqlite3.OperationalError:  # somebody is just writing
        return
    finally:
        storm.holding = False
        rival.close()


def restart_broker(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """The broker shuts down and comes back; the file system's has its folder moved away meanwhile."""
    if storm.broker is not None:
        yield from _restart(storm, storm.broker, seconds, "restart_broker", kill=False)
        return
    messages = storm.fleet.settings.broker / "messages"
    away = messages.with_name("away")
    if not messages.is_dir() or away.exists():
        return
    messages.rename(away)
    storm.hit("restart_broker")
    yield seconds
    if messages.exists():  # a worker that started meanwhile has made a new one
        for file in away.iterdir():
            file.rename(messages / file.name)
        away.rmdir()
    else:
        away.rename(messages)


def kill_broker(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """SIGKILL to the broker; it comes back, with what it kept."""
    yield from _restart(storm, storm.broker, seconds, "kill_broker", kill=True)


def _restart(storm: Storm, server: Server | None, seconds: float, kind: str, *, kill: bool) -> Iterator[float]:
    if server is None or server.pid is None:
        return
    if kill:
        server.kill()
    else:
        server.stop()
    storm.hit(kind)
    yield seconds
    server.start()


def lose_messages(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """Somebody else takes messages from the queue and throws them away."""
    from kombu import Consumer, Queue

    lost: list[object] = []
    connection = storm.app().connection_for_read()
    try:
        queue = Queue("default", routing_key="default", exchange="default")
        with connection, Consumer(connection, [queue], callbacks=[lambda _, m: lost.append(m)], no_ack=True):
            for _ in range(int(seconds / 0.3) + 1):
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)
                yield 0.1
    except Exception:  # noqa: BLE001 - brokers raise what they like, and may be away themselves
        return
    finally:
        if lost:
            storm.hit("lose_messages")


def repeat_messages(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """Messages come again: of stages that wait, run, or ended long ago."""
    from workers.app import send

    with storm.fleet.db.read() as session:
        found = session.execute(select(Stage.id, Stage.queue).order_by(Stage.ready_at.desc()).limit(12)).all()
    app = storm.app()
    try:
        for stage_id, queue in found:
            send(app, str(stage_id), queue, 0)
    except Exception:  # noqa: BLE001 - as above
        return
    if found:
        storm.hit("repeat_messages")
    yield from ()


def fill_disk(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """The disk of the artifacts is full for a while."""
    if storm.disk is None or (filler := storm.disk / "filler").exists():
        return
    block = b"\0" * 4096
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(block)
    storm.hit("fill_disk")
    yield seconds
    filler.unlink()


def cancel_and_resume(storm: Storm, pick: int, seconds: float) -> Iterator[float]:
    """Somebody cancels a run and takes it up again once it has stopped."""
    while storm.held_up:
        yield 0.3
    if not (found := storm.fleet.unfinished()):
        return
    run_id, db = found[pick % len(found)], storm.fleet.db
    with db.write() as session:
        if not runs.request_stop(session, runs.get(session, run_id), now=utc_now(), by="the storm"):
            return
    storm.hit("cancel_and_resume")
    while True:
        yield 0.3
        if storm.held_up:
            continue
        with suppress(Unreachable):
            try:
                with db.write() as session:
                    runs.resume(session, runs.get(session, run_id), now=utc_now())
                return
            except Refused:  # it is still stopping, or was through before it could
                if storm.fleet.status(run_id) == "succeeded":
                    return


ANYWHERE: Mapping[str, Injury] = {
    "kill_stage": kill_stage,
    "kill_worker": kill_worker,
    "kill_nursery": kill_nursery,
    "preempt_worker": preempt_worker,
    "freeze": freeze,
    "restart_broker": restart_broker,
    "lose_messages": lose_messages,
    "repeat_messages": repeat_messages,
    "fill_disk": fill_disk,
    "cancel_and_resume": cancel_and_resume,
}
ON_SQLITE: Mapping[str, Injury] = {"hold_database": hold_database}
ON_POSTGRES: Mapping[str, Injury] = {
    "restart_database": restart_database,
    "kill_database": kill_database,
    "kill_session": kill_session,
}
ON_A_BROKER: Mapping[str, Injury] = {"kill_broker": kill_broker}
