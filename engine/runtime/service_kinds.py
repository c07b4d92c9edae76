"""From a service's definition to the command that serves it: one function a kind. Nothing is started here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.runtime.ports import HOST

KEY = "RLX_SERVICE_KEY"
"""The environment variable in which a service finds the key that its clients show."""
_ROOT = Path(__file__).resolve().parents[2]
_OURS_ALONE = ("RLX_DATABASE_URL", "RLX_BROKER_URL", "RLX_ARTIFACTS")
"""What may hold passwords and is no business of a service's."""


@dataclass(frozen=True)
class Launch:
    """How to start one service."""

    argv: list[str]
    health: str
    """Path that answers 200 once it is up."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: str | None = None
    base: str = ""
    """What comes after host and port in the address that clients get."""
    model: str | None = None
    """What a request calls the model."""


def launch(name: str, service: Mapping[str, Any], place: Mapping[str, Any], *, port: int, key: str) -> Launch:
    """The command for a service at a port. `place` is where its models were found to be. Raises ModelError."""
    match service["kind"]:
        case "vllm":
            return _vllm(service, place, port, key)
        case "reward":
            options = {
                "model": _path(service["model"], place, "model"),
                "max_tokens": service["max_tokens"],
                "batch_tokens": service["batch_tokens"],
            }
            return _ours("engine.lm.reward_server", options, port, model=service["model"])
        case "http-retriever":
            options = {key: service[key] for key in ("corpus", "function", "k1", "b")}
            return _ours("engine.retrieval.server", options, port)
        case "command":
            argv = [_filled(word, port=port) for word in service["argv"]]
            return Launch(argv, service["health"], folder=service["folder"])
        case kind:
            raise ValueError(f"service {name}: there is no kind {kind!r}")


def environment(service: Mapping[str, Any], planned: Launch, *, port: int, key: str, gpus: str) -> dict[str, str]:
    """All that the service's process finds in its environment: ours, without what is none of its business, and its."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}
    own = {name: _filled(text, port=port).replace("{key}", key) for name, text in service["env"].items()}
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": gpus, KEY: key}
    return {**inherited, **ours, **planned.env, **own}


def _vllm(service: Mapping[str, Any], place: Mapping[str, Any], port: int, key: str) -> Launch:
    named, adapter = service["model"], service["lora"]
    model, served = _path(named, place, "model"), adapter or named
    below = _adapter_base(model)
    if below is not None and adapter is not None:
        raise ModelError(f"{named} is an adapter itself: serve the model below it, or leave `lora` out")
    if below is not None:  # what a run with LoRA has saved is an adapter alone
        model, adapter = below, model
    elif adapter is not None:
        adapter = _path(adapter, place, "lora")
    trunk = f"{named}/base" if below is not None else named
    options = ["--host", HOST, "--port", str(port), "--served-model-name", trunk]
    if adapter is not None:
        options += ["--enable-lora", "--lora-modules", f"{served}={adapter}", *_rank(adapter)]
    if service["max_length"] is not None:
        options += ["--max-model-len", str(service["max_length"])]
    if service["memory"] is not None:
        options += ["--gpu-memory-utilization", str(service["memory"])]
    if service["dtype"] != "auto":
        options += ["--dtype", service["dtype"]]
    if service["gpus"] > 1 and not any(word.startswith("--tensor-parallel-size") for word in service["args"]):
        options += ["--tensor-parallel-size", str(service["gpus"])]
    repo, _, revision = model.partition("@")
    if revision and not Path(model).exists():
        model, options = repo, [*options, "--revision", revision]
    argv = [sys.executable, "-P", "-m", "engine.lm.vllm_serve", "serve", model, *options, *service["args"]]
    quiet = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return Launch(argv, "/health", quiet, base="/v1", model=served)


def _ours(module: str, options: Mapping[str, Any], port: int, model: str | None = None) -> Launch:
    return Launch([sys.executable, "-P", "-m", module, HOST, str(port), json.dumps(options)], "/health", model=model)


def _path(name: str, place: Mapping[str, Any], role: str) -> str:
    """Where a model is, by what was found when the plan was made."""
    found = place.get(role, {}).get("path")
    if found is None and name.startswith("run:"):
        raise ModelError(f"{name}: the checkpoint was not resolved to a directory when the run was submitted.")
    return str(found or name)


def _adapter_base(folder: str) -> str | None:
    note = Path(folder) / "adapter_config.json"
    return str(json.loads(note.read_text())["base_model_name_or_path"]) if note.is_file() else None


def _rank(adapter: str) -> list[str]:
    """vLLM must be told of adapters above its default rank of 16; it knows a few ranks."""
    note = Path(adapter) / "adapter_config.json"
    rank = int(json.loads(note.read_text())["r"]) if note.is_file() else 16
    return ["--max-lora-rank", str(next((r for r in (16, 32, 64, 128, 256, 320, 512) if r >= rank), rank))]


def _filled(text: str, *, port: int) -> str:
    return text.replace("{host}", HOST).replace("{port}", str(port))
