"""Scores of written texts by a checkpoint with one output: what the method `reward` trains, or any such classifier.

A causal backbone reads a conversation up to the end of its last turn, as in training; an encoder reads the text with
its own special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.errors import DataError, ModelError
from engine.lm import chat
from engine.lm.heads import ScalarHead, load_head
from engine.lm.lean import unwrap
from engine.lm.packing import pack
from engine.lm.policy import load_tokenizer
from engine.lm.reference import Source
from engine.lm.shares import cut
from engine.lm.supervised import of_conversation

_MARK = "\ue000said\ue001"
Ids = list[int]


class RewardModel:
    """One checkpoint, loaded. Not for several threads at once."""

    def __init__(self, source: Source, *, max_tokens: int, batch_tokens: int, device: str = "cpu") -> None:
        self._tokenizer = load_tokenizer(source)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._head: ScalarHead = load_head(source, self._tokenizer, device=device, dtype=dtype)
        model = unwrap(self._head.model)
        if model.config.num_labels != 1:
            raise ModelError(
                f"{source.path} gives {model.config.num_labels} numbers for a text: a reward model gives one"
            )
        self._causal, self._device = hasattr(model, "score"), device
        self._max_tokens, self._batch_tokens = max_tokens, batch_tokens
        self._ending = _ending(self._tokenizer) if self._causal else ""

    def of_text(self, text: str) -> Ids:
        """A whole conversation as the model reads it, its last turn ended. Of one too long the end is left."""
        if not self._causal:
            return self._cut(list(self._tokenizer(text)["input_ids"]))
        ended = text.rstrip() if text.rstrip().endswith(self._ending) else text + self._ending
        return self._cut(chat.encode(self._tokenizer, ended))

    def of_answer(self, messages: Sequence[Mapping[str, str]], completion: str) -> Ids:
        """The same of messages and the assistant's answer to them."""
        if not self._causal:
            asked = "\n".join(message["content"] for message in messages)
            return self._cut(list(self._tokenizer(asked, completion)["input_ids"]))
        example = of_conversation(self._tokenizer, [*messages, {"role": "assistant", "content": completion}])
        if example is None:
            raise DataError("an answer of no tokens cannot be scored")
        return self._cut([*example.prompt, *example.said])

    @torch.no_grad()
    def score(self, texts: Sequence[Ids]) -> list[float]:
        """The reward of each, in as few passes as their length allows."""
        scores = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: texts[i] if self._causal else [len(texts[i])])
        for part in cut(order, [len(ids) for ids in texts], self._batch_tokens):
            chosen = [texts[i] for i in part]
            values = self._packed(chosen) if self._causal else self._padded(chosen)
            for i, value in zip(part, values.float().tolist(), strict=True):
                scores[i] = value
        return scores

    def _packed(self, texts: Sequence[Ids]) -> torch.Tensor:
        packed = pack([ids[:-1] for ids in texts], [[ids[-1:]] for ids in texts], want=("last",)).to(self._device)
        values: torch.Tensor = self._head(packed)[packed.last]
        return values

    def _padded(self, texts: Sequence[Ids]) -> torch.Tensor:
        inputs = self._tokenizer.pad({"input_ids": list(texts)}, return_tensors="pt").to(self._device)
        logits: torch.Tensor = self._head.model(**inputs).logits
        return logits[:, 0]

    def _cut(self, ids: Ids) -> Ids:
        if len(ids) < 2:  # one token is state and answer at once, which no pack can hold
            ids = [*ids, *([self._tokenizer.eos_token_id] * (2 - len(ids)))]
        return ids[-self._max_tokens :]


def _ending(tokenizer: Any) -> str:
    """What ends an assistant's turn, up to its last special token; where the template has none, the sequence's end."""
    said = [*chat.messages_of("", "u"), {"role": "assistant", "content": _MARK}]
    after = chat.written(tokenizer, said)[-1][0].rpartition(_MARK)[2]
    ids = chat.encode(tokenizer, after)
    special = [place for place, token in enumerate(ids) if token in tokenizer.all_special_ids]
    return chat.decode(tokenizer, ids[: special[-1] + 1]) if special else (tokenizer.eos_token or "")
