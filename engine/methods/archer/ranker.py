"""The critic over utterances: values of candidates, its double-DQN or Q-and-V update, and its target network.

A value is read at an utterance's last token; where the environment answers, at the last token before its words,
where a language model has worked out what they may be. All candidates of all states are one tree of tokens, so
what they share is computed once. Which transitions it learns from, and who is said, is left to the trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.lm.heads import ScalarHead
from engine.lm.learner import Learner, LossOutput
from engine.lm.packing import pack
from engine.methods.archer.config import Ranker as RankerConfig
from engine.methods.archer.losses import dqn_targets, error_function, padded, qv_errors
from engine.methods.archer.replay import Transition
from engine.methods.maths.critics import td_target, track, twin_advantage
from engine.store.fingerprints import Layer

TOKENS = 16_384
"""Tokens in one forward pass of the critic, at most: larger batches are cut, which changes nothing but rounding."""
OUTPUTS = {"dqn": 1, "qv": 4}
"""Numbers a place: Q, or Q_1, Q_2, V_1, V_2."""
TWIN_SPREAD = 1e-3
"""Standard deviation of the twins' initial heads; equal twins would stay equal for ever."""

Ids = Sequence[int]


class Fresh(Protocol):
    """Samples one utterance of the present policy in each of some states."""

    def __call__(self, states: Sequence[Ids]) -> list[Ids]: ...


class Ranker:
    """A critic and its target network."""

    def __init__(
        self, critic: ScalarHead, learner: Learner, config: RankerConfig, *, gamma: float, opening: Ids = ()
    ) -> None:
        """`opening`: the tokens between an utterance and the environment's words, where there are any."""
        self.critic, self.learner, self.opening = critic, learner, list(opening)
        self._config, self._gamma = config, gamma
        self._errors = error_function(config.chosen_loss, sigmoid=config.sigmoid)
        self.target = copy.deepcopy(critic).eval().requires_grad_(False)

    def values(self, states: Sequence[Ids], candidates: Sequence[Sequence[Ids]]) -> list[tuple[float, ...]]:
        """Q(s, c) of every candidate; the smaller twin's where there are two."""
        return self._ranked(states, candidates, lambda q, v: q.amin(-1))

    def advantages(self, states: Sequence[Ids], candidates: Sequence[Sequence[Ids]]) -> list[tuple[float, ...]]:
        """A(s, c) = min Q − min V. Only for `critic: qv`."""
        return self._ranked(states, candidates, twin_advantage)

    @torch.no_grad()
    def _ranked(
        self, states: Sequence[Ids], candidates: Sequence[Sequence[Ids]], number: Callable[[Tensor, Tensor], Tensor]
    ) -> list[tuple[float, ...]]:
        self.critic.eval()
        out: list[tuple[float, ...]] = []
        for part in _parts(states, candidates):
            twins = self._config.critic == "qv"
            chosen = [[self._read(candidate) for candidate in candidates[i]] for i in part]
            packed = pack([states[i] for i in part], chosen, want=("last", "state") if twins else ("last",))
            packed = packed.to(self.device)
            at = self._squashed(self.critic(packed))
            if twins:
                counts = torch.tensor([len(options) for options in chosen], device=self.device)
                state = at[packed.state].repeat_interleave(counts, dim=0)
                flat = number(at[packed.last][:, :2], state[:, 2:])
            else:
                flat = at[packed.last]
            rows = flat.tolist()
            position = 0
            for options in chosen:
                out.append(tuple(rows[position : position + len(options)]))
                position += len(options)
        return out

    def _read(self, utterance: Ids) -> list[int]:
        """What the critic reads of an utterance: it, and how the environment's turn opens."""
        closed = self.opening and len(utterance) and utterance[-1] == self.opening[0]  # it ended its turn itself
        return [*utterance, *self.opening[1 if closed else 0 :]]

    @property
    def device(self) -> torch.device:
        return next(self.critic.parameters()).device

    def _squashed(self, values: Tensor) -> Tensor:
        return values.sigmoid() if self._config.sigmoid else values

    def update(self, draw: Callable[[int], list[Transition]], fresh: Fresh | None = None) -> dict[str, float]:
        """All minibatches of one iteration; returns the mean metrics of its optimiser steps.

        `draw(n)` gives transitions; `fresh`, needed by `critic: qv`, the policy's own utterances.
        """
        config = self._config
        size = config.batch_size * config.accumulate
        batches = [draw(size) for _ in range(config.updates // config.accumulate)]
        drawn = [(row.action, row.reward) for batch in batches for row in batch]
        self.learner.trace.note(Layer.DATA, drawn)
        own: Iterator[Ids] | None = None
        if config.critic == "qv":
            if fresh is None:
                raise ValueError("critic: qv learns from the policy's own utterances: pass `fresh`")
            own = iter(fresh([row.state.tolist() for batch in batches for row in batch]))
        sums: dict[str, list[float]] = {}
        for batch in batches:
            self.critic.eval()
            if own is None:
                parts = [self._dqn_batch(part) for part in _cut(batch)]
                metrics = self._step(self._dqn_loss, parts)
            else:
                said = [next(own) for _ in batch]
                metrics = self._step(self._qv_loss, [self._qv_batch(part, said) for part in [batch]])
            for name, number in metrics.items():
                sums.setdefault(f"ranker/{name}", []).append(number)
            if config.target.kind == "polyak":
                track(self.target, self.critic, tau=config.target.tau)
        return {name: sum(numbers) / len(numbers) for name, numbers in sums.items()}

    def synchronise(self, iteration: int) -> None:
        """Copy the critic to its target, if this iteration is one of those that do."""
        if self._config.target.kind == "hard" and iteration % self._config.target.every == 0:
            track(self.target, self.critic, tau=1.0)

    def _step(self, loss: Callable[[Any], LossOutput], parts: list[Any]) -> dict[str, float]:
        self.critic.train()
        metrics = self.learner.step(loss, parts)
        self.critic.eval()
        return metrics

    @torch.no_grad()
    def _dqn_batch(self, rows: Sequence[Transition]) -> tuple[Sequence[Transition], Tensor]:
        """The rows with their targets, by the critic as it is and its target network."""
        going = [index for index, row in enumerate(rows) if not row.done]
        width = max([1, *(len(rows[i].candidates) for i in going)])
        online, target = [torch.zeros(0)] * len(rows), [torch.zeros(0)] * len(rows)
        if going:
            packed = pack(
                [rows[i].next_state.tolist() for i in going],
                [[self._read(c.tolist()) for c in rows[i].candidates] for i in going],
                want=("last",),
            ).to(self.device)
            counts = [len(rows[i].candidates) for i in going]
            of_online = torch.split(self._squashed(self.critic(packed))[packed.last].cpu(), counts)
            of_target = torch.split(self._squashed(self.target(packed))[packed.last].cpu(), counts)
            for place, first, second in zip(going, of_online, of_target, strict=True):
                online[place], target[place] = first, second
        values, present = padded(online, width)
        done = torch.tensor([row.done for row in rows])
        rewards = torch.tensor([row.reward for row in rows])
        return rows, dqn_targets(rewards, done, values, padded(target, width)[0], present, gamma=self._gamma)

    def _dqn_loss(self, batch: tuple[Sequence[Transition], Tensor]) -> LossOutput:
        rows, targets = batch
        packed = pack([r.state.tolist() for r in rows], [[self._read(r.action.tolist())] for r in rows], want=("last",))
        packed = packed.to(self.device)
        outputs, targets = self.critic(packed)[packed.last], targets.to(self.device)
        errors = self._errors(outputs, targets)
        values = self._squashed(outputs.detach())
        metrics = {
            "q": float(values.sum()),
            "target": float(targets.sum()),
            "squared_error": float(((values - targets) ** 2).sum()),
        }
        return LossOutput(errors.sum(), float(len(rows)), metrics)

    @torch.no_grad()
    def _qv_batch(self, rows: Sequence[Transition], said: Sequence[Ids]) -> tuple[Sequence[Transition], Tensor, Tensor]:
        """The rows with targets of Q and of V for both twins, by the target network."""
        mine = [[self._read(own)] for own in said]
        now = pack([r.state.tolist() for r in rows], mine, want=("last",)).to(self.device)
        after = [row.next_state.tolist() for row in rows]
        later = pack([s[:-1] for s in after], [[s[-1:]] for s in after], want=("last",)).to(self.device)
        v_targets = self._squashed(self.target(now))[now.last][:, :2]
        next_values = self._squashed(self.target(later))[later.last][:, 2:]
        rewards = torch.tensor([row.reward for row in rows], device=self.device).unsqueeze(1)
        done = torch.tensor([row.done for row in rows], device=self.device).unsqueeze(1)
        return rows, td_target(rewards, next_values, done, gamma=self._gamma), v_targets

    def _qv_loss(self, batch: tuple[Sequence[Transition], Tensor, Tensor]) -> LossOutput:
        rows, q_targets, v_targets = batch
        packed = pack(
            [r.state.tolist() for r in rows], [[self._read(r.action.tolist())] for r in rows], want=("last", "state")
        )
        packed = packed.to(self.device)
        at = self.critic(packed)
        q, v = at[packed.last][:, :2], at[packed.state][:, 2:]
        errors = qv_errors(q, v, q_targets, v_targets, self._errors)
        values = self._squashed(q.detach())
        metrics = {
            "q": float(values.mean(-1).sum()),
            "target": float(q_targets.mean(-1).sum()),
            "squared_error": float(((values - q_targets) ** 2).mean(-1).sum()),
        }
        return LossOutput(errors.sum(), float(len(rows)), metrics)

    def state(self) -> dict[str, Any]:
        """The critic's learner and the trained part of the target network."""
        named = zip(self.target.named_parameters(), self.critic.parameters(), strict=True)
        return {
            "learner": self.learner.state(),
            "target": {name: kept.detach().clone() for (name, kept), new in named if new.requires_grad},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.learner.load_state(state["learner"])
        parameters = dict(self.target.named_parameters())
        with torch.no_grad():
            for name, value in state["target"].items():
                parameters[name].copy_(value)


def spread_twins(critic: ScalarHead, seed: int) -> None:
    """Give the four numbers of a Q-and-V critic different, nearly zero beginnings."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in critic.named_parameters():
        if "score" in name and parameter.shape[0] == OUTPUTS["qv"]:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * TWIN_SPREAD)


def _parts(states: Sequence[Ids], candidates: Sequence[Sequence[Ids]]) -> Iterator[list[int]]:
    """Indices of states, cut so that no part has many more than `TOKENS` tokens."""
    sizes = [len(s) + sum(map(len, options)) for s, options in zip(states, candidates, strict=True)]
    return _bounded(sizes)


def _cut(rows: Sequence[Transition]) -> Iterator[list[Transition]]:
    sizes = [len(r.state) + len(r.action) + sum(map(len, r.candidates)) for r in rows]
    return ([rows[i] for i in part] for part in _bounded(sizes))


def _bounded(sizes: Sequence[int]) -> Iterator[list[int]]:
    part: list[int] = []
    for index, end in enumerate(np.cumsum(sizes)):
        if part and end - (np.cumsum(sizes)[part[0]] - sizes[part[0]]) > TOKENS:
            yield part
            part = []
        part.append(index)
    if part:
        yield part
