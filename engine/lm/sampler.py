"""What a sampler is: prompts in, completions with their log-probs out.

Adapters (`hf`, `vllm`, `openai`) implement the protocol; methods know only this module. Sampling
noise is an argument, keyed by environment, step, candidate and position, so results do not depend on
what else shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from engine.lm.noise import NoiseKey
from engine.runtime.context import Stops

Finish = Literal["split", "done", "eos", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and how long a completion may become."""

    max_new_tokens: int
    """The most tokens a completion may have."""
    max_length: int | None = None
    """The most tokens a prompt and its completion may have together; None for no such limit."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    top_p: float | None = None
    eos: tuple[int, ...] = ()
    """Token ids that end a completion. Empty: an end-of-sequence token is text like any other."""


@dataclass(frozen=True)
class Completion:
    """What was sampled after one prompt."""

    token_ids: list[int]
    logps: list[float]
    """log π(token | everything before it) at temperature 1 with nothing filtered, one a token; none where an endpoint
    tells none."""
    text: str
    """The decoded completion, special tokens kept."""
    finish: Finish
    """The first that held after the last token: split, done, eos, length, in this order."""
    done: bool = False
    """What the user's done function said after the last token, whichever test ended the completion."""


class Sampler(Protocol):
    """Completes prompts with a language model."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        stops: Stops | None = None,
        noise: Sequence[NoiseKey] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions of each prompt; `noise` holds one key a prompt and may be None only at temperature 0."""

    def refresh(self) -> None:
        """Forget every cached activation: the weights changed, or a resumed run could start here."""
