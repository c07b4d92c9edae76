"""The runs of the seeded store, a line each: what they were, when, and how well they went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ITERATIONS = 60


@dataclass(frozen=True)
class Outline:
    """One run in a line: what it was, when, and how well it went."""

    handle: str
    method: str
    revision: int
    hours_ago: float
    status: str = "succeeded"
    seed: int = 0
    goal: float = 0.95
    tau: float = 14.0
    seconds: float = 160.0
    done: int = ITERATIONS
    overrides: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: str = ""
    user: str = "ada"
    hardware: Mapping[str, Any] = field(default_factory=lambda: {"host": "node-3", "cpus": 2, "gpus": []})

    @property
    def name(self) -> str:
        return self.handle.rpartition("-")[0]

    @property
    def spec_name(self) -> str:
        return self.name.replace("-", "_")

    @property
    def game(self) -> bool:
        return self.name.startswith("twenty")


OUTLINES = (
    Outline("best-lang-1", "archer", 1, 72.0, goal=0.93, tags=("baseline",), notes="The defaults, for later."),
    Outline("best-lang-2", "archer", 1, 71.5, seed=1, goal=0.95, overrides=("seed=1",)),
    Outline("best-lang-3", "archer", 2, 48.0, goal=0.97, tau=10.0, seconds=188.0, tags=("candidates",)),
    Outline("best-lang-4", "archer", 2, 47.0, status="failed", done=23, goal=0.9, tags=("candidates",), user="grace"),
    Outline("best-lang-5", "archer", 3, 26.0, goal=0.98, tau=8.0, tags=("candidates", "paper")),
    Outline("best-lang-6", "archer", 3, 25.0, status="cancelled", done=17, seed=2, overrides=("seed=2",), user="grace"),
    Outline("best-lang-reinforce-1", "reinforce", 1, 24.0, goal=0.71, tau=34.0, seconds=131.0, tags=("baseline",)),
    Outline("best-lang-ppo-1", "ppo", 1, 23.5, goal=0.84, tau=26.0, seconds=149.0, tags=("baseline",)),
    Outline("twenty-questions-1", "archer", 1, 20.0, goal=0.68, tau=22.0, seconds=1460.0, tags=("games",)),
    Outline(
        "twenty-questions-2",
        "archer",
        2,
        6.0,
        goal=0.86,
        tau=18.0,
        seconds=1615.0,
        overrides=("algorithm.ranker.candidates=16",),
        tags=("games", "candidates"),
        notes="Twice the candidates: does the ranker still tell them apart?",
    ),
    Outline(
        "twenty-questions-3",
        "archer",
        2,
        0.32,
        status="running",
        done=41,
        goal=0.76,
        tau=20.0,
        seconds=1500.0,
        tags=("games",),
    ),
    Outline(
        "twenty-questions-4", "archer", 2, 0.05, status="queued", done=0, seed=1, overrides=("seed=1",), tags=("games",)
    ),
)
