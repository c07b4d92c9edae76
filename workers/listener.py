"""The worker's ear: a Celery worker in a thread, which hears of ready stages and has the crew look for them.

It may lose its connection for as long as it likes: the crew looks by itself, only less often.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from celery import Celery

from engine.log import get_logger
from workers import tasks

log = get_logger(__name__)

_AGAIN_S = 5.0


class Listener:
    """Listens to `queues` from `start` to `stop`."""

    def __init__(self, app: Celery, queues: Sequence[str], look: Callable[[], int]) -> None:
        tasks.register(app, look)
        self._app, self._queues = app, list(queues)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Begin to listen, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Take no more messages. A message that was not acknowledged goes back to the broker."""
        from celery.worker import state

        self._stopping.set()
        state.should_stop = 0
        self._thread.join(timeout_s)

    def _run(self) -> None:
        from celery.worker import WorkController

        while not self._stopping.is_set():
            try:
                # Not `app.Worker`: that one takes over signals and logging, which are the worker's own here.
                WorkController(
                    app=self._app,
                    pool="threads",
                    concurrency=1,
                    queues=self._queues,
                    without_gossip=True,
                    without_mingle=True,
                    without_heartbeat=True,
                ).start()
            except Exception:
                log.exception("the broker's listener failed")
            if not self._stopping.wait(_AGAIN_S):
                log.warning("the broker's listener ended, starting it again")
