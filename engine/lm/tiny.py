"""Tiny twins of real models: the same architecture family at two narrow layers, random weights, no download.

`tiny:meta-llama/Llama-3.2-1B-Instruct` goes through the code path that the real model will take, LoRA's target
modules and head names included. The tokenizer is trained on the spec's own text and has Llama 3's chat
template: the real one would need the hub. What such a model says means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError
from engine.lm import scratch
from engine.lm.policy import Policy

FAMILIES: tuple[tuple[str, str], ...] = (
    ("tinyllama", "llama"),
    ("llama", "llama"),
    ("vicuna", "llama"),
    ("tulu", "llama"),
    ("mixtral", "mistral"),
    ("mistral", "mistral"),
    ("qwen3", "qwen3"),
    ("qwen", "qwen2"),
    ("gemma-3", "gemma3_text"),
    ("gemma", "gemma2"),
    ("phi", "phi3"),
    ("olmo", "olmo2"),
    ("pythia", "gpt_neox"),
    ("opt", "opt"),
    ("gpt2", "gpt2"),
)
"""What a model's name contains, and the architecture that it thereby is; the first match counts."""

VOCABULARY = 400
POSITIONS = 1024
WIDTH = 32


def family(name: str) -> str:
    """The architecture of the model `name` (a hub id, or a directory with a config.json). Raises ModelError."""
    config = Path(name).expanduser() / "config.json"
    if config.is_file():
        found = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if isinstance(found, str):
            return found
    short = name.rsplit("/", 1)[-1].lower()
    for word, architecture in FAMILIES:
        if word in short:
            return architecture
    known = ", ".join(dict.fromkeys(architecture for _, architecture in FAMILIES))
    raise ModelError(
        f"tiny:{name}: its name does not tell its architecture, so it has no tiny twin without the model itself. "
        f"Known families: {known}. A local directory with a config.json works too."
    )


def build(name: str, texts: Sequence[str], *, seed: int) -> Policy:
    """A random model of `name`'s family, with a tokenizer trained on `texts`; the same seed, the same weights."""
    tokenizer = scratch.train_tokenizer(texts, VOCABULARY)
    config = _config(family(name), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return Policy(model, tokenizer)


def _config(architecture: str, tokenizer: Any) -> Any:
    """The family's own config class at tiny size; each takes the sizes under its own names."""
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "gpt2":
        return AutoConfig.for_model("gpt2", n_embd=WIDTH, n_layer=2, n_head=4, n_positions=POSITIONS, **tokens)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }
    if architecture == "opt":
        sizes |= {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}
    else:
        sizes |= {"intermediate_size": 2 * WIDTH}
    if architecture not in ("opt", "gpt_neox"):
        sizes |= {"num_key_value_heads": 2, "head_dim": WIDTH // 4}
    return AutoConfig.for_model(architecture, **sizes, **tokens)
