"""The filesystem transport under several writers and readers: every message once, none empty."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty

from kombu import Connection
from kombu.simple import SimpleQueue

from engine.settings import Settings
from workers.app import make_app

WRITER = """
import sys
from kombu import Connection
from workers.app import make_app
from engine.settings import read_settings
app = make_app(read_settings())
with app.connection_for_write() as connection, connection.SimpleQueue("q") as queue:
    for index in range(int(sys.argv[2])):
        queue.put({"id": f"{sys.argv[1]}-{index}"})
"""


def connect(settings: Settings) -> Connection:
    return make_app(settings).connection_for_read()


def take(queue: SimpleQueue) -> dict:
    message = queue.get(timeout=10)
    message.ack()
    return message.payload


def test_every_message_arrives_once_and_whole(settings: Settings) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(writer), "50"],
            env={**settings.environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for writer in range(2)
    ]
    received: list[str] = []

    def read() -> None:
        with connect(settings) as connection, connection.SimpleQueue("q") as queue:
            while len(received) < 100:
                try:
                    message = queue.get(timeout=0.2)
                except Empty:
                    if all(writer.poll() is not None for writer in writers) and not any(messages.glob("[!.]*")):
                        return
                    continue
                received.append(message.payload["id"])
                message.ack()

    messages = settings.broker / "messages"
    connect(settings)
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(received) == sorted(f"{writer}-{index}" for writer in range(2) for index in range(50))
    assert list(messages.iterdir()) == []


def test_messages_keep_their_order(settings: Settings) -> None:
    with connect(settings) as connection, connection.SimpleQueue("q") as queue:
        for index in range(20):
            queue.put({"index": index})
        assert [take(queue)["index"] for _ in range(20)] == list(range(20))


def test_queues_are_kept_apart(settings: Settings) -> None:
    with connect(settings) as connection, connection.SimpleQueue("a") as a, connection.SimpleQueue("a.b") as b:
        a.put({"for": "a"})
        b.put({"for": "a.b"})
        assert take(b) == {"for": "a.b"}
        assert take(a) == {"for": "a"}
