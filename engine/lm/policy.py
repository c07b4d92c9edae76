"""A language model ready for use: weights, tokenizer and chat format, with or without LoRA adapters.

Loads and saves Hugging Face directories (a PEFT adapter directory where there is a LoRA), the only form
in which weights leave this process. Where a reference leads is `reference`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.lm import chat
from engine.lm.reference import Source, translated_errors

transformers_logging.disable_progress_bar()  # one bar a load, in every log of every stage, tells nobody anything

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: rank, scale, dropout, and which modules get one (None: the library's choice)."""

    r: int = 8
    alpha: float = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None

    def peft_config(self, task: TaskType, modules_to_save: Sequence[str] = ()) -> LoraConfig:
        """The same in PEFT's words."""
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) if self.target_modules else None,
            modules_to_save=list(modules_to_save) or None,
            task_type=task,
        )


def adapted(model: Any, config: LoraConfig) -> Any:
    """The model with fresh adapters, the rest of it frozen. Raises ModelError where PEFT does not know how."""
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora does not fit {type(model).__name__}: {error}") from error


@dataclass
class Policy:
    """A causal language model and its tokenizer."""

    model: nn.Module
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def chat_text(self, system: str, user: str) -> str:
        """The conversation as text, up to where the assistant starts to speak."""
        return chat.opening_text(self.tokenizer, system, user)

    def chat_ids(self, system: str, user: str) -> list[int]:
        """The same as token ids: the first context of an episode."""
        return self.encode(self.chat_text(system, user))

    def reply_ids(self, reply: str) -> list[int]:
        """What is appended after an utterance when the environment answers, up to the assistant's next word."""
        return self.encode(chat.reply_text(self.tokenizer, reply))

    def reply_opening(self) -> list[int]:
        """The tokens that every reply begins with: the end of the utterance's turn, and the environment's header."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.reply_ids("A"), self.reply_ids("7"), strict=False))
        return [token for token, _ in same]

    def encode(self, text: str) -> list[int]:
        """Token ids of text, nothing added."""
        return chat.encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens kept."""
        return chat.decode(self.tokenizer, ids)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser may change."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a Hugging Face directory: full weights, or the PEFT adapter where there is one; and the tokenizer.

        `weights` is the state dict of a model whose own lies in shards.
        """
        self.model.save_pretrained(folder, safe_serialization=True, state_dict=weights)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)


def load_policy(
    source: Source | Path | str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    lora: LoraSettings | None = None,
) -> Policy:
    """The model that a source, a directory or an id leads to, in eval mode.

    A directory that holds a PEFT adapter loads its base model and then the adapter, which stays trainable.
    `lora` adds fresh adapters to a model that has none; the rest of it is then frozen. Raises ModelError.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    tokenizer = load_tokenizer(source)
    with translated_errors(source):
        if source.is_adapter():
            base = AutoModelForCausalLM.from_pretrained(source.adapter_base(), dtype=dtype)
            model: Any = PeftModel.from_pretrained(base, source.path, is_trainable=True)
        else:
            model = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype, **source.options())
    if lora is not None and not isinstance(model, PeftModel):
        model = adapted(model, lora.peft_config(TaskType.CAUSAL_LM))
    model.to(device)
    model.eval()
    return Policy(model, tokenizer)


def load_tokenizer(source: Source) -> Any:
    """The tokenizer that stands with a model, with a chat template and padding. Raises ModelError."""
    with translated_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.options())
    chat.ensure_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
