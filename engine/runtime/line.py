"""JSON messages, a line each, between a stage's process and the keepers of its services."""

from __future__ import annotations

import json
import select
import socket
from typing import Any

_CHUNK = 1 << 16


class Line:
    """One end. A message may be of any length: a whole environment goes through."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.gone = False
        """Whether the other end has closed."""
        self._pending = b""

    def send(self, message: dict[str, Any]) -> bool:
        """Whether it could be sent; nobody is there any more where not."""
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def heard(self, timeout_s: float = 0.0) -> list[dict[str, Any]]:
        """What has been said since, waiting up to `timeout_s` for the first word."""
        messages: list[dict[str, Any]] = []
        while not self.gone and select.select([self.channel], [], [], 0.0 if messages else timeout_s)[0]:
            try:
                read = self.channel.recv(_CHUNK)
            except ConnectionResetError:
                read = b""
            self.gone = not read
            *whole, self._pending = (self._pending + read).split(b"\n")
            messages += [json.loads(text) for text in whole]
            timeout_s = 0.0
        return messages

    def close(self) -> None:
        """Hang up. The other end hears it at once."""
        self.gone = True
        self.channel.close()
