"""A Celery task that writes one file: the peer of `bench/queue.py`."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

FOLDER = os.environ.get("PEER_FOLDER")
app = Celery("peer", broker=os.environ.get("PEER_BROKER"))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
if FOLDER:
    app.conf.broker_transport_options = {
        "data_folder_in": FOLDER,
        "data_folder_out": FOLDER,
        "control_folder": f"{FOLDER}-control",
        "polling_interval": 0.1,
    }


@app.task  # type: ignore[untyped-decorator]  # Celery ships no types
def peer(folder: str, number: int) -> None:
    """Write the number."""
    Path(folder, str(number)).write_text(str(number))
