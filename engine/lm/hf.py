"""The sampler that runs in this process: all prompts and candidates in one batch, a token a step.

A distinct prompt is encoded once and shared by its candidates; finished rows leave the batch; the user's
functions see every row after every token in one call. The model's passes are in `decoders`, the choice
of a token in `draw`, what becomes of it in `growing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.lm.decoders import Decoder, decoder_for
from engine.lm.detokenise import Detokeniser
from engine.lm.draw import draw
from engine.lm.growing import Growth
from engine.lm.noise import NoiseKey, exponentials, words
from engine.lm.policy import Policy
from engine.lm.sampler import Completion, SamplingParams
from engine.runtime.context import Stops
from engine.runtime.stopwatch import spends
from engine.runtime.trace import SILENT, Trace
from engine.store.fingerprints import Layer


class HFSampler:
    """Samples from a policy in process; see `engine.lm.sampler.Sampler`.

    Same prompts, same keys, same weights, same thread count: bit-identical completions. Activations of
    earlier calls are reused for contexts that extend them until the next `refresh`; call it after an
    update of the weights, and wherever a resumed run could start, or the two runs round differently.
    """

    def __init__(self, policy: Policy, *, decoder: Decoder | None = None, trace: Trace = SILENT) -> None:
        self._policy, self._trace = policy, trace
        self._decoder = decoder_for(policy.model) if decoder is None else decoder
        self._detokeniser = Detokeniser(policy.tokenizer)

    def refresh(self) -> None:
        """Forget every cached activation: the weights changed, or a resumed run could start here."""
        self._decoder.refresh()

    @spends("generation")
    @torch.inference_mode()
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
        was_training = self._policy.model.training
        if was_training:
            self._policy.model.eval()
        try:
            with growth:
                self._run(prompts, n, params, noise, growth)
        finally:
            if was_training:
                self._policy.model.train()
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
        distinct: dict[tuple[int, ...], int] = {}
        owner = [distinct.setdefault(tuple(prompt), len(distinct)) for prompt in prompts for _ in range(n)]
        growing, longest = growth.rows, growth.longest
        device = self._policy.device
        bits = words(noise, n, longest) if noise is not None and params.temperature > 0 else None
        logits = self._decoder.start(list(distinct), owner, longest)
        alive = list(range(len(growing)))
        for position in range(longest):
            numbers = None
            if bits is not None:
                numbers = exponentials(bits[position, alive], logits.shape[-1]).to(device)
            ids, logps = draw(logits, numbers, params)
            growth.append(alive, ids.tolist(), logps.tolist())
            kept = [k for k, row in enumerate(alive) if growing[row].finish is None]
            if not kept:
                break
            if len(kept) < len(alive):
                index = torch.tensor(kept, device=device)
                alive = [alive[k] for k in kept]
                ids = ids[index]
                self._decoder.keep(index)
            logits = self._decoder.step(ids)
        self._decoder.finish([row.ids for row in growing])
