"""One iteration's update of a policy on trajectories of tokens, by PPO or REINFORCE, with an optional value network.

What a trajectory is worth was decided before; how a step is taken is the learner's. Log-probabilities, values and
the reference's distributions are all read at the place that *predicts* a token: a ratio is 1 before the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from engine.lm.encode import encode
from engine.lm.heads import ScalarHead
from engine.lm.learner import Learner, LossOutput
from engine.lm.logprobs import token_stats
from engine.lm.policy import Policy
from engine.methods.dialogue.config import PolicyUpdate
from engine.methods.dialogue.tokens import Group, TokenBatch, collate
from engine.methods.maths.policy import clipped_loss, importance_ratio, reinforce_loss
from engine.methods.maths.returns import gae
from engine.store.fingerprints import Layer


@dataclass(frozen=True)
class TokenRule:
    """How token-level advantages become a loss."""

    algorithm: Literal["ppo", "reinforce"]
    gamma: float
    lam: float = 1.0
    clip: float = 0.2


class Reference:
    """The policy as it was at the start: its own adapters switched off, or a frozen copy."""

    def __init__(self, policy: Policy, *, fresh_adapters: bool) -> None:
        self._adapted: Any = policy.model if fresh_adapters else None
        self.model: nn.Module = policy.model if fresh_adapters else _frozen(policy.model)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Within, `model` computes the reference."""
        if self._adapted is None:
            yield self.model
        else:
            with self._adapted.disable_adapter():
                yield self.model


@dataclass(frozen=True)
class Prepared:
    """A minibatch with everything about it that no step changes."""

    batch: TokenBatch
    reference: Tensor | None
    """[N, D] hidden states of the reference at the places of the batch."""
    advantages: Tensor
    """[R, L]"""
    returns: Tensor
    """[R, L]"""


class TokenLearner:
    """A policy, what it is anchored to, its value network if it has one, and their optimisers."""

    def __init__(
        self,
        policy: Policy,
        learner: Learner,
        *,
        update: PolicyUpdate,
        rule: TokenRule,
        reference: Reference | None = None,
        value: tuple[ScalarHead, Learner] | None = None,
    ) -> None:
        self.policy, self.learner, self.value = policy, learner, value
        self._update, self._rule, self._reference = update, rule, reference

    def improve(self, groups: Sequence[Group], rng: np.random.Generator) -> dict[str, float]:
        """All epochs over `groups`; returns the mean of every step's metrics."""
        size = self._update.minibatch or len(groups)
        order = rng.permutation(len(groups))
        self.learner.trace.note(Layer.DATA, order)
        parts = [[groups[i] for i in order[start : start + size]] for start in range(0, len(groups), size)]
        prepared = self._normalised([self._prepare(collate(part, self.policy.device)) for part in parts])
        means: dict[str, list[float]] = {}
        self.policy.model.train()
        if self.value is not None:
            self.value[0].train()
        for epoch in range(self._update.epochs):
            for index in rng.permutation(len(prepared)) if epoch else range(len(prepared)):
                for name, number in self._step(prepared[index]).items():
                    means.setdefault(name, []).append(number)
        self.policy.model.eval()
        if self.value is not None:
            self.value[0].eval()
        return {name: sum(numbers) / len(numbers) for name, numbers in means.items()}

    @torch.no_grad()
    def _prepare(self, batch: TokenBatch) -> Prepared:
        reference = None
        if self._reference is not None:
            with self._reference.active() as model:
                reference = encode(model, batch.packed)[batch.places]
        values = torch.zeros_like(batch.rewards)
        if self.value is not None:
            values = batch.spread(self.value[0](batch.packed)[batch.places])
        padded = torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)
        lam = self._rule.lam if self.value is not None else 1.0
        advantages = gae(batch.rewards, padded, batch.continues, gamma=self._rule.gamma, lam=lam) * batch.mask
        return Prepared(batch, reference, advantages, advantages + values)

    def _normalised(self, prepared: list[Prepared]) -> list[Prepared]:
        """Advantages whitened over the tokens of all minibatches together."""
        if not self._update.normalise:
            return prepared
        flat = torch.cat([p.advantages[p.batch.mask] for p in prepared])
        mean, deviation = flat.mean(), flat.std(unbiased=False)
        return [replace(p, advantages=(p.advantages - mean) / (deviation + 1e-8) * p.batch.mask) for p in prepared]

    def _step(self, prepared: Prepared) -> dict[str, float]:
        metrics = {f"policy/{key}": value for key, value in self.learner.step(self._policy_loss, [prepared]).items()}
        if self.value is not None:
            moved = self.value[1].step(self._value_loss, [prepared])
            metrics |= {"value/loss": moved["loss"], "value/grad_norm": moved["grad_norm"]}
        return metrics

    def _policy_loss(self, prepared: Prepared) -> LossOutput:
        batch, update = prepared.batch, self._update
        hidden = encode(self.policy.model, batch.packed)[batch.places]
        anchored = prepared.reference is not None and self._reference is not None
        reference = (self._reference.model, prepared.reference) if anchored else None  # type: ignore[union-attr]
        stats = token_stats(
            self.policy.model,
            hidden,
            batch.targets,
            entropy=update.entropy > 0,
            reference=reference,  # type: ignore[arg-type]
        )
        behaviour, advantages = batch.behaviour[batch.mask], prepared.advantages[batch.mask]
        ratio = importance_ratio(stats.logps, behaviour)
        if self._rule.algorithm == "ppo":
            gain = clipped_loss(ratio, advantages, clip=self._rule.clip)
        else:
            gain = reinforce_loss(stats.logps, advantages)
        loss = gain.sum()
        metrics = {
            "ratio_error": float((ratio.detach() - 1).abs().sum()),
            "clipped": float(((ratio.detach() - 1).abs() > self._rule.clip).sum()),
            "surprise": -float(stats.logps.detach().sum()),
        }
        if stats.entropy is not None:
            loss = loss - update.entropy * stats.entropy.sum()
            metrics["entropy"] = float(stats.entropy.detach().sum())
        if stats.kl is not None:
            loss = loss + update.kl * stats.kl.sum()
            metrics["kl"] = float(stats.kl.detach().sum())
        return LossOutput(loss, float(len(ratio)), metrics)

    def _value_loss(self, prepared: Prepared) -> LossOutput:
        assert self.value is not None
        batch = prepared.batch
        values = self.value[0](batch.packed)[batch.places]
        errors = (values - prepared.returns[batch.mask]) ** 2
        return LossOutput(errors.sum(), float(len(errors)))

    def state(self) -> dict[str, Any]:
        """Weights, moments and counters of the policy and the value network."""
        return {"policy": self.learner.state()} | ({} if self.value is None else {"value": self.value[1].state()})

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.learner.load_state(state["policy"])
        if self.value is not None:
            self.value[1].load_state(state["value"])


def _frozen(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model).eval()
    return copied.requires_grad_(False)
