"""Where a nursery that has lost its worker can be found: a socket in a folder that only our user may enter.

The path may be longer than an address of a Unix socket, so both sides go through the folder's descriptor.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Door:
    """A listening socket at `path`. Raises OSError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with _address(path) as address:
            self.socket.bind(address)
        self.socket.listen(1)

    def answer(self) -> tuple[socket.socket, int]:
        """Let in whoever has knocked, and close: there is one worker at a time. A channel to it, and its pid."""
        channel, _ = self.socket.accept()
        self.close()
        pid, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return channel, pid

    def close(self) -> None:
        """Nobody can knock any more."""
        self._path.unlink(missing_ok=True)
        self.socket.close()


def knock(path: Path) -> socket.socket | None:
    """A channel to whoever listens at `path`; None, and the path is removed, where nobody does any more."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _address(path) as address:
            channel.connect(address)
    except OSError as error:
        channel.close()
        if isinstance(error, ConnectionRefusedError):
            with suppress(OSError):
                path.unlink()
        return None
    return channel


@contextmanager
def _address(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
