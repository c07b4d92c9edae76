"""The sampler: one batch or one by one, one path or the other, the same tokens; and every way to finish."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.errors import FunctionError
from engine.lm import decoders, lean
from engine.lm.decoders import CachedDecoder, decoder_for
from engine.lm.hf import HFSampler
from engine.lm.lean_decoder import LeanDecoder
from engine.lm.noise import NoiseKey
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from tests.lm.families import ADAPTABLE, LEAN, OTHER, SIZES, TEXT, ScriptedStops

FAMILIES = [*LEAN, *OTHER]
PARAMS = SamplingParams(max_new_tokens=10)


def prompts_of(policy):
    return [policy.encode(TEXT[:80]), policy.encode(TEXT[:20]), policy.encode(TEXT[:80]), policy.encode(TEXT[:31])]


def keys_of(prompts, step=0):
    return [NoiseKey(7, environment, step) for environment in range(len(prompts))]


def assert_same(a, b):
    for left, right in zip(a, b, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.token_ids == y.token_ids
            assert x.text == y.text
            assert x.finish == y.finish
            assert x.logps == pytest.approx(y.logps, abs=1e-4)


def naive_logps(policy, prompt, completion):
    """One forward of the model itself over the whole text, nothing shared, nothing cached."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logps = torch.log_softmax(policy.model(input_ids=ids).logits[0].float(), -1)
    return [float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(completion.token_ids)]


@pytest.mark.parametrize("family", FAMILIES)
def test_which_path_a_family_takes_is_explicit(make_policy, family):
    policy = make_policy(family)

    assert lean.supports(policy.model) == (family in LEAN)
    assert isinstance(decoder_for(policy.model), LeanDecoder if family in LEAN else CachedDecoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_says_what_each_prompt_would_say_alone(make_policy, family):
    policy = make_policy(family)
    prompts = prompts_of(policy)

    together = HFSampler(policy).generate(prompts, 3, PARAMS, None, keys_of(prompts))
    alone = [
        HFSampler(policy).generate([p], 3, PARAMS, None, [k])[0] for p, k in zip(prompts, keys_of(prompts), strict=True)
    ]

    assert_same(together, alone)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", LEAN)
def test_the_lean_path_says_what_the_models_own_forward_says(make_policy, family, lora):
    policy = make_policy(family, lora=lora)
    prompts = prompts_of(policy)

    lean_path = HFSampler(policy, decoder=LeanDecoder(policy.model)).generate(
        prompts, 3, PARAMS, None, keys_of(prompts)
    )
    own_path = HFSampler(policy, decoder=CachedDecoder(policy.model)).generate(
        prompts, 3, PARAMS, None, keys_of(prompts)
    )

    assert_same(lean_path, own_path)


@pytest.mark.parametrize(("family", "lora"), ADAPTABLE)
def test_log_probs_are_those_of_a_plain_forward(make_policy, family, lora):
    policy = make_policy(family, lora=lora)
    prompts = prompts_of(policy)

    groups = HFSampler(policy).generate(prompts, 2, PARAMS, None, keys_of(prompts))

    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            assert completion.logps == pytest.approx(naive_logps(policy, prompt, completion), abs=5e-5)


def test_log_probs_are_untempered(make_policy):
    policy = make_policy()
    prompt = policy.encode(TEXT[:40])
    params = SamplingParams(max_new_tokens=6, temperature=0.5, top_k=5)

    [[completion]] = HFSampler(policy).generate([prompt], 1, params, None, [NoiseKey(1)])

    assert completion.logps == pytest.approx(naive_logps(policy, prompt, completion), abs=5e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contexts_that_grow_call_by_call_say_what_fresh_ones_say(make_policy, family):
    policy = make_policy(family)
    sampler = HFSampler(policy)
    contexts = prompts_of(policy)
    for step in range(4):
        keys = keys_of(contexts, step)
        kept = sampler.generate(contexts, 3, PARAMS, None, keys)
        fresh = HFSampler(policy).generate(contexts, 3, PARAMS, None, keys)
        assert_same(kept, fresh)
        # one extends its context, one also gets a reply, one starts anew, one stays where it was
        contexts = [
            [*contexts[0], *kept[0][1].token_ids],
            [*contexts[1], *kept[1][2].token_ids, *policy.encode("\nno")],
            policy.encode(TEXT[step : 50 + step]),
            contexts[3],
        ]


def test_a_weight_update_is_seen_without_being_told(make_policy):
    policy = make_policy()
    sampler = HFSampler(policy)
    prompts = prompts_of(policy)
    before = sampler.generate(prompts, 2, PARAMS, None, keys_of(prompts))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

    after = sampler.generate(prompts, 2, PARAMS, None, keys_of(prompts))

    assert_same(after, HFSampler(policy).generate(prompts, 2, PARAMS, None, keys_of(prompts)))
    assert [c.token_ids for group in after for c in group] != [c.token_ids for group in before for c in group]


def test_the_same_call_is_bit_identical(make_policy):
    policy = make_policy()
    prompts = prompts_of(policy)

    a, b = (HFSampler(policy).generate(prompts, 4, PARAMS, None, keys_of(prompts)) for _ in range(2))

    assert a == b


def test_user_functions_see_every_token_of_every_row_and_rows_stop_at_their_word(make_policy):
    policy = make_policy()
    prompts = prompts_of(policy)
    params = SamplingParams(max_new_tokens=40)
    free = HFSampler(policy).generate(prompts, 6, params, None, keys_of(prompts))
    stops = ScriptedStops(split="a", done="e")

    groups = HFSampler(policy).generate(prompts, 6, params, stops, keys_of(prompts))

    finishes = set()
    for i, group in enumerate(groups):
        for j, completion in enumerate(group):
            row = i * 6 + j
            finishes.add(completion.finish)
            assert stops.contexts[row] == policy.decode(prompts[i])
            assert stops.texts[row] == completion.text
            n = len(completion.token_ids)
            assert completion.token_ids == free[i][j].token_ids[:n]
            assert completion.logps == pytest.approx(free[i][j].logps[:n], abs=1e-4)
            earlier = policy.decode(completion.token_ids[:-1])
            assert "a" not in earlier
            assert "e" not in earlier
            expected = "split" if "a" in completion.text else "done" if "e" in completion.text else "length"
            assert completion.finish == expected
            assert completion.done == ("e" in completion.text)
    assert finishes >= {"split", "done"}
    assert stops.closed == set(range(len(prompts) * 6))


def test_split_is_asked_before_done_and_both_end_the_row_once(make_policy):
    policy = make_policy()
    stops = ScriptedStops(split="", done="")  # both hold after the first token

    [[completion]] = HFSampler(policy).generate([policy.encode("You")], 1, PARAMS, stops, [NoiseKey(0)])

    assert (completion.finish, completion.done, len(completion.token_ids)) == ("split", True, 1)


def test_an_end_of_sequence_ends_only_where_it_is_asked_to(make_policy):
    policy = make_policy()
    prompts = prompts_of(policy)
    free = HFSampler(policy).generate(prompts, 4, PARAMS, None, keys_of(prompts))
    eos = free[0][0].token_ids[3]
    params = SamplingParams(max_new_tokens=10, eos=(eos,))

    ended = HFSampler(policy).generate(prompts, 4, params, None, keys_of(prompts))

    for group, whole in zip(ended, free, strict=True):
        for completion, full in zip(group, whole, strict=True):
            cut = full.token_ids.index(eos) + 1 if eos in full.token_ids else 10
            assert completion.token_ids == full.token_ids[:cut]
            assert completion.finish == ("eos" if eos in full.token_ids else "length")


def test_length_counts_the_prompt_where_max_length_is_given(make_policy):
    policy = make_policy()
    prompts = prompts_of(policy)
    limit = max(map(len, prompts)) + 3
    params = SamplingParams(max_new_tokens=12, max_length=limit)

    groups = HFSampler(policy).generate(prompts, 2, params, None, keys_of(prompts))

    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            assert len(completion.token_ids) == min(12, limit - len(prompt))
            assert completion.finish == "length"


def test_greedy_needs_no_noise_and_follows_the_argmax(make_policy):
    policy = make_policy()
    prompt = policy.encode(TEXT[:30])

    [[completion]] = HFSampler(policy).generate([prompt], 1, SamplingParams(max_new_tokens=5, temperature=0.0))

    ids = list(prompt)
    for token in completion.token_ids:
        with torch.no_grad():
            assert int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


@pytest.mark.parametrize(
    ("prompts", "params", "noise", "message"),
    [
        ([[1, 2]], PARAMS, None, "needs noise keys"),
        ([[1, 2]], PARAMS, [NoiseKey(0), NoiseKey(1)], "1 prompts need as many"),
        ([[]], PARAMS, [NoiseKey(0)], "at least one token"),
        ([[1, 2, 3]], SamplingParams(max_new_tokens=4, max_length=3), [NoiseKey(0)], "leaves no room"),
    ],
)
def test_calls_that_make_no_sense_are_refused(make_policy, prompts, params, noise, message):
    with pytest.raises(ValueError, match=message):
        HFSampler(make_policy()).generate(prompts, 1, params, None, noise)


def test_nothing_asked_nothing_said(make_policy):
    assert HFSampler(make_policy()).generate([], 3, PARAMS, None, []) == []


def test_a_policy_in_training_mode_samples_without_dropout_and_stays_in_it(make_policy):
    policy = make_policy(lora=True)
    for module in policy.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    prompt = policy.encode(TEXT[:30])
    quiet = HFSampler(policy).generate([prompt], 2, PARAMS, None, [NoiseKey(0)])
    policy.model.train()

    noisy = HFSampler(policy).generate([prompt], 2, PARAMS, None, [NoiseKey(0)])

    assert noisy == quiet
    assert policy.model.training


def test_half_precision_and_great_size_decode_through_the_models_own_forward(make_policy, monkeypatch):
    half = make_policy().model.bfloat16()
    assert isinstance(decoder_for(half), CachedDecoder)

    monkeypatch.setattr(decoders, "COPY_LIMIT", 1000)
    assert isinstance(decoder_for(make_policy().model), CachedDecoder)


@pytest.mark.parametrize("vocabulary", [4096, 5001])
def test_a_wide_vocabulary_goes_through_the_packed_output_layer_to_the_same_tokens(tokenizer, vocabulary):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=0.2, **SIZES)
    policy = Policy(LlamaForCausalLM(config).eval(), tokenizer)
    prompts = [[5, 6, 7, 8], [9, 10]]

    ours = HFSampler(policy).generate(prompts, 3, PARAMS, None, keys_of(prompts))
    theirs = HFSampler(policy, decoder=CachedDecoder(policy.model)).generate(prompts, 3, PARAMS, None, keys_of(prompts))

    assert_same(ours, theirs)


def test_a_failing_user_function_closes_its_rows_and_leaves_the_sampler_usable(make_policy):
    policy = make_policy()
    sampler = HFSampler(policy)
    prompts = prompts_of(policy)

    class Failing(ScriptedStops):
        def extend(self, rows, pieces):
            if self.calls == 2:
                raise FunctionError("done_fn", "broke")
            return super().extend(rows, pieces)

    stops = Failing(split="\x00", done="\x00")
    with pytest.raises(FunctionError):
        sampler.generate(prompts, 2, PARAMS, stops, keys_of(prompts))

    assert stops.closed == set(range(8))
    again = sampler.generate(prompts, 2, PARAMS, None, keys_of(prompts))
    assert_same(again, HFSampler(policy).generate(prompts, 2, PARAMS, None, keys_of(prompts)))
