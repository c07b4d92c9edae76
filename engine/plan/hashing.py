"""Content hashes: the same content always has the same name.

Everything hashed is first written as canonical JSON, so that the order of keys, or the way a number was
typed, changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.plan.stage import Stage


def canonical(value: Any) -> bytes:
    """`value` (JSON data; tuples count as lists) as canonical UTF-8 JSON: sorted keys, no spaces.

    A float that is a whole number is written as that integer, for YAML reads `1` and `1.0` alike where a
    float is meant. Raises ValueError for NaN and infinities, TypeError for what is not JSON data.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be hashed: it is not a finite number")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only mappings with text keys can be hashed")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not JSON data and cannot be hashed")


def sha256_of(value: Any) -> str:
    """SHA-256 of the canonical form, as 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def by_content(config: Any) -> Any:
    """`config` without the places of files whose content it names: `file` goes where its hash stands beside it.

    A clone in another folder, or another home, thus has the same keys.
    """
    if isinstance(config, Mapping):
        hashed = config.get("sha256") or config.get("file_sha256")
        return {key: by_content(value) for key, value in config.items() if not (hashed and key == "file")}
    if isinstance(config, list | tuple):
        return [by_content(value) for value in config]
    return config


TERMS = frozenset({"gpus", "start_timeout", "keep", "memory", "batch_tokens"})
"""How a service runs, which changes nothing of what it serves."""


HOSTED = frozenset({"kind", "url", "model", "token_ids", "version"})
"""What counts of an endpoint that somebody else runs; key, limits and prices are terms of asking it."""


def served(service: Mapping[str, Any]) -> dict[str, Any]:
    """What a service serves: its definition without the terms on which it runs."""
    if service["kind"] == "endpoint":
        return {key: value for key, value in service.items() if key in HOSTED}
    return {key: value for key, value in service.items() if key not in TERMS}


def by_service(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with what its services serve, and without how they run."""
    services = config.get("services")
    if not services:
        return config
    return {**config, "services": {name: served(service) for name, service in services.items()}}


def cache_key(stage: Stage, seed: int, input_hashes: Mapping[str, str]) -> str:
    """The name under which a stage's output is cached.

    Covers its kind and kind's version, the config it reads, what its planner decided, the content hashes of
    its inputs and the seed, and nothing else: a stage's name, resources and place in the plan do not count, nor
    does how its services run.
    Raises ValueError where an input has no hash yet.
    """
    missing = sorted(set(stage.inputs) - set(input_hashes))
    if missing:
        raise ValueError(f"stage {stage.name!r} has no hash yet for its inputs {missing}")
    return sha256_of(
        {
            "kind": stage.kind,
            "version": stage.version,
            "config": by_content(by_service(stage.config)),
            "extra": stage.extra,
            "inputs": {name: input_hashes[name] for name in stage.inputs},
            "seed": seed,
        }
    )
