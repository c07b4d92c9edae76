"""Mirrors beside a worker: a process of its own for each live run whose spec asks for one.

Nothing that it does can slow a stage down or stop it: it reads what is committed, at the lowest priority. Which worker
starts it does not matter; it takes an SQL lock, and who comes second leaves. It ends with the run, or with us.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import and_, or_, select

from engine.clock import Clock, utc_now
from engine.log import get_logger
from engine.settings import Settings
from engine.store import locks
from engine.store.session import Database
from engine.store.tables import Run
from engine.store.transitions import RunStatus
from workers.children import python_environment

log = get_logger(__name__)

AGAIN_S = 30.0
"""Before a mirror that ended early is started anew."""
JUST_OVER = timedelta(minutes=1)
"""A run may be through before anybody has looked."""


class Mirrors:
    """Those that this worker has started. For one run, where it serves only that."""

    def __init__(self, settings: Settings, db: Database, run_id: UUID | None = None, now: Clock = utc_now) -> None:
        self._settings, self._db, self._run_id, self._now = settings, db, run_id, now
        self._begun = now()
        self._asks: dict[UUID, bool] = {}
        """Of the runs that were seen: whether their spec asks for a mirror."""
        self._started: dict[UUID, tuple[subprocess.Popen[bytes], float]] = {}

    def look(self) -> int:
        """Start what is wanted and not there; how many were started."""
        started = 0
        for run_id, handle, live in self._wanted():
            process, since = self._started.get(run_id, (None, float("-inf")))
            if process is not None and (process.poll() is None or not live or time.monotonic() - since < AGAIN_S):
                continue
            self._started[run_id] = (self._start(handle), time.monotonic())
            started += 1
        return started

    def _wanted(self) -> list[tuple[UUID, str, bool]]:
        """The runs to mirror that nobody mirrors: id, handle, and whether they still run."""
        live = (RunStatus.RUNNING, RunStatus.STOPPING)
        since = max(self._begun, self._now() - JUST_OVER)
        seen = or_(Run.status.in_(live), and_(Run.finished_at.is_not(None), Run.finished_at >= since))
        with self._db.read() as session:
            query = select(Run.id, Run.handle, Run.status).where(seen)
            if self._run_id is not None:
                query = query.where(Run.id == self._run_id)
            found = session.execute(query).all()
            new = [run_id for run_id, _, _ in found if run_id not in self._asks]
            if new:
                told = session.execute(select(Run.id, Run.resolved).where(Run.id.in_(new)))
                self._asks |= {run_id: _asks(spec.get("tracking") or {}) for run_id, spec in told}
            return [
                (run_id, handle, status in live)
                for run_id, handle, status in found
                if self._asks[run_id] and not locks.taken(session, locks.tracking_lock(run_id), now=self._now())
            ]

    def _start(self, handle: str) -> subprocess.Popen[bytes]:
        folder = self._settings.home / "tracking" / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        log.info("a mirror starts", extra={"run": handle})
        with (folder / f"{handle}.log").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.cli", "track", handle, "--follow", "--beside", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=python_environment() | self._settings.environment(),
                start_new_session=True,  # Ctrl-C is for the worker
            )


def _asks(tracking: Mapping[str, Any]) -> bool:
    return any(block is not None for block in tracking.values())
