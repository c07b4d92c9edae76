"""Our HTTP server: what it answers, and how it refuses what it cannot."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from engine.runtime.json_server import JsonServer, Rejected, texts_of


def echo(request: Any) -> Any:
    if request == "break":
        raise ZeroDivisionError("by mistake")
    if request == "odd":
        raise Rejected("this is odd")
    return {"said": request}


@pytest.fixture
def port() -> Iterator[int]:
    with JsonServer("127.0.0.1", 0, {"/echo": echo}, "secret", largest=1000) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(
    port: int, body: bytes | str, path: str = "/echo", method: str = "POST", **headers: str
) -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {"Authorization": "Bearer secret", **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_json_in_json_out(port: int) -> None:
    assert ask(port, '{"a": "é"}'.encode()) == (200, {"said": {"a": "é"}})
    assert ask(port, "", "/health", "GET", Authorization="") == (200, {"status": "ok"})


def test_one_connection_serves_many_requests(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(3):
        connection.request("POST", "/echo", str(number), {"Authorization": "Bearer secret"})
        assert json.loads(connection.getresponse().read()) == {"said": number}


@pytest.mark.parametrize(
    ("body", "changes", "status", "said"),
    [
        ("1", {"Authorization": "Bearer guess"}, 401, "show the service's key"),
        ("1", {"Authorization": ""}, 401, "show the service's key"),
        ("1", {"path": "/other"}, 404, "there is only POST /echo"),
        ("1", {"path": "/echo", "method": "GET"}, 404, "there is no GET /echo"),
        ("{", {}, 400, "no JSON"),
        (b"\xff", {}, 400, "no JSON"),
        ("[" * 900, {}, 400, "no JSON"),
        ('"' + "x" * 1000 + '"', {}, 413, "1000 bytes"),
        ('"odd"', {}, 400, "this is odd"),
        ('"break"', {}, 500, "ZeroDivisionError: by mistake"),
        ("1", {"Content-Length": "-1"}, 411, "Content-Length"),
    ],
)
def test_what_is_refused_and_life_goes_on(
    port: int, body: bytes | str, changes: dict[str, str], status: int, said: str
) -> None:
    found, answer = ask(port, body, **changes)

    assert (found, said in answer["error"]) == (status, True), answer
    assert ask(port, "2") == (200, {"said": 2})


def test_a_client_that_hangs_up_half_way_harms_nobody(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.sendall(b"POST /echo HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n\r\n{")
    assert ask(port, "2") == (200, {"said": 2})


@pytest.mark.parametrize("request_", [None, [], {}, {"texts": "a"}, {"texts": [1]}, {"texts": ["a"] * 4}])
def test_lists_of_texts_are_checked(request_: Any) -> None:
    with pytest.raises(Rejected):
        texts_of(request_, "texts", most=3)
    assert texts_of({"texts": ["a", "b"]}, "texts", most=3) == ["a", "b"]
