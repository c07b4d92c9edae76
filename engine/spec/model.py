"""The model block: which language model, adapted how, and for a scratch model what text it first learns.

Only described here; `engine.lm` loads, builds and warms up.
"""

from __future__ import annotations

import difflib
import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.spec.base import SpecModel, complaint
from engine.spec.sampler import Sampler, SamplerChoice
from engine.spec.text import TextSource

PRESETS = ("llama-nano", "llama-micro", "llama-mini")
"""The architectures that `scratch:` knows; their sizes are `engine.lm.scratch`'s."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
_RUN = re.compile(r"run:[a-z0-9][\w-]*(@[\w-]+)?|run:@last(@[\w-]+)?")


class Lora(SpecModel):
    """Low-rank adapters: the model's own weights stay as they are."""

    r: int = Field(8, ge=1)
    """Rank of each update."""
    alpha: float = Field(32, gt=0)
    """Scale: an update counts alpha / r."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of an adapter's inputs that is dropped in training."""
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the layers to adapt; empty: PEFT's choice for the architecture."""


class Warmup(TextSource):
    """The text that a model from scratch first learns to write, so that it says anything at all."""

    block: ClassVar[str] = "model.warmup"
    purpose: ClassVar[str] = "warm-up"
    learn: Literal["utterances", "conversation"] = "utterances"
    """Whose words the model learns to write: its own, or the environment's replies too.

    Knowing what will be replied takes remembering what was said, which a ranker profits from."""
    examples: int = Field(2000, ge=1)
    """Texts drawn, from which the tokenizer and the model learn."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the texts kept aside to measure the loss on."""
    vocab_size: int = Field(490, ge=262)
    """Entries of the tokenizer; all 256 bytes and the special tokens are among them."""
    steps: int = Field(500, ge=0)
    """Optimiser steps."""
    batch_size: int = Field(24, ge=1)
    """Texts in a step."""
    lr: float = Field(3e-3, gt=0)
    """AdamW's peak learning rate."""

    @model_validator(mode="after")
    def _somebody_replies(self) -> Warmup:
        if self.learn == "conversation" and self.utterances is None:
            raise complaint("learn: conversation goes with `utterances`: nobody replies to a text", at="learn")
        return self


class Model(SpecModel):
    """The language model that is trained."""

    name: str
    """`scratch:llama-nano`, a Hugging Face id (`org/name@revision`), a local path, or `run:<handle>@<label>`.

    `tiny:<hub id>` is a small model of the same family with random weights."""
    lora: Lora | None = None
    """Train low-rank adapters in place of all weights; `{}` takes their defaults."""
    trust_remote_code: bool = False
    """Let a hub model bring its own Python code. Off unless you have read that code."""
    warmup: Warmup | None = None
    """Only for scratch models: what text they first learn; empty: they start with random weights."""
    sampler: SamplerChoice = Field(Sampler(), exclude_if=lambda sampler: sampler == Sampler())
    """What completes prompts: `hf` or `vllm`, or a block with options."""

    @field_validator("name")
    @classmethod
    def leads_somewhere(cls, name: str) -> str:
        """`name`, where it has one of the forms of a model's name. Raises what a validator may."""
        scheme, colon, rest = name.partition(":")
        if colon and scheme == "scratch":
            if rest not in PRESETS:
                close = difflib.get_close_matches(rest, PRESETS, n=1, cutoff=0.4)
                hint = f"Did you mean scratch:{close[0]}?" if close else f"There are {', '.join(PRESETS)}."
                raise complaint(f"{name} is no preset. {hint}")
        elif colon and scheme == "run":
            if not _RUN.fullmatch(name):
                raise complaint(f"{name!r} names no checkpoint: write run:<handle>@<label>, as in run:best-lang-1@best")
        elif colon and scheme == "tiny":
            if not rest:
                raise complaint(f"{name!r} names no model: write tiny:<hub id>, as in tiny:org/name")
        elif not name.startswith((".", "/", "~")) and not _HUB.fullmatch(name):
            known = difflib.get_close_matches(scheme, ("scratch", "run"), n=1) if colon else []
            hint = f" Did you mean {known[0]}:{rest}?" if known else ""
            forms = "scratch:<preset>, a hub id (org/name), a path, or run:<handle>@<label>"
            raise complaint(f"{name!r} is no model: write {forms}.{hint}")
        return name

    @model_validator(mode="after")
    def _only_scratch_warms_up(self) -> Model:
        if self.warmup is not None and not self.is_scratch:
            raise complaint(f"{self.name!r} has learnt its text already: warmup is for scratch models", at="warmup")
        return self

    @property
    def is_scratch(self) -> bool:
        """Whether the model starts from random weights."""
        return self.name.startswith("scratch:")
