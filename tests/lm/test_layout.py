"""Layouts of one rank: layers computed twice give the same gradients, and float16 survives an overflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from engine.errors import ResumeError
from engine.lm import layout
from engine.lm.layout_deepspeed import settings
from engine.lm.learner import Hollow, Learner, LearnerSettings, LossOutput
from engine.lm.logprobs import token_stats
from engine.lm.supervised import Example, completion_loss
from engine.plan.stage import Resources

EXAMPLES = [Example([5, 6, 7], [8, 9, 10], [True, False, True]), Example([5, 6, 7], [11, 12], [True, True])]


def gradients(policy: Any, **more: Any) -> dict[str, torch.Tensor]:
    """Of one pass over the examples, before any step."""
    if more:
        layout.through_layers(policy.model, **more)
    policy.model.train()
    completion_loss(policy, EXAMPLES).loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "lora"), [("llama", False), ("llama", True), ("qwen2", False), ("gpt2", False)])
def test_a_layer_that_is_computed_twice_gives_the_same_gradients(make_policy: Any, family: str, lora: bool) -> None:
    expected = gradients(make_policy(family, lora=lora))
    policy, seen = make_policy(family, lora=lora), []
    for layer in layout.layers_of(policy.model):
        first = next(module for module in layer.modules() if type(module).__name__ in ("Linear", "Conv1D"))
        first.register_forward_hook(lambda *_: seen.append(1))

    found = gradients(policy, checkpoint=True)

    assert sorted(found) == sorted(expected)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert len(seen) == 2 * len(layout.layers_of(policy.model))


def test_an_adopted_layer_still_answers_its_own_models_calls(make_policy: Any) -> None:
    policy = make_policy("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = policy.model(input_ids=ids).logits

    layout.through_layers(policy.model, checkpoint=False)

    assert_close(policy.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("keep", [1 << 25, 0])
def test_bfloat16_computes_about_the_same_gradients(
    make_policy: Any, family: str, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.lm.token_function.KEEP", keep)  # logits kept for the backward pass, or computed anew
    expected = gradients(make_policy(family))
    policy = make_policy(family)

    with torch.autocast("cpu", torch.bfloat16):
        loss = completion_loss(policy, EXAMPLES).loss
    loss.backward()

    assert loss.item() == pytest.approx(completion_loss(make_policy(family), EXAMPLES).loss.item(), rel=2e-2)
    for name, parameter in policy.model.named_parameters():
        if parameter.grad is not None and expected[name].norm() > 1e-4:
            likeness = torch.cosine_similarity(parameter.grad.flatten(), expected[name].flatten(), dim=0)
            assert likeness > 0.9, name


def test_entropies_are_summed_in_full_under_autocast(make_policy: Any) -> None:
    policy = make_policy("llama")
    weight = policy.model.get_output_embeddings().weight.detach()
    hidden = torch.randn(6, weight.shape[1], generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6)

    with torch.autocast("cpu", torch.bfloat16):
        found = token_stats(policy.model, hidden, targets, entropy=True).entropy

    logps = torch.log_softmax((hidden.bfloat16() @ weight.bfloat16().t()).float(), -1)
    assert_close(found, -(logps.exp() * logps).sum(-1), rtol=1e-4, atol=1e-4)


def steep(line: nn.Linear) -> Any:
    return lambda x: LossOutput(line(x).float().sum(), float(len(x)))


def test_float16_leaves_out_a_step_that_overflows_and_halves_its_scale() -> None:
    torch.manual_seed(0)
    line = nn.Linear(4, 1)
    before = line.weight.detach().clone()
    learner = Learner(line, LearnerSettings(lr=0.1, clip_norm=None), precision=torch.float16)
    huge = torch.full((1, 4), 3.0e4)

    told = learner.step(steep(line), [huge])  # 3e4 times the first scale, 65,536, is over float16's 65,504

    assert not torch.isfinite(torch.tensor(told["grad_norm"]))
    assert_close(line.weight.detach(), before)
    assert learner.state()["scaling"] == [32768.0, 0.0]
    while not torch.isfinite(torch.tensor(learner.step(steep(line), [huge])["grad_norm"])):
        pass
    assert learner.state()["scaling"] == [2.0, 1.0]  # 3e4 · 2 is the first that fits
    assert_close(line.weight.detach(), before - 0.1, rtol=1e-3, atol=1e-3)  # Adam's first step is lr · sign


def test_the_scale_of_float16_is_part_of_the_state() -> None:
    line = nn.Linear(4, 1)
    learner = Learner(line, LearnerSettings(lr=0.1), precision=torch.float16)
    learner.step(steep(line), [torch.full((1, 4), 3.0e4)])
    state = learner.state()
    again = Learner(nn.Linear(4, 1), LearnerSettings(lr=0.1), precision=torch.float16)

    again.load_state(state | {"steps": 0})

    assert again.state()["scaling"] == [32768.0, 0.0]
    with pytest.raises(ResumeError, match="scaling"):
        Learner(nn.Linear(4, 1), LearnerSettings(lr=0.1)).load_state(state)


def test_a_hollow_batch_counts_for_nothing_and_a_wrong_total_is_told() -> None:
    torch.manual_seed(0)
    line, other = nn.Linear(2, 1), nn.Linear(2, 1)
    other.load_state_dict(line.state_dict())
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    with_hollow = Learner(line, LearnerSettings(lr=0.1)).step(steep(line), [x, Hollow(x[:1])], total=2.0)
    without = Learner(other, LearnerSettings(lr=0.1)).step(steep(other), [x])

    assert with_hollow == without
    assert_close(line.weight, other.weight)
    with pytest.raises(ValueError, match=r"weigh 2\.0, and the step was said to weigh 3"):
        Learner(line, LearnerSettings(lr=0.1)).step(steep(line), [x], total=3.0)


def test_deepspeed_reads_what_the_hardware_says() -> None:
    resources = Resources(gpus=8, launcher="deepspeed", zero=3, offload="all")

    config = settings(resources, torch.bfloat16, 1.0)

    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
    }
    assert (config["bf16"], config["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert config["gradient_clipping"] == 1.0
