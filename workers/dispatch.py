"""What the command line asks of the workers: announce what is queued, find who is alive, start one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from uuid import UUID

from engine.clock import utc_now
from engine.errors import Unreachable
from engine.log import get_logger
from engine.settings import Settings
from engine.store import outbox, workers
from engine.store.processes import provably_gone
from engine.store.session import Database, open_database
from engine.store.tables import Worker

log = get_logger(__name__)


def publish(settings: Settings) -> int:
    """Announce what the outbox holds; how many messages were sent.

    Without workers there is nobody to tell on the embedded default: they look when they start. A broker that is
    away is no error either, for the workers' housekeeping announces what we could not.
    """
    db = open_database(settings)
    try:
        if settings.embedded and not _alive(db):
            return 0
        from workers.app import make_app, send

        app = make_app(settings)
        try:
            return outbox.publish(
                db, lambda message: send(app, str(message.stage_id), message.queue, message.priority), now=utc_now()
            )
        except Unreachable:
            raise
        except Exception as error:  # noqa: BLE001 - each broker's client has errors of its own
            log.warning("the broker is away, the workers will announce it", extra={"error": str(error)})
            return 0
    finally:
        db.close()


def find_alive(settings: Settings) -> list[Worker]:
    """Workers that would take any run's stages: those that serve one run alone do not count, nor those known dead."""
    db = open_database(settings)
    try:
        return [worker for worker in _alive(db) if worker.run_id is None]
    finally:
        db.close()


def _alive(db: Database) -> list[Worker]:
    with db.read() as session:
        found = workers.alive(session, utc_now())
    return [worker for worker in found if not provably_gone(worker.host, worker.pid, worker.pid_started)]


def start_worker(
    settings: Settings,
    run_id: UUID | None = None,
    *,
    queues: Sequence[str] = ("default",),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """A worker process of these settings; with `run_id` it serves that run alone, and leaves when the run is over.

    It has a session of its own, so that Ctrl-C in our terminal is ours to handle; its log is HOME/logs/worker.log.
    `environment` is added to ours.
    """
    from workers.children import python_environment

    settings.logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "workers", "--queues", ",".join(queues)]
    if run_id is not None:
        command += ["--run", str(run_id)]
    with (settings.logs / "worker.log").open("ab") as log_file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env=python_environment() | settings.environment() | dict(environment),
            start_new_session=True,
        )
