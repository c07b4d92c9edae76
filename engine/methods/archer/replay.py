"""The critic's memory: a ring of transitions, each a state, what was said, what it paid, and what could be said next.

Token ids are ragged int32 arrays, contexts are stored once. Which transitions a minibatch holds is decided by a
generator that the caller passes, so the memory itself has no randomness to save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Transition:
    """One decision and its consequence."""

    state: Ids
    action: Ids
    reward: float
    done: bool
    reply: Ids
    """What the environment appended behind the action; the next state is state + action + reply."""
    candidates: tuple[Ids, ...]
    """What was proposed in the next state; empty after the end."""

    @property
    def next_state(self) -> Ids:
        return np.concatenate([self.state, self.action, self.reply])


def ids(tokens: Sequence[int]) -> Ids:
    """Token ids as they are stored."""
    return np.asarray(tokens, dtype=np.int32)


class ReplayBuffer:
    """The newest `capacity` transitions."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: list[Transition] = []
        self._oldest = 0
        self.added = 0
        """Transitions ever added."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, transition: Transition) -> None:
        """Remember a transition, in place of the oldest one once the ring is full."""
        if len(self._rows) < self.capacity:
            self._rows.append(transition)
        else:
            self._rows[self._oldest] = transition
            self._oldest = (self._oldest + 1) % self.capacity
        self.added += 1

    def sample(self, n: int, rng: np.random.Generator) -> list[Transition]:
        """`n` transitions, drawn uniformly and with replacement."""
        return [self._rows[index] for index in rng.integers(len(self._rows), size=n)]

    def state(self) -> dict[str, Any]:
        """The whole memory as a few flat arrays."""
        return {
            "capacity": self.capacity,
            "oldest": self._oldest,
            "added": self.added,
            "reward": np.array([row.reward for row in self._rows], dtype=np.float64),
            "done": np.array([row.done for row in self._rows], dtype=np.bool_),
            "rivals": np.array([len(row.candidates) for row in self._rows], dtype=np.int32),
            **_ragged("state", [row.state for row in self._rows]),
            **_ragged("action", [row.action for row in self._rows]),
            **_ragged("reply", [row.reply for row in self._rows]),
            **_ragged("candidates", [candidate for row in self._rows for candidate in row.candidates]),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> ReplayBuffer:
        """The memory that `state` describes."""
        buffer = cls(int(state["capacity"]))
        buffer._oldest, buffer.added = int(state["oldest"]), int(state["added"])
        candidates = iter(_pieces(state, "candidates"))
        for reward, done, rivals, context, action, reply in zip(
            state["reward"],
            state["done"],
            state["rivals"],
            _pieces(state, "state"),
            _pieces(state, "action"),
            _pieces(state, "reply"),
            strict=True,
        ):
            buffer._rows.append(
                Transition(
                    state=context,
                    action=action,
                    reward=float(reward),
                    done=bool(done),
                    reply=reply,
                    candidates=tuple(next(candidates) for _ in range(int(rivals))),
                )
            )
        return buffer


def _ragged(name: str, rows: Sequence[Ids]) -> dict[str, Ids]:
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    return {f"{name}_ids": np.concatenate([ids([]), *rows]), f"{name}_lengths": lengths}


def _pieces(state: Mapping[str, Any], name: str) -> list[Ids]:
    lengths = np.asarray(state[f"{name}_lengths"], dtype=np.int64)
    flat = np.asarray(state[f"{name}_ids"], dtype=np.int32)
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
