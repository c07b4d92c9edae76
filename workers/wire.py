"""The words between a worker and its nursery: JSON, one object a packet, over a Unix socket.

worker -> nursery   {"spawn": id, "task": path, "log": path, "rests": bool}   its process may rest afterwards
                    {…, "in": token}                in a process that rests, if it still does
nursery -> worker   {"spawned": id, "pid": 123}   {"refused": id, "error": text}
                    {"exited": id, "status": -9}   negative: the signal that ended it
                    {…, "rests": token}            its process is there for another stage
nursery -> stage    the first again                stage -> nursery   {"done": id}
"""

from __future__ import annotations

import json
import socket
from typing import Any

FULL, LIGHT = "full", "light"
"""Kinds of nurseries: with what most stages need, and with what no stage can do without."""

_LARGEST = 64 << 10


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message."""
    channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None where the other side is gone."""
    try:
        packet = channel.recv(_LARGEST)
    except ConnectionResetError:
        return None
    return dict(json.loads(packet)) if packet else None
