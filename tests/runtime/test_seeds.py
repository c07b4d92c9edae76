"""Seeds: the same numbers from the same state, independent streams from different names."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ResumeError
from engine.runtime import checkpoint
from engine.runtime.seeds import derive, rng_state, seed_everything, set_rng_state


def draw() -> list[float]:
    # gauss and standard_normal keep a second number in hand: an odd number of draws must survive too.
    return [random.random(), random.gauss(), np.random.rand(), np.random.standard_normal(), torch.rand(()).item()]


def test_seeding_repeats_every_generator() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    again = draw()
    seed_everything(6)
    other = draw()

    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_generators_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    seed_everything(0)
    draw()
    checkpoint.write(tmp_path / "step-1", 1, {"rng": rng_state()})
    expected = [draw(), draw()]

    seed_everything(99)
    set_rng_state(checkpoint.read(tmp_path / "step-1").state["rng"])

    assert [draw(), draw()] == expected


def test_a_missing_generator_refuses_to_resume() -> None:
    state = rng_state()
    del state["numpy"]
    with pytest.raises(ResumeError, match="numpy"):
        set_rng_state(state)


def test_names_are_kept_apart() -> None:
    seeds = {
        derive(0),
        derive(1),
        derive(0, "a"),
        derive(0, "b"),
        derive(0, "a", "b"),
        derive(0, "ab"),
        derive(0, 1),
        derive(0, "1"),
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(3, "x") == derive(3, "x")
