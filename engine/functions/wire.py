"""The channel between client and host: length-prefixed msgpack frames over one Unix socket.

A frame is four bytes of length, big-endian, then one msgpack value. What the values mean is the business of
`client` and `host`. Text may hold lone surrogates (a model can emit anything), so they pass.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgpack

_HEADER = struct.Struct(">I")
_CHUNK = 1 << 16


def send(channel: socket.socket, message: Any) -> None:
    """Write one frame. Raises OSError once the other end is gone."""
    body = msgpack.packb(message, unicode_errors="surrogatepass")
    channel.sendall(_HEADER.pack(len(body)) + body)


class Reader:
    """Reads frames; what has arrived of an unfinished one survives an interrupted `read`."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pending = bytearray()

    def read(self) -> Any:
        """The next message. Raises EOFError at the end, BlockingIOError if the socket's timeout passes first."""
        pending = self._pending
        while True:
            if len(pending) >= 4:
                end = 4 + _HEADER.unpack_from(pending)[0]
                if len(pending) >= end:
                    body = bytes(memoryview(pending)[4:end])
                    del pending[:end]
                    return msgpack.unpackb(body, unicode_errors="surrogatepass", strict_map_key=False)
            chunk = self._channel.recv(_CHUNK)
            if not chunk:
                raise EOFError("the other end of the channel is closed")
            pending += chunk
