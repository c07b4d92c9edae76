"""What a worker does about services that are kept between stages: ends them where it must.

A kept service's GPUs are lent to nobody in the store, so the worker lends them; before the stage that gets them is
begun, whoever still holds one of them is ended, but for the service that this very stage is going to take over.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from engine.log import get_logger
from engine.runtime import kept
from engine.runtime.kept import Kept
from engine.runtime.task import Task
from engine.settings import Settings
from engine.store import stages
from engine.store.session import Database
from engine.store.tables import RunId, Stage
from engine.store.transitions import ENDED

log = get_logger(__name__)


def make_room(task: Task) -> None:
    """End every service on this host that holds GPUs of the task's, unless the task is going to use it on them."""
    lent = {*task.gpus, *task.service_gpus}
    if not lent:
        return
    for found in kept.on_this_host(task.settings.sockets):
        if found.gpus & lent and not _wanted(found, task):
            log.info("a kept service makes room", extra={"gpus": ",".join(sorted(found.gpus)), "run": found.run})
            kept.end(found)


def end_unneeded(settings: Settings, db: Database) -> None:
    """End this worker's kept services of which no stage that is still to come has need."""
    mine = [found for found in kept.on_this_host(settings.sockets) if found.worker == os.getpid()]
    for run in {found.run for found in mine}:
        with db.read() as session:
            rows = stages.for_run(session, RunId(UUID(run)))
            needed = {digest for row in rows if row.status not in ENDED[Stage] for digest in _digests(row)}
        for found in mine:
            if found.run == run and found.digest not in needed:
                kept.end(found, grace_s=1.0)


def _wanted(found: Kept, task: Task) -> bool:
    claimed = task.claimed
    return (
        found.run == str(claimed.run_id)
        and found.gpus <= {*task.service_gpus}
        and found.digest in _digests_of(claimed.config, claimed.extra)
    )


def _digests(row: Stage) -> Collection[str]:
    return _digests_of(row.config, row.extra)


def _digests_of(config: Mapping[str, Any], extra: Mapping[str, Any]) -> Collection[str]:
    served = extra.get("served", {})
    return {kept.digest(service, served.get(name, {})) for name, service in config.get("services", {}).items()}
