"""A policy with adapters on vLLM: its base stays, its adapter follows every update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine.lm.hf import HFSampler
from engine.lm.sampler import SamplingParams
from engine.lm.vllm import VLLMSampler
from engine.lm.vllm_engine import EngineSettings, VLLMEngine
from tests.lm.speaking import LENGTH, assert_same, disturb, prompts_of, speaking_policy

pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)
SETTINGS = EngineSettings(max_length=LENGTH, memory=64 << 20)


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(speaking_policy(tokenizer, lora=True), SETTINGS)
    yield engine
    engine.close()


def test_an_adapter_is_served_and_follows_its_updates(engine, tokenizer):
    policy = speaking_policy(tokenizer, lora=True)
    prompts, sampler = prompts_of(policy), VLLMSampler(policy, engine)
    said = []
    for seed in (1, 2, 3):
        assert_same(sampler.generate(prompts, 1, GREEDY), HFSampler(policy).generate(prompts, 1, GREEDY))
        said.append([completion.token_ids for (completion,) in sampler.generate(prompts, 1, GREEDY)])
        disturb(policy, seed=seed)
        if seed == 2:  # and without being told
            sampler.refresh()

    assert said[0] != said[1] != said[2]


def test_two_adapters_with_bases_of_their_own_take_turns(engine, tokenizer):
    policies = [speaking_policy(tokenizer, seed=seed, lora=True) for seed in (5, 6)]
    samplers = [VLLMSampler(policy, engine) for policy in policies]
    for _ in range(2):
        for policy, sampler in zip(policies, samplers, strict=True):
            prompts = prompts_of(policy)
            assert_same(sampler.generate(prompts, 1, GREEDY), HFSampler(policy).generate(prompts, 1, GREEDY))


def test_an_engine_with_room_for_adapters_serves_a_policy_without_any(engine, tokenizer):
    policy = speaking_policy(tokenizer, seed=8)
    prompts = prompts_of(policy)

    ours = VLLMSampler(policy, engine).generate(prompts, 1, GREEDY)

    assert_same(ours, HFSampler(policy).generate(prompts, 1, GREEDY))
