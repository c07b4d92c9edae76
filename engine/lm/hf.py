"""The sampler that runs in this process: all prompts and candidates in one batch, a token a step.

A distinct prompt is encoded once and shared by its candidates; finished rows leave the batch; the user's
functions see every row after every token in one call. The model's passes are in `decoders`, the choice
of a token in `draw`, its text in `detokenise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engine.lm.decoders import Decoder, decoder_for
from engine.lm.detokenise import Detokeniser, Row
from engine.lm.draw import draw
from engine.lm.noise import NoiseKey, exponentials, words
from engine.lm.policy import Policy
from engine.lm.sampler import Completion, Finish, SamplingParams
from engine.runtime.context import Stops
from engine.runtime.stopwatch import spends
from engine.runtime.trace import SILENT, Trace
from engine.store.fingerprints import Layer


@dataclass
class _Growing:
    """One completion in the making."""

    row: Row
    budget: int
    """How many tokens it may still receive."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: Finish | None = None
    done: bool = False

    def completion(self) -> Completion:
        text = "".join(self.pieces) + self.row.flush()
        return Completion(self.ids, self.logps, text, self.finish or "length", self.done)


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
        if noise is not None and len(noise) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many noise keys, not {len(noise)}")
        if noise is None and params.temperature > 0:
            raise ValueError("sampling at a temperature above 0 needs noise keys")
        growing = [_Growing(self._detokeniser.open(), _budget(prompt, params)) for prompt in prompts for _ in range(n)]
        open_rows = list(range(len(growing)))
        if stops is not None:
            for i, prompt in enumerate(prompts):
                stops.open_many(open_rows[i * n : (i + 1) * n], self._policy.decode(prompt))
        was_training = self._policy.model.training
        if was_training:
            self._policy.model.eval()
        try:
            self._run(prompts, n, params, stops, noise, growing)
        finally:
            if was_training:
                self._policy.model.train()
            if stops is not None:
                stops.close(open_rows)
        self._trace.note(Layer.SAMPLING, [row.ids for row in growing], [row.logps for row in growing])
        done = [row.completion() for row in growing]
        return [done[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        stops: Stops | None,
        noise: Sequence[NoiseKey] | None,
        growing: list[_Growing],
    ) -> None:
        distinct: dict[tuple[int, ...], int] = {}
        owner = [distinct.setdefault(tuple(prompt), len(distinct)) for prompt in prompts for _ in range(n)]
        longest = max(row.budget for row in growing)
        device = self._policy.device
        bits = words(noise, n, longest) if noise is not None and params.temperature > 0 else None
        logits = self._decoder.start(list(distinct), owner, longest)
        alive = list(range(len(growing)))
        for position in range(longest):
            numbers = None
            if bits is not None:
                numbers = exponentials(bits[position, alive], logits.shape[-1]).to(device)
            ids, logps = draw(logits, numbers, params)
            self._append(growing, alive, ids.tolist(), logps.tolist(), params, stops)
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

    @staticmethod
    def _append(
        growing: list[_Growing],
        alive: Sequence[int],
        ids: Sequence[int],
        logps: Sequence[float],
        params: SamplingParams,
        stops: Stops | None,
    ) -> None:
        """Give each living row its token and see which of them are thereby finished."""
        pieces = []
        for row, token, logp in zip(alive, ids, logps, strict=True):
            state = growing[row]
            piece = state.row.push(token)
            last = len(state.ids) + 1 >= state.budget or token in params.eos
            if last:
                piece += state.row.flush()
            state.ids.append(token)
            state.logps.append(logp)
            state.pieces.append(piece)
            pieces.append(piece)
        said = stops.extend(alive, pieces) if stops is not None else [(False, False)] * len(pieces)
        for row, token, (split, done) in zip(alive, ids, said, strict=True):
            state = growing[row]
            state.done = done
            if split:
                state.finish = "split"
            elif done:
                state.finish = "done"
            elif token in params.eos:
                state.finish = "eos"
            elif len(state.ids) >= state.budget:
                state.finish = "length"


def _budget(prompt: Sequence[int], params: SamplingParams) -> int:
    """How many tokens a completion of this prompt may have."""
    if not prompt:
        raise ValueError("a prompt needs at least one token")
    room = params.max_new_tokens
    if params.max_length is not None:
        room = min(room, params.max_length - len(prompt))
    if room < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room below max_length {params.max_length}")
    return room
