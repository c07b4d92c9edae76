"""The same tokens end at the same place under every sampler, whatever the user's functions are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.lm.detokenise import Detokeniser
from engine.lm.endpoint import Client
from engine.lm.growing import Growth
from engine.lm.hf import HFSampler
from engine.lm.openai import OpenAISampler
from engine.lm.policy import Policy
from engine.lm.sampler import Sampler, SamplingParams
from engine.lm.scratch import train_tokenizer
from engine.lm.vllm import VLLMSampler
from engine.lm.vllm_engine import EngineSettings, VLLMEngine
from engine.spec.endpoint import Endpoint
from tests.lm.families import TEXT, ScriptedStops
from tests.lm.scripted_endpoint import serving, speaking
from tests.lm.speaking import LENGTH, assert_same, prompts_of, speaking_policy

LETTERS = st.sampled_from("aeot1 .,\n:語")
ENDS = st.builds(lambda split, done: (split, done), LETTERS, LETTERS)


@pytest.fixture(scope="module")
def policy(tokenizer: Any) -> Policy:
    return speaking_policy(tokenizer)


@pytest.fixture(scope="module", params=["openai", "openai-in-bursts", pytest.param("vllm", marks=pytest.mark.vllm)])
def other(request: pytest.FixtureRequest, policy: Policy) -> Iterator[Sampler]:
    """Every sampler but `hf`."""
    if request.param == "vllm":
        engine = VLLMEngine(policy, EngineSettings(LENGTH, memory=64 << 20))
        yield VLLMSampler(policy, engine)
        engine.close()
        return
    burst = 3 if request.param == "openai-in-bursts" else 1
    with serving(speaking(policy, burst=burst)) as served, Client(Endpoint(url=served.url, model="m")) as client:
        yield OpenAISampler(client, policy.tokenizer)


@settings(max_examples=15, deadline=None)
@given(ends=ENDS, longest=st.integers(1, 30), room=st.integers(41, LENGTH) | st.none(), eos=st.integers(0, 5))
def test_all_samplers_stop_the_same_tokens_at_the_same_place(other, policy, ends, longest, room, eos):
    prompts = prompts_of(policy)
    free = HFSampler(policy).generate(prompts[:1], 1, SamplingParams(6, temperature=0.0))[0][0].token_ids
    params = SamplingParams(longest, max_length=room, temperature=0.0, eos=() if eos == 5 else (free[eos],))
    ours, theirs = ScriptedStops(*ends), ScriptedStops(*ends)

    expected = HFSampler(policy).generate(prompts, 2, params, ours)
    said = other.generate(prompts, 2, params, theirs)

    assert_same(said, expected)
    assert theirs.texts == ours.texts  # the functions saw the same, to the letter
    assert theirs.contexts == ours.contexts
    assert theirs.closed == ours.closed


@pytest.fixture(scope="module")
def letters() -> Any:
    return train_tokenizer([TEXT] * 4, 330)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 329), min_size=1, max_size=12), min_size=1, max_size=4),
    ends=ENDS,
    eos=st.sets(st.integers(0, 329), max_size=40),
    budget=st.integers(1, 12),
)
def test_a_row_ends_where_a_plain_loop_over_its_text_says(letters, rows, ends, eos, budget):
    """However rows share their steps: token by token, decode all there is, and ask."""
    params = SamplingParams(budget, temperature=0.0, eos=tuple(sorted(eos)))
    prompts = [[1]] * len(rows)
    growth = Growth(
        prompts,
        1,
        params,
        detokeniser=Detokeniser(letters),
        decode=letters.decode,
        stops=ScriptedStops(*ends),
        noise=None,
    )
    with growth:
        for position in range(max(map(len, rows))):
            alive = [i for i, row in enumerate(rows) if position < len(row) and growth.rows[i].finish is None]
            growth.append(alive, [rows[i][position] for i in alive], [-1.0] * len(alive))

    for row, (completion,) in zip(rows, growth.groups(), strict=True):
        count, finish = _plainly(letters, row, ends, eos, budget)
        assert completion.token_ids == row[:count]
        assert completion.text == letters.decode(row[:count], skip_special_tokens=False)
        assert completion.finish == finish


def _plainly(tokenizer: Any, row: list[int], ends: tuple[str, str], eos: set[int], budget: int) -> tuple[int, str]:
    split, done = ends
    for count, token in enumerate(row, 1):
        text = tokenizer.decode(row[:count], skip_special_tokens=False)
        if split in text:
            return count, "split"
        if done in text:
            return count, "done"
        if token in eos:
            return count, "eos"
        if count >= budget:
            return count, "length"
    return len(row), "length"
