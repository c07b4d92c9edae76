"""vLLM's engine as a sampler: what it says is what `hf` says, before and after every update of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from engine.errors import FunctionError, ModelError
from engine.lm.hf import HFSampler
from engine.lm.noise import NoiseKey
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from engine.lm.vllm import VLLMSampler
from engine.lm.vllm_engine import EngineSettings, VLLMEngine
from tests.lm.families import TEXT, ScriptedStops
from tests.lm.speaking import LENGTH, assert_same, disturb, keys_of, naive_logps, prompts_of, speaking_policy

pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)
SETTINGS = EngineSettings(max_length=LENGTH, memory=64 << 20)


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(speaking_policy(tokenizer), SETTINGS)
    yield engine
    engine.close()


@pytest.fixture
def policy(tokenizer: Any) -> Policy:
    return speaking_policy(tokenizer)


def test_greedy_says_what_hf_says_token_by_token(engine, policy):
    prompts = prompts_of(policy)

    ours = VLLMSampler(policy, engine).generate(prompts, 2, GREEDY)

    assert_same(ours, HFSampler(policy).generate(prompts, 2, GREEDY), logps=1e-4)


def test_an_update_of_the_weights_is_served_by_the_running_engine(engine, policy):
    prompts = prompts_of(policy)
    sampler = VLLMSampler(policy, engine)
    before = sampler.generate(prompts, 1, GREEDY)
    for seed in (1, 2):
        disturb(policy, seed=seed)
        sampler.refresh()
        assert_same(sampler.generate(prompts, 1, GREEDY), HFSampler(policy).generate(prompts, 1, GREEDY), logps=1e-4)

    disturb(policy, seed=3)
    untold = sampler.generate(prompts, 1, GREEDY)

    assert_same(untold, HFSampler(policy).generate(prompts, 1, GREEDY), logps=1e-4)
    assert [c.token_ids for (c,) in untold] != [c.token_ids for (c,) in before]


def test_refresh_sees_weights_that_were_written_past_autograd(engine, policy):
    sampler = VLLMSampler(policy, engine)
    prompts = prompts_of(policy)
    sampler.generate(prompts, 1, GREEDY)
    for parameter in policy.parameters():
        parameter.data.mul_(0.7)

    sampler.refresh()

    assert_same(sampler.generate(prompts, 1, GREEDY), HFSampler(policy).generate(prompts, 1, GREEDY), logps=1e-4)


def test_two_policies_take_turns_on_one_engine(engine, tokenizer):
    policies = [speaking_policy(tokenizer, seed=seed) for seed in (5, 6)]
    samplers = [VLLMSampler(policy, engine) for policy in policies]
    for _ in range(2):
        for policy, sampler in zip(policies, samplers, strict=True):
            prompts = prompts_of(policy)
            assert_same(sampler.generate(prompts, 1, GREEDY), HFSampler(policy).generate(prompts, 1, GREEDY))


def test_contexts_that_grow_call_by_call_say_what_fresh_ones_say(engine, policy):
    sampler = VLLMSampler(policy, engine)
    contexts = prompts_of(policy)[:2]
    for _ in range(3):
        said = sampler.generate(contexts, 1, GREEDY)
        assert_same(said, HFSampler(policy).generate(contexts, 1, GREEDY))
        contexts = [[*context, *group[0].token_ids] for context, group in zip(contexts, said, strict=True)]


def test_what_a_row_draws_does_not_depend_on_its_company(engine, policy):
    prompts, params = prompts_of(policy), SamplingParams(max_new_tokens=12)
    sampler = VLLMSampler(policy, engine)

    together = sampler.generate(prompts, 3, params, None, keys_of(prompts))
    alone = [sampler.generate([p], 3, params, None, [k])[0] for p, k in zip(prompts, keys_of(prompts), strict=True)]

    assert_same(together, alone)
    said = {tuple(completion.token_ids) for group in together for completion in group}
    assert len(said) == 12  # every key and candidate draws for itself
    sampler.refresh()
    assert_same(sampler.generate(prompts, 3, params, None, keys_of(prompts)), together, logps=1e-6)


def test_log_probs_are_untempered_and_unfiltered(engine, policy):
    prompt = policy.encode(TEXT[:40])
    params = SamplingParams(max_new_tokens=8, temperature=0.5, top_k=5, top_p=0.9)

    [[said]] = VLLMSampler(policy, engine).generate([prompt], 1, params, None, [NoiseKey(1)])

    assert said.logps == pytest.approx(naive_logps(policy, prompt, said.token_ids), abs=1e-4)


def test_tokens_are_drawn_as_often_as_their_probability_says(engine, policy):
    prompt = policy.encode(TEXT[:25])
    params = SamplingParams(max_new_tokens=1, temperature=0.8, top_k=6)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    top = (logits / 0.8).topk(6)
    expected = torch.softmax(top.values, -1)

    [group] = VLLMSampler(policy, engine).generate([prompt], 600, params, None, [NoiseKey(3)])

    seen = Counter(completion.token_ids[0] for completion in group)
    assert set(seen) <= set(top.indices.tolist())
    observed = [seen[token] for token in top.indices.tolist()]
    assert chisquare(observed, (600 * expected).tolist()).pvalue > 1e-4


def test_the_users_functions_see_every_token_of_every_row_and_rows_stop_at_their_word(engine, policy):
    prompts, params = prompts_of(policy), SamplingParams(max_new_tokens=40)
    sampler = VLLMSampler(policy, engine)
    free = sampler.generate(prompts, 6, params, None, keys_of(prompts))
    stops = ScriptedStops(split="a", done="e")

    groups = sampler.generate(prompts, 6, params, stops, keys_of(prompts))

    finishes, longest = set(), 0
    for i, group in enumerate(groups):
        for j, completion in enumerate(group):
            row, n = i * 6 + j, len(completion.token_ids)
            finishes.add(completion.finish)
            longest = max(longest, n)
            assert stops.contexts[row] == policy.decode(prompts[i])
            assert stops.texts[row] == completion.text == policy.decode(completion.token_ids)
            assert completion.token_ids == free[i][j].token_ids[:n]
            assert not {"a", "e"} & set(policy.decode(completion.token_ids[:-1]))
            expected = "split" if "a" in completion.text else "done" if "e" in completion.text else "length"
            assert (completion.finish, completion.done) == (expected, "e" in completion.text)
    assert finishes >= {"split", "done"}
    assert stops.closed == set(range(24))
    assert stops.calls == longest  # all living rows in one call


def test_a_failing_user_function_closes_its_rows_and_leaves_the_engine_usable(engine, policy):
    class Failing(ScriptedStops):
        def extend(self, rows, pieces):
            if self.calls == 2:
                raise FunctionError("done_fn", "broke")
            return super().extend(rows, pieces)

    prompts, sampler = prompts_of(policy), VLLMSampler(policy, engine)
    stops = Failing(split="\x00", done="\x00")
    with pytest.raises(FunctionError):
        sampler.generate(prompts, 2, GREEDY, stops)

    assert stops.closed == set(range(8))
    assert not engine.busy
    assert_same(sampler.generate(prompts, 2, GREEDY), HFSampler(policy).generate(prompts, 2, GREEDY))


@pytest.mark.parametrize(
    ("params", "noise", "message"),
    [
        (SamplingParams(max_new_tokens=4), None, "needs noise keys"),
        (SamplingParams(max_new_tokens=4, temperature=0.001), [NoiseKey(0)], "temperature of 0.01 or more"),
        (SamplingParams(max_new_tokens=LENGTH, temperature=0.0), None, f"this engine holds {LENGTH}"),
    ],
)
def test_calls_that_make_no_sense_are_refused(engine, policy, params, noise, message):
    with pytest.raises(ValueError, match=message):
        VLLMSampler(policy, engine).generate([[1, 2, 3]], 1, params, None, noise)


def test_nothing_asked_nothing_said(engine, policy):
    assert VLLMSampler(policy, engine).generate([], 3, GREEDY) == []


def test_a_model_of_another_architecture_is_refused(engine, tokenizer):
    other = speaking_policy(tokenizer, heads=4)

    with pytest.raises(ModelError, match="another architecture"):
        VLLMSampler(other, engine).generate([[1]], 1, GREEDY)


def test_a_weight_that_does_not_arrive_is_an_error_and_not_a_random_number(engine, policy, tokenizer):
    del policy.model.model.norm

    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        VLLMSampler(policy, engine).generate([[1]], 1, GREEDY)

    whole = speaking_policy(tokenizer)
    prompts = prompts_of(whole)
    assert_same(VLLMSampler(whole, engine).generate(prompts, 1, GREEDY), HFSampler(whole).generate(prompts, 1, GREEDY))


def test_a_second_engine_beside_a_running_one_is_refused(engine, policy):
    with pytest.raises(ModelError, match="runs already in this process"):
        VLLMEngine(policy, SETTINGS)
