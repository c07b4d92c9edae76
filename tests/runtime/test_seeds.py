"""Seeds: the same numbers from the same state, independent streams from different names."""

import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ResumeError
from engine.runtime import checkpoint
from engine.runtime.seeds import derive, rng_state, same_bits_again, seed_numpy, seed_torch, set_rng_state
from engine.runtime.trace import digest


def seed_everything(seed: int) -> None:
    seed_numpy(seed)
    seed_torch(seed)


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


def test_a_stage_goes_on_with_as_many_threads_as_it_began_with() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        state = rng_state()
        torch.set_num_threads(1)
        set_rng_state(state)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_missing_generator_refuses_to_resume() -> None:
    state = rng_state()
    del state["numpy"]
    with pytest.raises(ResumeError, match="numpy"):
        set_rng_state(state)


def test_what_was_saved_before_torch_was_there_leaves_torch_as_it_was_seeded() -> None:
    state = rng_state()
    del state["torch"]  # to read a checkpoint imports torch, whether or not it was there when that was written
    seed_torch(5)
    expected = torch.rand(3)
    seed_torch(5)
    set_rng_state(state)
    assert torch.equal(torch.rand(3), expected)


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


def gradients_of_many_threads(send) -> None:
    """Twenty times the gradient of a gather in which many places read the same few rows."""
    torch.set_num_threads(4)
    same_bits_again()
    torch.manual_seed(0)
    places, weights = torch.randint(0, 8, (4096,)), torch.randn(4096, 64)
    hidden = torch.randn(8, 64, requires_grad=True)
    found = []
    for _ in range(20):
        (gradient,) = torch.autograd.grad((hidden[places] * weights).sum(), hidden)
        found.append(digest(gradient))
    send.send(found)


def test_a_gradient_has_the_same_bits_every_time_whatever_the_threads_do() -> None:
    # In a process of its own: what is switched on there is switched on for good.
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=gradients_of_many_threads, args=(there,))
    process.start()
    assert here.poll(120)
    assert len(set(here.recv())) == 1
    process.join()
