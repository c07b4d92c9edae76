"""Models from nothing: a preset architecture, a tokenizer trained on the spec's own text, random weights.

They are ordinary `transformers` models, saved and loaded like any other. What text they learn first is
`warmup_text`'s business, how they learn it `warmup`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.errors import ModelError
from engine.lm.chat import LLAMA_TEMPLATE

SPECIAL_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")

_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))


@dataclass(frozen=True)
class Preset:
    """The size of a Llama-architecture model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    """Width of the gated feed-forward layer."""
    positions: int = 1024


PRESETS: Mapping[str, Preset] = {
    "llama-nano": Preset(layers=2, width=64, heads=4, kv_heads=4, inner=176),
    "llama-micro": Preset(layers=2, width=128, heads=4, kv_heads=4, inner=512),
    "llama-mini": Preset(layers=4, width=256, heads=8, kv_heads=4, inner=704, positions=2048),
}


def preset(name: str) -> Preset:
    """The preset called `name`. Raises ModelError with the nearest one."""
    try:
        return PRESETS[name]
    except KeyError:
        near = get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f" Did you mean scratch:{near[0]}?" if near else ""
        raise ModelError(f"scratch:{name} is no preset.{hint} There are: {', '.join(PRESETS)}.") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, with Llama-3's special tokens and chat template.

    Deterministic in its texts. Never fails on a text it has not seen: all 256 bytes are in it.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, 256 + len(SPECIAL_TOKENS)),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((part for text in texts for part in _SPECIAL.split(text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[3],
        pad_token=SPECIAL_TOKENS[4],
        additional_special_tokens=list(SPECIAL_TOKENS[1:3]),
        chat_template=LLAMA_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build(name: str, tokenizer: Any, *, seed: int) -> LlamaForCausalLM:
    """A randomly initialised model of the preset, sized to the tokenizer; the same seed gives the same weights."""
    size = preset(name)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.positions,
        initializer_range=0.5 * size.width**-0.5,  # 0.02, made for wide models, learns a narrow one slowly
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
