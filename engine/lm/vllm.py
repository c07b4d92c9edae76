"""The sampler on a vLLM engine in this process, of which every step goes by the user's functions.

The engine decodes; a row that has ended is taken out of it before the next step, so that none ever holds a token
past its stop. What vLLM is asked and how it gets its weights is `vllm_engine`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.lm.detokenise import Detokeniser
from engine.lm.growing import Growth
from engine.lm.noise import NoiseKey, seeds
from engine.lm.policy import Policy
from engine.lm.sampler import Completion, SamplingParams
from engine.lm.vllm_engine import VLLMEngine
from engine.runtime.context import Stops
from engine.runtime.stopwatch import spends
from engine.runtime.trace import SILENT, Trace
from engine.store.fingerprints import Layer

COLDEST = 0.01
"""vLLM silently takes a lower temperature for this one."""


class VLLMSampler:
    """Samples from a policy through an engine; see `engine.lm.sampler.Sampler`.

    Several samplers may share an engine: it serves the policy of whoever generates, with the weights that the policy
    has then (an optimiser's step is seen without being told, as under `hf`).

    Noise: a row's key and candidate number seed a generator of its own, which draws once a token, so what is drawn
    does not depend on what else shares the batch, or on the order of rows. The logits do: vLLM's kernels round
    differently in batches of other shapes, by about 1e-6 in float32 and 1e-2 in bfloat16, and a token can differ where
    two are as good as tied. The same call after `refresh`, on the same hardware, is repeated exactly. The draws are
    not those of `hf`: the same keys say different things there. At temperature 0 both say the same.
    """

    def __init__(self, policy: Policy, engine: VLLMEngine, *, trace: Trace = SILENT) -> None:
        self._policy, self._engine, self._trace = policy, engine, trace
        self._detokeniser = Detokeniser(policy.tokenizer)

    def refresh(self) -> None:
        """Forget every cached activation, and fetch what trains of the policy's weights anew before the next token."""
        self._engine.stale()

    @spends("generation")
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        stops: Stops | None = None,
        noise: Sequence[NoiseKey] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions of each prompt; see the protocol."""
        if not prompts or n < 1:
            return [[] for _ in prompts]
        growth = Growth(
            prompts,
            n,
            params,
            detokeniser=self._detokeniser,
            decode=self._policy.decode,
            stops=stops,
            noise=noise,
        )
        if 0 < params.temperature < COLDEST:
            raise ValueError(f"vLLM draws at a temperature of {COLDEST} or more, or at 0: not {params.temperature}")
        limit = self._engine.settings.max_length
        longest = max(len(prompts[row // n]) + state.budget for row, state in enumerate(growth.rows))
        if longest > limit:
            raise ValueError(f"a prompt and its completion may have {longest} tokens, and this engine holds {limit}")
        self._engine.hold(self._policy)
        with growth:
            self._run(prompts, n, params, noise, growth)
        self._trace.note(Layer.SAMPLING, [row.ids for row in growth.rows], [row.logps for row in growth.rows])
        return growth.groups()

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        noise: Sequence[NoiseKey] | None,
        growth: Growth,
    ) -> None:
        drawing = noise is not None and params.temperature > 0
        row_seeds = seeds(noise, n) if noise is not None and drawing else [None] * len(growth.rows)
        going = set(range(len(growth.rows)))
        try:
            for row, (state, seed) in enumerate(zip(growth.rows, row_seeds, strict=True)):
                self._engine.add(row, prompts[row // n], _asked(params, state.budget, seed))
            while going:
                drawn = sorted(self._engine.step(), key=lambda one: one.row)
                if not drawn and self._engine.busy:  # a step that only read prompts
                    continue
                if not drawn:
                    raise RuntimeError("vLLM ended rows without a word")
                growth.append([d.row for d in drawn], [d.token for d in drawn], [d.logp for d in drawn])
                ended = {d.row for d in drawn if growth.rows[d.row].finish is not None}
                self._engine.abort(ended)
                going -= ended
        finally:
            self._engine.abort()


def _asked(params: SamplingParams, budget: int, seed: int | None) -> dict[str, Any]:
    """The same in vLLM's words."""
    return {
        "max_tokens": budget,
        "temperature": params.temperature,
        "top_k": params.top_k or 0,
        "top_p": 1.0 if params.top_p is None else params.top_p,
        "seed": seed,
    }
