"""An OpenAI-compatible server in a thread, which answers as a script says: a real one over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from engine.lm.hf import HFSampler
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams


@dataclass(frozen=True)
class Reply:
    """An answer in one piece, or a stream of events; `broken` closes the connection instead of ending it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    events: Iterable[Mapping[str, Any]] | None = None
    broken: bool = False


@dataclass
class Served:
    """What the server was asked, and how it went."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    authorisations: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    models: Callable[[], Reply] = lambda: Reply(body={"data": [{"id": "judge"}]})
    """What it answers to a GET."""
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set once a client has gone away in the middle of an answer."""
    lock: threading.Lock = field(default_factory=threading.Lock)


Script = Callable[[int, Mapping[str, Any]], Reply]
"""From the number of a request (from 0) and its body to the answer."""


@contextmanager
def serving(script: Script) -> Iterator[Served]:
    """A server on a free port for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with served.lock:
                served.paths.append(self.path)
                served.authorisations.append(self.headers["Authorization"])
            self._answer(served.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                number = len(served.bodies)
                served.bodies.append(body)
                served.paths.append(self.path)
                served.authorisations.append(self.headers["Authorization"])
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            try:
                self._answer(script(number, body))
            except OSError:
                served.hung_up.set()
            finally:
                with served.lock:
                    served.at_once -= 1

        def _answer(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.events is None:
                text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())
                return
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            self.end_headers()
            for event in reply.events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            if not reply.broken:
                self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # the library's 5 refuses connections where many come at once

    with Server(("127.0.0.1", 0), Handler) as server:
        served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def token_event(ids: Sequence[int], logps: Sequence[float], text: str = "") -> dict[str, Any]:
    """An event as vLLM's server streams it."""
    choice = {"index": 0, "text": text, "token_ids": list(ids), "logprobs": {"token_logprobs": list(logps)}}
    return {"choices": [{**choice, "finish_reason": None}]}


def text_event(text: str, finish: str | None = None) -> dict[str, Any]:
    """An event as any server streams it."""
    return {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}


def usage_event(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def speaking(policy: Policy, *, burst: int = 1) -> Script:
    """A script that completes greedily as the policy does, to `max_tokens`, with `burst` tokens an event."""
    lock = threading.Lock()  # a policy's caches are for one thread

    def script(_: int, body: Mapping[str, Any]) -> Reply:
        assert body["return_token_ids"]
        assert body["ignore_eos"]
        params = SamplingParams(max_new_tokens=body["max_tokens"], temperature=0.0)
        with lock:
            [[said]] = HFSampler(policy).generate([body["prompt"]], 1, params)
        pieces = range(0, len(said.token_ids), burst)
        events = [token_event(said.token_ids[i : i + burst], said.logps[i : i + burst]) for i in pieces]
        return Reply(events=[*events, usage_event(len(body["prompt"]), len(said.token_ids))])

    return script
