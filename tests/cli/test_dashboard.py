"""Which port the dashboard takes."""

from __future__ import annotations

import socket

import pytest

from engine.cli.dashboard import free_port
from engine.errors import Refused


def test_a_taken_port_is_refused_and_a_free_one_kept():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port}"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port


def test_without_a_port_the_next_free_one_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("engine.cli.dashboard.DEFAULT_PORT", port)
        assert free_port("127.0.0.1", None) > port


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(Refused, match=r"192\.0\.2\.1"):
        free_port("192.0.2.1", 8501)
