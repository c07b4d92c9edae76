"""The gate where nodes meet lets in who knows the attempt's secret, passes on what they say, and shows it to nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from queue import Queue

import pytest

from engine.runtime import gate
from engine.runtime.address import announced, interface_of
from engine.runtime.gate import Gate, Line, NodeUnreachable, Passage
from engine.runtime.world import Meeting, Place
from engine.settings import Settings
from engine.store.members import Gang, Node
from engine.store.processes import process_started

HERE = "127.0.0.1"
PATIENCE_S = 60


@pytest.fixture
def store() -> Iterator[socket.socket]:
    """What torch's store would be: it listens to this host."""
    with socket.create_server((HERE, 0)) as server:
        server.settimeout(PATIENCE_S)
        yield server


class Opened:
    """An open gate, and what it heard."""

    def __init__(self, store: socket.socket) -> None:
        gang = Gang(0, (Node("one", "h1"), Node("two", "h2")), "a secret")
        self.heard: Queue[object] = Queue()
        self.gate = Gate(gang, HERE, store.getsockname(), self._hear)
        self.gate.open()
        self.gang = replace(gang, node=1, address=HERE, port=self.gate.port)

    def _hear(self, node: int, line: Line) -> None:
        for word in line.words():
            self.heard.put((node, dict(word)))
        self.heard.put((node, "gone"))


@pytest.fixture
def opened(store: socket.socket) -> Iterator[Opened]:
    opened = Opened(store)
    yield opened
    opened.gate.close()


def test_a_node_tells_how_it_fares_until_it_is_gone(opened: Opened) -> None:
    connection = gate.reach(opened.gang, gate.LINE)
    Line(connection).tell(stop=True)
    assert opened.heard.get(timeout=PATIENCE_S) == (1, {"stop": True})
    connection.close()
    assert opened.heard.get(timeout=PATIENCE_S) == (1, "gone")


def test_what_a_node_says_to_the_store_gets_there_and_the_answer_back(opened: Opened, store: socket.socket) -> None:
    meeting = Meeting.here()
    assert meeting.listener is not None
    Passage(opened.gang, meeting.listener).open()
    with socket.create_connection((meeting.host, meeting.port), PATIENCE_S) as rank:
        rank.sendall(b"question")
        there, _ = store.accept()
        with there:
            assert there.recv(8, socket.MSG_WAITALL) == b"question"
            there.sendall(b"answer")
            assert rank.recv(6, socket.MSG_WAITALL) == b"answer"
        assert rank.recv(1) == b"", "who hangs up there hangs up here"


@pytest.mark.parametrize("purpose", [gate.LINE, gate.STORE])
def test_who_does_not_know_the_secret_is_not_let_in(opened: Opened, store: socket.socket, purpose: bytes) -> None:
    with pytest.raises(NodeUnreachable, match="not let in by node 0"):
        gate.reach(replace(opened.gang, token="a guess"), purpose)
    with pytest.raises(NodeUnreachable):
        gate.reach(replace(opened.gang, nodes=(*opened.gang.nodes, Node("three", "h3")), node=2), b"?")
    store.settimeout(0)
    with pytest.raises(BlockingIOError):
        store.accept()
    assert opened.heard.empty()


def test_the_secret_is_never_said_and_an_earlier_proof_is_worth_nothing(opened: Opened) -> None:
    """A listener in between hears a node come in, and says the same once more."""
    with socket.create_server((HERE, 0)) as between:
        said: Queue[bytes] = Queue()

        def listen() -> None:
            with between.accept()[0] as node, socket.create_connection((HERE, opened.gate.port)) as there:
                node.sendall(there.recv(32, socket.MSG_WAITALL))
                said.put(node.recv(67, socket.MSG_WAITALL))
                there.sendall(said.queue[0])
                node.sendall(there.recv(32, socket.MSG_WAITALL))

        gate._in_thread(listen, "between")
        gate.reach(replace(opened.gang, port=between.getsockname()[1]), gate.LINE).close()
        heard = said.get(timeout=PATIENCE_S)
    assert opened.heard.get(timeout=PATIENCE_S) == (1, "gone")
    assert b"secret" not in heard
    with socket.create_connection((HERE, opened.gate.port), PATIENCE_S) as again:
        again.recv(32, socket.MSG_WAITALL)
        again.sendall(heard)
        assert again.recv(32) == b""
    assert opened.heard.empty()


def test_a_node_does_not_follow_who_cannot_prove_to_be_the_first() -> None:
    gang = Gang(1, (Node("one", "h1"), Node("two", "h2")), "a secret")
    with socket.create_server((HERE, 0)) as other:

        def pretend() -> None:
            with other.accept()[0] as node, suppress(OSError):
                node.sendall(bytes(32))
                node.recv(67, socket.MSG_WAITALL)
                node.sendall(bytes(32))

        gate._in_thread(pretend, "pretender")
        with pytest.raises(NodeUnreachable, match="does not know the attempt's secret"):
            gate.reach(replace(gang, address=HERE, port=other.getsockname()[1]), gate.LINE)


def test_a_gate_that_is_not_there_is_named_with_what_to_set() -> None:
    with socket.create_server((HERE, 0)) as closed:
        port = closed.getsockname()[1]
    gang = Gang(1, (Node("one", "h1"), Node("two", "h2")), "a secret", HERE, port)
    with pytest.raises(NodeUnreachable, match=rf"node 1 \(two on h2\) cannot reach node 0 .*:{port}.*RLX_ADDRESS"):
        gate.reach(gang, gate.LINE)


def test_a_process_ends_with_its_worker() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = f"""
import time
from engine.runtime import gate
from engine.store.processes import process_started
started = {process_started(worker.pid)}
gate.end_with({worker.pid}, lambda: process_started({worker.pid}) == started)
print("ready", flush=True)
time.sleep(600)
"""
    node = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."})
    assert node.stdout is not None
    assert node.stdout.readline() == b"ready\n"
    assert node.poll() is None
    worker.kill()
    worker.wait()
    assert node.wait(PATIENCE_S) == -9


def test_ranks_are_numbered_over_the_nodes() -> None:
    environment = Place(1, 2, node=1, nodes=3).environment(Meeting(HERE, 4711))
    assert environment == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "3",
        "MASTER_ADDR": HERE,
        "MASTER_PORT": "4711",
    }


def test_the_first_node_announces_what_others_reach(settings: Settings) -> None:
    same = Gang(0, (Node("one", "h"), Node("two", "h")), "")
    several = Gang(0, (Node("one", "h1"), Node("two", "h2")), "")
    assert announced(settings, same) == HERE
    assert announced(replace(settings, address="10.1.2.3"), same) == "10.1.2.3"
    with pytest.raises(NodeUnreachable, match="RLX_ADDRESS"):
        announced(settings, several)
    with pytest.raises(NodeUnreachable, match="RLX_ADDRESS=no such host on h1"):
        announced(replace(settings, address="no such host"), several)
    assert interface_of(HERE) == "lo"
    with pytest.raises(NodeUnreachable, match="GLOO_SOCKET_IFNAME"):
        interface_of("203.0.113.1")
