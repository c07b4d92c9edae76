"""A small HTTP server for services of ours: JSON in, JSON out, one function a path, a key, and limits.

`GET /health` answers as soon as `serve` was called, so whoever calls it has loaded what it serves. Whatever is wrong
with a request is answered with a 4xx and `{"error": …}`; the service goes on.
"""

from __future__ import annotations

import hmac
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from engine.runtime.service_kinds import KEY

Answer = Callable[[Any], Any]
"""From a request's JSON to the answer's. Raises Rejected for a request that cannot be answered."""
LARGEST = 64 << 20
"""Bytes of a request."""
_QUIET_S = 60.0
"""A client that says nothing for so long is hung up on."""


class Rejected(Exception):
    """The request cannot be answered, by the client's fault."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class JsonServer(ThreadingHTTPServer):
    """Listens from its making on; `serve_forever` answers."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str, port: int, routes: Mapping[str, Answer], key: str, *, largest: int = LARGEST) -> None:
        super().__init__((host, port), _Handler)
        self.routes, self.key, self.largest = routes, key, largest


def serve(host: str, port: int, routes: Mapping[str, Answer]) -> None:
    """Answer until SIGTERM. The key is what the environment says."""
    server = JsonServer(host, port, routes, os.environ[KEY])
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listening on {host}:{port}", flush=True)  # noqa: T201 - this is its log
    with server:
        server.serve_forever(poll_interval=0.1)


def texts_of(request: Any, key: str, *, most: int) -> list[str]:
    """The list of texts under `key`. Raises Rejected."""
    texts = request.get(key) if isinstance(request, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Rejected(f"the request needs {key!r}, a list of texts")
    if len(texts) > most:
        raise Rejected(f"{len(texts)} {key} are more than the {most} of one request: send several")
    return texts


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer
    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float] = _QUIET_S
    server_version, sys_version = "rlx", ""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._say(HTTPStatus.OK, {"status": "ok"})
        else:
            self._refuse(Rejected(f"there is no GET {self.path}", HTTPStatus.NOT_FOUND))

    def do_POST(self) -> None:
        try:
            answer = self._answer()
        except Rejected as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001 - one request that breaks us must not end the service
            traceback.print_exc()
            self._refuse(Rejected(f"{type(error).__name__}: {error}", HTTPStatus.INTERNAL_SERVER_ERROR))
        else:
            self._say(HTTPStatus.OK, answer)

    def _answer(self) -> Any:
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode(), self.server.key.encode()):
            raise Rejected("show the service's key as `Authorization: Bearer …`", HTTPStatus.UNAUTHORIZED)
        answer = self.server.routes.get(self.path)
        if answer is None:
            raise Rejected(f"there is only POST {', '.join(self.server.routes)}", HTTPStatus.NOT_FOUND)
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Rejected("say the request's Content-Length", HTTPStatus.LENGTH_REQUIRED)
        if int(length) > self.server.largest:
            raise Rejected(
                f"a request may have {self.server.largest} bytes, not {length}", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            )
        body = self.rfile.read(int(length))
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Rejected(f"the request is no JSON: {error}") from None
        return answer(request)

    def _refuse(self, error: Rejected) -> None:
        self.close_connection = True  # its body may not have been read
        self._say(error.status, {"error": error.message})

    def _say(self, status: HTTPStatus, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Only what was refused is worth a line."""
        if not str(getattr(code, "value", code)).startswith("2"):
            super().log_request(code, size)
