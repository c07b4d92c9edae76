"""The one task there is: a stage is ready."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from celery import Celery

from engine.errors import Unreachable
from engine.log import get_logger
from workers.app import RUN_STAGE

log = get_logger(__name__)


def register(app: Celery, look: Callable[[], int]) -> None:
    """Have `look` called for every message that arrives."""

    @app.task(name=RUN_STAGE, ignore_result=True)  # type: ignore[untyped-decorator]  # Celery ships no types
    def run_stage(stage_id: str) -> None:
        """See whether there is something to take, and take it."""
        try:
            log.debug("announced", extra={"stage": str(UUID(stage_id)), "started": look()})
        except Unreachable as error:
            log.warning("announced, but the queue could not be read", extra={"error": str(error)})
