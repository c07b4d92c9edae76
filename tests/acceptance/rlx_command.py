"""The `rlx` command as a user runs it: a process of its own, in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent.parent
RLX = str(Path(sys.executable).parent / "rlx")
DEADLINE_S = 240.0

T = TypeVar("T")

SMALL = (
    "model.warmup.steps=4",
    "model.warmup.examples=60",
    "algorithm.iterations=9",
    "algorithm.checkpoint_every=1",
    "algorithm.episodes={environments: 2, decisions: 3, max_tokens: 104}",
    "algorithm.ranker.updates=4",
    "algorithm.ranker.replay.min_fill=8",
    "algorithm.generator.start_after=2",
    "evaluation.every=5",
    "hardware.threads=1",
)
"""Overrides that take specs/best_lang.yaml through all its parts in seconds."""


@dataclass(frozen=True)
class Rlx:
    """A home folder and the command in it."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        hidden = {"RLX_DATABASE_URL", "RLX_BROKER_URL", "RLX_ARTIFACTS"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return {**kept, "RLX_HOME": str(self.home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [RLX, *words],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, code: int = 0) -> str:
        """What the command printed to stdout; fails unless it left with `code`."""
        process = self.start(*words)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, f"rlx {' '.join(words)} left with {process.returncode}:\n{out}\n{err}"
        return out

    def error(self, *words: str, code: int) -> str:
        """What the command printed to stderr, when it is to fail with `code`."""
        process = self.start(*words)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, f"rlx {' '.join(words)} left with {process.returncode}:\n{out}\n{err}"
        assert "Traceback" not in err, err
        return err

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


def eventually(look: Callable[[], T | None], what: str) -> T:
    """The first thing that `look` finds; fails after a long while. Polls, for the other side is another process."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {DEADLINE_S:.0f} s")
