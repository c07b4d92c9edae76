"""Numbers from a language model: a backbone with a linear head, for critics, value functions and rewards.

The head starts at zero, is trained, and is saved: on disk it is an ordinary sequence-classification
model (`score.weight`), or a PEFT adapter that carries the head with it. What the numbers mean is the
method's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.lm.encode import encode
from engine.lm.lean import unwrap
from engine.lm.packing import Pack
from engine.lm.policy import LoraSettings, adapted
from engine.lm.reference import Source, translated_errors


class ScalarHead(nn.Module):
    """A backbone whose hidden states a linear layer turns into one or a few numbers each."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, packed: Pack) -> Tensor:
        """Head outputs at `packed.nodes`, float32: [W], or [W, outputs] where there is more than one."""
        hidden = encode(self.model, packed)
        head: nn.Module = unwrap(self.model).score
        values: Tensor = head(hidden).float()
        return values.squeeze(-1) if values.shape[-1] == 1 else values

    def trainable(self) -> list[nn.Parameter]:
        """What an optimiser may change."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a Hugging Face directory: full weights, or the PEFT adapter with the head; always the tokenizer.

        `weights` is the state dict of a model whose own lies in shards.
        """
        self.model.save_pretrained(folder, safe_serialization=True, state_dict=weights)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)


def new_head(
    source: Source | Path | str,
    tokenizer: Any,
    *,
    outputs: int = 1,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    lora: LoraSettings | None = None,
) -> ScalarHead:
    """A zero-initialised head on the backbone of the causal model that `source` leads to; eval mode.

    With `lora`, adapters and the head are trained and the rest is frozen.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    with translated_errors(source), _quiet():
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            source.path, num_labels=outputs, dtype=dtype, **source.options()
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        model.score.weight.zero_()
    if lora is not None:
        model = adapted(model, lora.peft_config(TaskType.SEQ_CLS, modules_to_save=("score",)))
    model.to(device)
    model.eval()
    return ScalarHead(model, tokenizer)


def load_head(
    folder: Source | Path | str,
    tokenizer: Any,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ScalarHead:
    """A head that `ScalarHead.save` wrote, equal to what was saved. Raises ModelError."""
    source = folder if isinstance(folder, Source) else Source(str(folder))
    with translated_errors(source), _quiet():
        if source.is_adapter():
            base = AutoModelForSequenceClassification.from_pretrained(
                source.adapter_base(), num_labels=_saved_outputs(Path(source.path)), dtype=dtype
            )
            model: Any = PeftModel.from_pretrained(base, source.path, is_trainable=True)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(source.path, dtype=dtype, **source.options())
    model.to(device)
    model.eval()
    return ScalarHead(model, tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's report that the head is missing from the checkpoint: it is new, and meant to be."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _saved_outputs(folder: Path) -> int:
    """How many numbers the head in an adapter directory gives: the rows of its weight."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118, a safetensors file is no mapping
            if name.endswith("score.weight"):
                return int(weights.get_slice(name).get_shape()[0])
    raise ModelError(f"{folder}: the adapter carries no head (score.weight).")
