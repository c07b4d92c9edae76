"""Tiny real models of several families, and user functions as plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEXT = (
    "You are a helpful assistant. Create a list of 3 compiled languages, each on one line.\n"
    "1. Rust: fast and safe\n2. C: old\n3. Zig: new. The best programming language is Ünïcode 語."
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def _llama(vocab: int) -> Any:
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_key_value_heads=4, tie_word_embeddings=True, **SIZES))


def _llama3(vocab: int) -> Any:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_key_value_heads=2, rope_parameters=rope, **SIZES))


def _qwen2(vocab: int) -> Any:
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab, num_key_value_heads=2, **SIZES))


def _mistral(vocab: int) -> Any:
    return MistralForCausalLM(MistralConfig(vocab_size=vocab, num_key_value_heads=2, sliding_window=None, **SIZES))


def _sliding(vocab: int) -> Any:
    return MistralForCausalLM(MistralConfig(vocab_size=vocab, num_key_value_heads=2, sliding_window=8, **SIZES))


def _gpt2(vocab: int) -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0)
    )


LEAN = {"llama": _llama, "llama3": _llama3, "qwen2": _qwen2, "mistral": _mistral}
OTHER = {"sliding": _sliding, "gpt2": _gpt2}
ADAPTABLE = [(family, lora) for family in (*LEAN, *OTHER) for lora in (False, True) if (family, lora) != ("gpt2", True)]
"""Families with and without LoRA; GPT-2 has none of the projections that the fixture adapts."""


def word_tokenizer() -> Any:
    """A tokenizer of whole words, which is not byte-level and has no special tokens."""
    words = ["[UNK]", "two", "words", "a", "b", "c", "leading"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", clean_up_tokenization_spaces=False)


class ScriptedStops:
    """User functions as plain Python: a split at a newline, done at a full stop; records what it was told."""

    def __init__(self, split: str = "\n", done: str = ".") -> None:
        self.split_at, self.done_at = split, done
        self.contexts: dict[int, str] = {}
        self.texts: dict[int, str] = {}
        self.calls = 0
        self.closed: set[int] = set()

    def open(self, row: int, context: str) -> None:
        self.open_many([row], context)

    def open_many(self, rows: Sequence[int], context: str) -> None:
        for row in rows:
            self.contexts[row], self.texts[row] = context, ""

    def extend(self, rows: Sequence[int], pieces: Sequence[str]) -> list[tuple[bool, bool]]:
        self.calls += 1
        for row, piece in zip(rows, pieces, strict=True):
            self.texts[row] += piece
        return [(self.split_at in self.texts[row], self.done_at in self.texts[row]) for row in rows]

    def close(self, rows: Sequence[int]) -> None:
        self.closed |= set(rows)
