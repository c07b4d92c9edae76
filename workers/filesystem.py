"""Celery's filesystem transport, made safe for several processes: a message appears whole, and is taken by one.

The stock transport creates a message's file before it writes it, so that a reader may take it empty, and
moves it through the machine's shared temporary folder.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from queue import Empty
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.transport.virtual import BrokerState


class Channel(filesystem.Channel):
    """One file a message, named by the time it was sent: the order of names is the order of messages."""

    def _put(self, queue: str, message: Any, **_: Any) -> None:  # type: ignore[override]  # kombu's own passes more
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020d}-{uuid4().hex}.{queue}.msg"
        draft = folder / f".{name}"
        draft.write_text(json.dumps(message), encoding="utf-8")
        os.replace(draft, folder / name)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        folder = Path(self.data_folder_in)
        for name in sorted(os.listdir(folder)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = folder / f".taken-{name}"
            try:
                os.rename(folder / name, taken)  # of several readers, one succeeds
            except FileNotFoundError:
                continue
            payload = taken.read_text(encoding="utf-8")
            taken.unlink()
            return json.loads(payload)
        raise Empty


class Transport(filesystem.Transport):
    """The transport of `broker_url = filesystem://`."""

    Channel = Channel

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)  # type: ignore[no-untyped-call]  # kombu's
        # The stock one is shared by all connections, and forgets to bind queues in a second home folder.
        self.state = BrokerState()  # type: ignore[no-untyped-call]  # kombu's
