"""Models from nothing: deterministic, sized by their preset, with a tokenizer that can write anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.lm.chat import decode, encode
from engine.lm.scratch import PRESETS, SPECIAL_TOKENS, build, preset, train_tokenizer
from engine.spec import model as spec

TEXTS = ["<|start_header_id|>assistant<|end_header_id|>\n\nthe best language is the language"] * 3


def test_presets_are_those_that_a_spec_may_name():
    assert set(PRESETS) == set(spec.PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_is_what_its_preset_says(name):
    tokenizer = train_tokenizer(TEXTS, 300)
    size = preset(name)
    model = build(name, tokenizer, seed=1)

    attention = 2 * size.width * size.width + 2 * size.width * (size.width * size.kv_heads // size.heads)
    layer = attention + 3 * size.width * size.inner + 2 * size.width
    assert sum(p.numel() for p in model.parameters()) == (
        len(tokenizer) * size.width + size.layers * layer + size.width
    )
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(5)
    before = torch.get_rng_state()

    a, b, c = (build("llama-nano", tokenizer, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ModelError, match=r"Did you mean scratch:llama-nano\?"):
        preset("llama-nan")


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_survives_the_tokenizer(text):
    assert decode(TOKENIZER, encode(TOKENIZER, text)) == text


def test_special_tokens_are_one_token_each_and_no_merge_learns_their_spelling():
    assert [encode(TOKENIZER, token) for token in SPECIAL_TOKENS] == [[i] for i in range(len(SPECIAL_TOKENS))]
    learnt = [token for token in TOKENIZER.get_vocab() if token not in SPECIAL_TOKENS]
    assert not any("|>" in token or "<|" in token or "_id" in token for token in learnt)


def test_frequent_words_become_tokens_and_the_vocabulary_stays_within_its_size():
    assert len(TOKENIZER) <= 300
    assert len(encode(TOKENIZER, " language")) == 1


TOKENIZER = train_tokenizer(TEXTS, 300)
