"""Where the nodes of an attempt meet: a gate that the first one opens, and the way that the others take through it.

torch's store, through which ranks find each other, lets in whoever reaches its port, and what ranks then send each
other is unpickled. So the store listens to its own host alone; the gate listens to the other nodes, and passes on
only what comes from those that prove to know the attempt's secret (HMAC over both sides' nonces: neither side shows
it, and both prove it). Besides, each node keeps a *line* open for as long as it works: it tells how it fares, and
its end, on either side, is that of a process.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from engine.errors import Cause, RlxError
from engine.log import get_logger
from engine.store.members import Gang

log = get_logger(__name__)

LINE, STORE = b"L", b"S"
_NONCE, _PROOF = 32, 32
_HEAD = struct.Struct("!cH")
_HANDSHAKE_S = 10.0
REACH_WITHIN_S = 30.0
"""Longest for a node to reach the first one's gate."""
_ALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
)
"""A host that is gone without a word is missed after half a minute; its lease says so sooner."""


class NodeUnreachable(RlxError):
    """The nodes of an attempt do not find each other over the network."""

    cause = Cause.LOST
    retryable = True


class Gate:
    """The first node's. `hear(node, line)` is called in a thread of each line's own."""

    def __init__(self, gang: Gang, address: str, store: tuple[str, int], hear: Callable[[int, Line], None]) -> None:
        self._gang, self._store, self._hear = gang, store, hear
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._listener = socket.create_server((address, 0), family=family, backlog=128)
        except OSError as error:
            raise NodeUnreachable(
                f"the other nodes were to come to {address}, which is not this host's: {error}"
            ) from None
        self.address, self.port = address, int(self._listener.getsockname()[1])

    def open(self) -> None:
        """Let nodes in, from now on."""
        _in_thread(self._serve, "gate")

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                guest, _ = self._listener.accept()
            except OSError:
                return  # closed
            _in_thread(lambda guest=guest: self._receive(guest), "guest")  # type: ignore[misc]  # a lambda's default

    def _receive(self, guest: socket.socket) -> None:
        with guest:
            purpose, node = _let_in(guest, self._gang.token)
            if purpose is None or not 0 < node < len(self._gang.nodes):
                log.warning("somebody was not let in among the nodes", extra={"attempt_node": node})
                return
            if purpose == LINE:
                self._hear(node, Line(guest))
                return
            with socket.create_connection(self._store) as store:
                _pass_on(guest, store)


class Line:
    """A node's line to the first one, at either end: JSON, one object a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def tell(self, **message: Any) -> None:
        """Say something; nothing happens where nobody is there any more."""
        with self._lock, suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def words(self) -> Iterator[Mapping[str, Any]]:
        """What the other side says, until it is gone."""
        with suppress(OSError), self._connection.makefile("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)


def reach(gang: Gang, purpose: bytes) -> socket.socket:
    """A connection to the first node's gate, that let us in. Raises NodeUnreachable."""
    assert gang.port is not None, "the gate is open before anybody is sent there"
    where = f"{gang.name(0)} at {gang.address}:{gang.port}"
    try:
        connection = socket.create_connection((gang.address, gang.port), REACH_WITHIN_S)
    except OSError as error:
        raise NodeUnreachable(
            f"{gang.name(gang.node)} cannot reach {where}: {error}. RLX_ADDRESS, set where that worker runs, is the "
            "address at which other nodes reach it"
        ) from error
    try:
        _be_let_in(connection, gang, purpose)
        connection.settimeout(None)
    except (OSError, EOFError) as error:
        connection.close()
        raise NodeUnreachable(f"{gang.name(gang.node)} was not let in by {where}: {error}") from error
    return connection


class Passage:
    """The way from a node's own ranks to the first node's store: a port here, of which each guest is taken there."""

    def __init__(self, gang: Gang, listener: int) -> None:
        self._gang, self._listener = gang, socket.socket(fileno=listener)

    def open(self) -> None:
        """Take guests there, from now on."""
        _in_thread(self._serve, "passage")

    def _serve(self) -> None:
        while True:
            guest, _ = self._listener.accept()
            _in_thread(lambda guest=guest: self._lead(guest), "passage")  # type: ignore[misc]  # a lambda's default

    def _lead(self, guest: socket.socket) -> None:
        with guest:
            try:
                there = reach(self._gang, STORE)
            except NodeUnreachable as error:
                log.warning("the way to the first node is closed", extra={"error": str(error)})
                return
            with there:
                _pass_on(guest, there)


def end_with(pid: int, started: Callable[[], bool]) -> None:
    """End this process, and with it its ranks, when that one ends; `started` says whether it is still the same."""
    try:
        other = os.pidfd_open(pid)
    except ProcessLookupError:
        _die()
    if not started():
        _die()

    def watch() -> None:
        select.select([other], [], [])
        _die()

    _in_thread(watch, "worker's death")


def _die() -> NoReturn:
    os.kill(os.getpid(), 9)
    raise AssertionError("nobody outlives that")


def _let_in(guest: socket.socket, token: str) -> tuple[bytes | None, int]:
    """What a guest wants, and as which node; None where it does not know the secret."""
    try:
        guest.settimeout(_HANDSHAKE_S)
        mine = secrets.token_bytes(_NONCE)
        guest.sendall(mine)
        theirs, head, proof = _read(guest, _NONCE), _read(guest, _HEAD.size), _read(guest, _PROOF)
        purpose, node = _HEAD.unpack(head)
        if not hmac.compare_digest(proof, _prove(token, b"node", mine, theirs, head)) or purpose not in (LINE, STORE):
            return None, node
        guest.sendall(_prove(token, b"gate", theirs, mine, head))
        guest.settimeout(None)
        _keep_alive(guest)
    except (OSError, EOFError):
        return None, -1
    return purpose, node


def _be_let_in(connection: socket.socket, gang: Gang, purpose: bytes) -> None:
    connection.settimeout(_HANDSHAKE_S)
    theirs, mine = _read(connection, _NONCE), secrets.token_bytes(_NONCE)
    head = _HEAD.pack(purpose, gang.node)
    connection.sendall(mine + head + _prove(gang.token, b"node", theirs, mine, head))
    if not hmac.compare_digest(_read(connection, _PROOF), _prove(gang.token, b"gate", mine, theirs, head)):
        raise EOFError("it does not know the attempt's secret")
    _keep_alive(connection)


def _prove(token: str, who: bytes, *said: bytes) -> bytes:
    return hmac.digest(token.encode(), b"rlx nodes " + who + b"".join(said), "sha256")


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise EOFError("it hung up")
        found += more
    return found


def _keep_alive(connection: socket.socket) -> None:
    for level, option, value in _ALIVE:
        connection.setsockopt(level, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """What either says, to the other, until one of them hangs up."""
    ends = {one: other, other: one}
    with suppress(OSError):
        while True:
            for ready in select.select(list(ends), [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                ends[ready].sendall(data)


def _in_thread(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()
