"""On a CUDA device: the sampler says what it says on the CPU, and a step of training moves the weights alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.lm import tiny
from engine.lm.hf import HFSampler
from engine.lm.learner import Learner, LearnerSettings, LossOutput
from engine.lm.policy import Policy, load_policy
from engine.lm.sampler import SamplingParams

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
TEXTS = ["Create a list of 3 compiled programming languages."]


def loaded(folder: Path, device: str) -> Policy:
    tiny.build("meta-llama/Llama-3.2-1B-Instruct", TEXTS, seed=0).save(folder)
    return load_policy(folder, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_tokens_are_those_of_a_plain_forward_on_the_cpu(device: str, tmp_path: Path) -> None:
    policy, plain = loaded(tmp_path, device), load_policy(tmp_path)
    prompt = policy.chat_ids("", TEXTS[0])
    expected = list(prompt)
    for _ in range(8):
        with torch.no_grad():
            expected.append(int(plain.model(torch.tensor([expected])).logits[0, -1].argmax()))

    (completions,) = HFSampler(policy).generate([prompt], 1, SamplingParams(max_new_tokens=8, temperature=0.0))

    assert completions[0].token_ids == expected[len(prompt) :]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_on_the_mean_logit_moves_the_weights_as_adam_says(device: str, tmp_path: Path) -> None:
    policy = loaded(tmp_path, device)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    learner = Learner(policy.model, LearnerSettings(lr=1e-3, clip_norm=None))

    def loss(ids: torch.Tensor) -> LossOutput:
        return LossOutput(policy.model(ids).logits.float().sum(), 1.0)

    learner.step(loss, [torch.tensor([[5, 6, 7]], device=device)])

    # Adam's first step is the learning rate, whatever the gradient's size, and nothing where there is none.
    moved = torch.cat([(p.detach() - before[name]).abs().flatten() for name, p in policy.model.named_parameters()])
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-2)
