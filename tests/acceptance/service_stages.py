"""Stages that use services, run by real workers."""

from __future__ import annotations

import json
import os
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.runtime.context import Address, StageContext, Stopped
from engine.store.processes import process_started


def get(address: Address, path: str) -> Any:
    connection = HTTPConnection(urlsplit(address.url).netloc, timeout=60)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def ask(ctx: StageContext) -> None:
    """Write down who answers at each service, and which GPUs everybody sees."""
    found = {name: get(address, "/pid") for name, address in ctx.services.items()}
    seen = {name: get(address, "/env?CUDA_VISIBLE_DEVICES") for name, address in ctx.services.items()}
    (ctx.output_dir / "pids.json").write_text(json.dumps(found))
    (ctx.output_dir / "gpus.json").write_text(
        json.dumps({"stage": os.environ["CUDA_VISIBLE_DEVICES"], "device": ctx.device, **seen})
    )


def talk(ctx: StageContext) -> None:
    """Ask the language model behind each service."""
    said = {}
    for name, address in ctx.services.items():
        connection = HTTPConnection(urlsplit(address.url).netloc, timeout=60)
        request = json.dumps({"model": address.model, "messages": []})
        headers = {"Authorization": f"Bearer {address.key}"}
        connection.request("POST", f"{urlsplit(address.url).path}/chat/completions", request, headers)
        said[name] = json.loads(connection.getresponse().read())
    print("the services are", dict(ctx.services))
    (ctx.output_dir / "said.json").write_text(json.dumps(said))


def hold(ctx: StageContext) -> None:
    """Ask, say so beside `extra.gate`, and wait for it; leaves when told to."""
    pids = [get(address, "/pid") for address in ctx.services.values()]
    Path(ctx.extra["gate"]).with_suffix(".reached").write_text(" ".join(map(str, [os.getpid(), *pids])))
    waiting = threading.Event()
    while not Path(ctx.extra["gate"]).exists():
        if ctx.should_stop:
            raise Stopped
        waiting.wait(0.02)


def fail(ctx: StageContext) -> None:
    """Break, once the service has answered."""
    print("it answers as", [get(address, "/pid") for address in ctx.services.values()])
    raise ValueError("on purpose")


def kill_twice(ctx: StageContext) -> None:
    """End the service as often as it is there, until the engine has had enough."""
    waiting = threading.Event()
    while not ctx.should_stop:
        for address in ctx.services.values():
            try:
                get(address, "/die")
            except OSError:
                waiting.wait(0.1)
    raise Stopped


def generate(ctx: StageContext) -> None:
    """Have a vllm service go on with a text, say so beside `extra.gate` with the pids of all, and wait to be ended."""
    address = ctx.services["reader"]
    connection = HTTPConnection(urlsplit(address.url).netloc, timeout=120)
    answers = []
    for key in (address.key, "guess"):
        request = {"model": address.model, "prompt": "the cat", "max_tokens": 5, "temperature": 0}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", f"{urlsplit(address.url).path}/completions", json.dumps(request), headers)
        response = connection.getresponse()
        answers.append([response.status, json.loads(response.read())])
    Path(ctx.extra["gate"]).with_suffix(".draft").write_text(json.dumps(answers))
    Path(ctx.extra["gate"]).with_suffix(".draft").rename(Path(ctx.extra["gate"]).with_suffix(".reached"))
    threading.Event().wait()


def who_lives(ctx: StageContext) -> None:
    """Write down which of all services that were ever started live, where `extra.gate` stands."""
    started = Path(ctx.extra["gate"]).with_name("starts").read_text().split()
    alive = [int(pid) for pid in started if process_started(int(pid)) is not None]
    (ctx.output_dir / "alive.json").write_text(json.dumps(alive))
