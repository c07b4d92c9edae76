"""Which checkpoint a course calls the best."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.methods.dialogue.course import Course
from engine.methods.dialogue.play import Costs


class Scripted(Course):
    """A course whose evaluations are written down: per step, the mean of each ranking."""

    means: dict[int, tuple[float, float]]

    def _play(self, speaker: Any, split: str, candidates: int, valuer: Any) -> Any:
        return SimpleNamespace(mean=self.means[self._step][0 if candidates > 1 else 1])

    def _report(self, played: Any, metric: str, *, first: bool) -> None:
        pass


class Still:
    """A trainee that nothing happens to."""

    ready = True

    def __init__(self) -> None:
        self.costs = Costs()
        self.speakers = {"train": SimpleNamespace(sampler=SimpleNamespace(refresh=lambda: None))}

    def gather(self) -> None: ...

    def iterate(self, number: int) -> dict[str, float]:
        return {}

    def rankings(self) -> Any:
        return (("score", 8, None), ("score/generator", 1, None))

    def models(self) -> Any:
        return {"generator": lambda folder: (Path(folder) / "weights").write_text("w")}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Any) -> None: ...


@pytest.mark.parametrize(
    ("means", "best"),
    [
        ({0: (0.1, 0.1), 2: (1.0, 0.7), 4: (0.9, 0.9)}, 2),
        ({0: (0.1, 0.1), 2: (1.0, 0.7), 4: (1.0, 0.9)}, 4),  # as good with the ranker, better alone
        ({0: (0.1, 0.1), 2: (0.6, 0.5), 4: (0.6 - 1e-16, 0.6)}, 4),  # a rounding error is no difference
        ({0: (0.1, 0.1), 2: (1.0, 0.9), 4: (1.0, 0.9)}, 2),  # nothing tells them apart: the earlier one stays
    ],
)
def test_the_best_checkpoint_is_best_by_the_first_ranking_and_then_by_the_next(
    stage: Any, means: dict[int, tuple[float, float]], best: int
) -> None:
    ctx = stage({"name": "still"}, every=2)
    course = Scripted(ctx, Still(), iterations=4, checkpoint_every=100)
    course.means = means

    course.run()

    assert json.loads((ctx.labelled("best") / "manifest.json").read_text())["step"] == best
