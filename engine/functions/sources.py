"""What the user wrote and what it may cost: the functions' sources and the limits on their calls.

Plain values, shared by both ends. Running the sources is the host's task, checking signatures the spec's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from engine.plan.hashing import served, sha256_of


@dataclass(frozen=True)
class Sources:
    """Python source of each function, as it stands in the spec; None where the dataset has none.

    As in recurve, `score_fn` and `done_fn` share one namespace and `split_fn` has its own. `reply_fn` sees what
    the first two define, but redefines nothing for them.
    """

    score_fn: str | None = None
    done_fn: str | None = None
    split_fn: str | None = None
    reply_fn: str | None = None
    turn_cost: float = 0.0
    """What an utterance costs: no function, but as much a part of the reward."""

    @classmethod
    def of(cls, dataset: object) -> Sources:
        """The sources in a dataset block, the spec's model or its resolved mapping; other fields are ignored."""
        read = dataset.get if isinstance(dataset, Mapping) else partial(getattr, dataset)
        return cls(**{name: read(name, None) for name in FUNCTIONS}, turn_cost=read("turn_cost", 0.0))

    @property
    def hash(self) -> str:
        """SHA-256 over all sources and the cost of a turn: the version of the reward."""
        return sha256_of(asdict(self))


def is_scored(dataset: Mapping[str, Any]) -> bool:
    """Whether a conversation about a resolved dataset block gets a score: by a function, or by a service."""
    return bool(dataset.get("score_fn") or dataset.get("score_by"))


def reward_hash(spec: Mapping[str, Any]) -> str:
    """The version of the reward that a resolved spec asks for: its functions, and the service that scores, if any."""
    dataset = spec["dataset"]
    functions, name = Sources.of(dataset).hash, dataset.get("score_by")
    return functions if name is None else sha256_of({"functions": functions, "service": served(spec["services"][name])})


FUNCTIONS = ("score_fn", "done_fn", "split_fn", "reply_fn")


@dataclass(frozen=True)
class Limits:
    """What one call may cost. CPU time is counted, so that a busy machine fails nobody's run."""

    call_s: float = 1.0
    """CPU seconds of one call."""
    wall_s: float = 30.0
    """Seconds by the clock that one call may take, sleep included."""
    load_s: float = 20.0
    """CPU seconds that the sources may take to load, their imports included."""
    memory: int = 1 << 30
    """Bytes of address space of the whole process."""
    output: int = 64 << 10
    """Characters that one call may print, and that we keep in all."""
