"""Who completes a policy's prompts in a stage: what `model.sampler` says, for as long as the stage needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.lm.hf import HFSampler
from engine.lm.policy import DTYPES, Policy
from engine.lm.sampler import Sampler
from engine.lm.vllm import VLLMSampler
from engine.lm.vllm_engine import EngineSettings, VLLMEngine
from engine.runtime.context import StageContext
from engine.spec.sampler import Sampler as Choice

SamplerOf = Callable[[Policy], Sampler]
"""A sampler for a policy. Those of one stage share an engine where they need one."""


@contextmanager
def samplers(ctx: StageContext) -> Iterator[SamplerOf]:
    """A maker of samplers of the kind that the spec asks for; an engine that it had to start is closed on leaving."""
    choice = Choice.model_validate(ctx.config["model"].get("sampler", {}))
    if choice.kind == "hf":
        yield lambda policy: HFSampler(policy, trace=ctx.trace)
        return
    started: list[VLLMEngine] = []

    def sampler_of(policy: Policy) -> Sampler:
        if not started:
            started.append(VLLMEngine(policy, _settings(choice, ctx.config["algorithm"]["episodes"])))
        return VLLMSampler(policy, started[0], trace=ctx.trace)

    try:
        yield sampler_of
    finally:
        for engine in started:
            engine.close()


def _settings(choice: Choice, episodes: Mapping[str, Any]) -> EngineSettings:
    return EngineSettings(
        max_length=episodes["max_tokens"],
        memory=choice.memory,
        max_sequences=choice.max_sequences,
        prefix_caching=choice.prefix_caching,
        compile=choice.compile,
        dtype=None if choice.precision == "auto" else DTYPES[choice.precision],
    )
