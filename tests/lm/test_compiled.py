"""Compiled layers: the same losses, the same names, compiled once for batches of all shapes, and only for training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from engine.errors import SpecError
from engine.lm import compiled
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.lm.supervised import Example, completion_loss, mean_logps
from engine.plan.stage import Resources

SETTINGS = LearnerSettings(lr=1e-2)


def examples(count: int, longest: int) -> list[Example]:
    """Texts of different lengths after one beginning: a tree of few dense tokens, or of many blocks."""
    return [
        Example([1, 2, 3], [5 + n, *range(6, 6 + 1 + n % longest)], [True] * (2 + n % longest)) for n in range(count)
    ]


@pytest.fixture(autouse=True)
def all_but_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are traced, differentiated and found again as ever, from nothing. That the C++ computes the same is seen
    to by `bench/compiled.py`: to compile it takes longer than all of these tests."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch.compiler.reset()
    counters.clear()


BATCHES = [examples(3, 3), examples(5, 7), examples(40, 30), examples(30, 40), examples(4, 2)]
"""The third and the fourth are over the size up to which a tree is one dense block."""


def learner_of(policy: Policy, **more: Any) -> Learner:
    policy.model.train()
    return Learner(policy.model, SETTINGS, resources=Resources(**more))


def step(learner: Learner, policy: Policy, batch: list[Example]) -> float:
    return learner.step(lambda part: completion_loss(policy, part), [batch])["loss"]


def agree(pair: tuple[Policy, Policy], batches: list[list[Example]], **more: Any) -> Learner:
    """Train one policy as it is and the other in compiled layers; the losses of every step are the same."""
    plain, other = pair
    expected, learner = learner_of(plain), learner_of(other, compile=True, **more)
    for batch in batches:
        assert step(learner, other, batch) == pytest.approx(step(expected, plain, batch), rel=1e-4)
    assert list(other.model.state_dict()) == list(plain.model.state_dict())
    assert list(learner.state()["weights"]) == list(expected.state()["weights"])
    return learner


def test_losses_agree_a_state_goes_on_without_and_all_shapes_share_the_code(make_policy: Callable[..., Policy]) -> None:
    plain, other, fresh = (make_policy("llama") for _ in range(3))
    learner = agree((plain, other), BATCHES[:3])
    compiled_by_now = counters["stats"]["unique_graphs"]

    resumed = learner_of(fresh)
    resumed.load_state(learner.state())
    for batch in BATCHES:
        assert step(resumed, fresh, batch) == pytest.approx(step(learner, other, batch), rel=1e-4)
    assert counters["stats"]["unique_graphs"] == compiled_by_now > 0


def test_layers_with_a_forward_of_their_own_agree_too_computed_twice(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("sliding")
    agree((make_policy("sliding"), policy), BATCHES[:3], checkpoint_activations=True)
    assert counters["stats"]["unique_graphs"] > 0

    copied = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    before = completion_loss(copied, BATCHES[0]).loss.item()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
    assert completion_loss(copied, BATCHES[0]).loss.item() == before, "a copy is computed with its own weights"


def test_without_gradients_nothing_is_compiled_and_copies_are_models(make_policy: Callable[..., Policy]) -> None:
    policy, plain = make_policy("gpt2"), make_policy("gpt2")
    learner_of(policy, compile=True)
    policy.model.eval()
    counters.clear()

    copied = Policy(copy.deepcopy(policy.model), policy.tokenizer)

    assert mean_logps(copied, BATCHES[0], 1000) == mean_logps(plain, BATCHES[0], 1000)
    assert mean_logps(policy, BATCHES[0], 1000) == mean_logps(plain, BATCHES[0], 1000)
    assert counters["stats"]["unique_graphs"] == 0


def test_what_cannot_be_compiled_is_told_before_the_first_step(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="where the layers of a Linear are is not known"):
        Learner(torch.nn.Linear(2, 1), SETTINGS, resources=Resources(compile=True))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(SpecError, match=r"needs a C\+\+ compiler"):
        learner_of(make_policy("llama"), compile=True)
