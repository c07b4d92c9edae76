"""What the tests of several samplers share: a policy that each of them takes, prompts, and how to compare answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from engine.lm.noise import NoiseKey
from engine.lm.policy import LoraSettings, Policy
from tests.lm.families import TEXT

LENGTH = 160
"""The most tokens that a context has here."""


def speaking_policy(tokenizer: Any, *, seed: int = 0, lora: bool = False, heads: int = 2) -> Policy:
    """A seeded random llama with heads that vLLM's attention on the CPU takes, and with opinions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    if lora:
        settings = LoraSettings(r=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"))
        model = get_peft_model(model, settings.peft_config(TaskType.CAUSAL_LM))
    policy = Policy(model.eval(), tokenizer)
    if lora:
        disturb(policy)
    return policy


def disturb(policy: Policy, *, seed: int = 1, by: float = 0.2) -> None:
    """Change everything that trains, as an optimiser does: in place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)


def prompts_of(policy: Policy) -> list[list[int]]:
    return [policy.encode(TEXT[:80]), policy.encode(TEXT[:20]), policy.encode(TEXT[:80]), policy.encode(TEXT[:31])]


def keys_of(prompts: Sequence[Any], step: int = 0) -> list[NoiseKey]:
    return [NoiseKey(7, environment, step) for environment in range(len(prompts))]


def assert_same(ours: Any, theirs: Any, *, logps: float = 1e-3) -> None:
    """The same tokens, texts and ends; log-probs as near as asked."""
    for left, right in zip(ours, theirs, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.token_ids == y.token_ids
            assert (x.text, x.finish, x.done) == (y.text, y.finish, y.done)
            assert x.logps == pytest.approx(y.logps, abs=logps)


def naive_logps(policy: Policy, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
    """One forward of the model itself over the whole text: log π at temperature 1."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].float()
    logps = torch.log_softmax(logits, -1)
    return [float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(ids)]
