"""ArCHer's iteration done the way the original does it: the peer of `archer_iteration.py`, and its equality's witness.

One environment, one candidate, one token a forward; the prompt encoded again for every candidate; logits of the whole
vocabulary kept for all positions, of the behaviour and of the reference; the critic looped over states with all
candidates of a state in the graph; the value network called once a token, in both epochs. The formulas are the
corrected ones, and noise, batches and orders are those of the engine, so that tokens and losses can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from engine.lm.draw import draw
from engine.lm.heads import ScalarHead
from engine.lm.noise import NoiseKey, exponentials, words
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from engine.methods.archer.config import Archer
from engine.runtime.seeds import derive

Functions = Mapping[str, Callable[..., Any]]


@dataclass
class Candidate:
    """One sampled utterance, with the logits of every position up to the longest sequence."""

    tokens: list[int]
    logps: list[float]
    logits: Tensor
    """[T, V]; row t holds what predicted token t."""
    done: bool


@dataclass
class Step:
    """One decision."""

    state: list[int]
    candidates: list[Candidate]
    rewards: list[float]
    reference: Tensor
    """[C, T, V] logits of the reference, aligned as the candidates' own."""


@dataclass
class Row:
    """One remembered transition."""

    state: list[int]
    options: list[list[int]]
    executed: int
    reward: float
    done: bool
    candidates: list[list[int]] = field(default_factory=list)


class SequentialArcher:
    """See the module. `iterate` returns what happened, and `seconds` where the time went."""

    def __init__(
        self,
        config: Archer,
        *,
        seed: int,
        policy: Policy,
        critic: ScalarHead,
        value: ScalarHead,
        prompt: Sequence[int],
        answer: Any,
        functions: Functions,
    ) -> None:
        self.config, self.seed, self.policy, self.critic, self.value = config, seed, policy, critic, value
        self.reference = copy.deepcopy(policy.model).eval().requires_grad_(False)
        self.target = copy.deepcopy(critic).eval().requires_grad_(False)
        self.functions, self.answer = functions, answer
        self.prompt = list(prompt)
        self.longest = config.episodes.max_tokens
        self.rows: list[Row] = []
        self.said: list[list[list[int]]] = []
        """Every candidate of every decision so far."""
        self.seconds: dict[str, float] = {}
        self._serial = self._turn = self._decisions = 0
        self._tokens = list(prompt)
        self._pending: Row | None = None
        self._optimisers = {
            "critic": _adam(critic, config.ranker.lr),
            "policy": _adam(policy.model, config.generator.lr),
            "value": _adam(value, config.generator.value_lr),
        }

    def fill(self) -> None:
        """Random decisions until there is enough to learn from."""
        while len(self.rows) < self.config.ranker.replay.min_fill:
            self._play(1.0)

    def iterate(self, number: int, epsilon: float) -> dict[str, float]:
        """One iteration; returns the mean losses of its steps."""
        rng = np.random.default_rng(derive(self.seed, "updates", number))
        steps = self._play(epsilon)
        losses = {"ranker/loss": self._timed("critic", lambda: self._critic_step(rng))}
        if (number - 1) % self.config.ranker.target.every == 0:
            self.target.load_state_dict(self.critic.state_dict())
        losses |= self._timed("generator", lambda: self._generator_steps(steps, rng))
        return losses

    def _timed(self, part: str, work: Callable[[], Any]) -> Any:
        started = perf_counter()
        out = work()
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - started
        return out

    # Playing

    def _play(self, epsilon: float) -> list[Step]:
        steps = []
        for _ in range(self.config.episodes.decisions):
            state = list(self._tokens)
            candidates = self._timed("sampling", lambda state=state: [self._sample(state, c) for c in self._range()])
            self.said.append([candidate.tokens for candidate in candidates])
            reference = self._timed("sampling", lambda s=state, c=candidates: self._aligned(self.reference, s, c))
            if self._pending is not None:
                self._pending.candidates = [candidate.tokens for candidate in candidates]
                self.rows.append(self._pending)
            with torch.no_grad():
                tokens = [candidate.tokens for candidate in candidates]
                values = self._timed("ranking", lambda s=state, t=tokens: self._scores(self.critic, s, t).tolist())
            rng = np.random.default_rng(derive(self.seed, "choice", self._decisions))
            self._decisions += 1
            explore, random = rng.random(1), rng.random(1)
            best = max(range(len(values)), key=values.__getitem__)
            chosen = int(random[0] * len(values)) if explore[0] < epsilon else best
            rewards = list(values)
            score = self._say(candidates, chosen)
            if score is not None:
                rewards[chosen] = score
            steps.append(Step(state, candidates, rewards, reference))
        return steps

    def _range(self) -> range:
        return range(self.config.ranker.candidates)

    @torch.no_grad()
    def _sample(self, state: list[int], candidate: int) -> Candidate:
        """One candidate, one token a forward, the whole text decoded and tested after each."""
        cache = DynamicCache(config=self.policy.model.config)
        out = self.policy.model(input_ids=torch.tensor([state]), past_key_values=cache, use_cache=True)
        logits = torch.zeros(self.longest, out.logits.shape[-1])
        tokens: list[int] = []
        logps: list[float] = []
        params = SamplingParams(max_new_tokens=self.longest)
        while True:
            row = out.logits[:, -1].float()
            logits[len(state) + len(tokens)] = row[0]
            key = NoiseKey(derive(self.seed, "play"), self._serial, self._turn)
            bits = words([key], candidate + 1, len(tokens) + 1)[len(tokens), candidate:]
            ids, logp = draw(row, exponentials(bits, row.shape[-1]), params)
            tokens.append(int(ids))
            logps.append(float(logp))
            segment = self.policy.decode(tokens)
            text = self.policy.decode([*state, *tokens])
            split, done = self.functions["split_fn"](segment), self.functions["done_fn"](text)
            if split or done or len(state) + len(tokens) >= self.longest - 1:
                return Candidate(tokens, logps, logits, bool(done))
            out = self.policy.model(input_ids=torch.tensor([[tokens[-1]]]), past_key_values=cache, use_cache=True)

    def _say(self, candidates: Sequence[Candidate], chosen: int) -> float | None:
        """Execute an utterance; the score if the episode is over."""
        state, utterance = list(self._tokens), candidates[chosen]
        self._tokens += utterance.tokens
        self._turn += 1
        over = utterance.done or len(self._tokens) >= self.longest - 4
        score = None
        if over:
            score = float(self.functions["score_fn"](self.policy.decode(self._tokens), self.answer))
        row = Row(state, [c.tokens for c in candidates], chosen, score or 0.0, over)
        self._pending = None if over else row
        if over:
            self.rows.append(row)
            self._tokens, self._turn = list(self.prompt), 0
            self._serial += 1
        return score

    # Critic

    def _scores(self, critic: ScalarHead, state: Sequence[int], candidates: Sequence[Sequence[int]]) -> Tensor:
        """Values of one state's candidates: the state once, its cache repeated, the candidates as one batch."""
        model: Any = critic.model
        body = _body(model)
        cut = len(state) - 1
        cache = DynamicCache(config=model.config)
        if cut:
            body(input_ids=torch.tensor([list(state[:cut])]), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(candidates))
        longest = max(map(len, candidates))
        ids = torch.zeros(len(candidates), longest + 1, dtype=torch.long)
        for row, candidate in enumerate(candidates):
            ids[row, : len(candidate) + 1] = torch.tensor([state[-1], *candidate])
        out = body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        values = _head(model)(out).squeeze(-1)
        return self._squashed(values[torch.arange(len(candidates)), [len(c) for c in candidates]])

    def _squashed(self, values: Tensor) -> Tensor:
        return values.sigmoid() if self.config.ranker.sigmoid else values

    def _critic_step(self, rng: np.random.Generator) -> float:
        """Minibatches whose gradients are summed, one state after the other, and one step of Adam."""
        ranker = self.config.ranker
        chosen = rng.integers(len(self.rows), size=ranker.batch_size * ranker.updates)
        total = 0.0
        for start in range(0, len(chosen), ranker.batch_size):
            losses = []
            for row in (self.rows[int(i)] for i in chosen[start : start + ranker.batch_size]):
                q = self._scores(self.critic, row.state, row.options)[row.executed]
                y = torch.tensor(row.reward)
                if not row.done:
                    following = [*row.state, *row.options[row.executed]]
                    with torch.no_grad():
                        online = self._scores(self.critic, following, row.candidates)
                        target = self._scores(self.target, following, row.candidates)
                    y = y + self.config.discount * target[online.argmax()]
                losses.append((q - y) ** 2)
            loss = torch.stack(losses).sum()
            (loss / len(chosen)).backward()
            total += float(loss.detach())
        _step(self._optimisers["critic"])
        return total / len(chosen)

    # Generator

    def _ids(self, state: Sequence[int], candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        """[C, T] token ids, padded to the longest sequence, and which are candidates' tokens."""
        ids = torch.zeros(len(candidates), self.longest, dtype=torch.long)
        mask = torch.zeros(len(candidates), self.longest, dtype=torch.bool)
        for row, candidate in enumerate(candidates):
            whole = [*state, *candidate.tokens]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, len(state) : len(whole)] = True
        return ids, mask

    def _aligned(self, model: nn.Module, state: Sequence[int], candidates: Sequence[Candidate]) -> Tensor:
        """[C, T, V] logits; row t is what predicts token t."""
        with torch.no_grad():
            logits = model(input_ids=self._ids(state, candidates)[0], use_cache=False).logits
        return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)

    def _generator_steps(self, steps: list[Step], rng: np.random.Generator) -> dict[str, float]:
        generator = self.config.generator
        frozen = copy.deepcopy(self.value).eval().requires_grad_(False)
        order = [int(i) for i in rng.permutation(len(steps))]
        sums: dict[str, list[float]] = {"policy/loss": [], "value/loss": []}
        for epoch in range(generator.epochs):
            for place in rng.permutation(len(order)) if epoch else range(len(order)):
                step = steps[order[place]]
                advantages, returns, mask = self._advantages(frozen, step)
                sums["policy/loss"].append(self._policy_step(step, advantages, mask))
                sums["value/loss"].append(self._value_step(step, returns, mask))
        return {name: sum(numbers) / len(numbers) for name, numbers in sums.items()}

    def _values(self, value: ScalarHead, ids: Tensor, positions: range) -> Tensor:
        """[C, T] values of the text up to each of the positions, one forward a position over a growing cache."""
        model: Any = value.model
        cache = DynamicCache(config=model.config)
        out = torch.zeros(ids.shape)
        columns = []
        for position in positions:
            first = position == positions.start
            tokens = ids[:, : position + 1] if first else ids[:, position : position + 1]
            hidden = _body(model)(input_ids=tokens, past_key_values=cache, use_cache=True).last_hidden_state
            columns.append(_head(model)(hidden[:, -1]).squeeze(-1))
        return torch.cat([out[:, : positions.start], torch.stack(columns, dim=1), out[:, positions.stop :]], dim=1)

    @torch.no_grad()
    def _advantages(self, frozen: ScalarHead, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = self._ids(step.state, step.candidates)
        values = self._values(frozen, ids, range(self.longest))
        generator, gamma = self.config.generator, self.config.discount
        advantages = torch.zeros(ids.shape)
        returns = torch.zeros(ids.shape)
        for row, candidate in enumerate(step.candidates):
            carry = 0.0
            last = len(step.state) + len(candidate.tokens) - 1
            for t in range(last, len(step.state) - 1, -1):
                before = float(values[row, t - 1])
                reward = step.rewards[row] if t == last else gamma * float(values[row, t])
                carry = reward - before + (gamma * generator.lam * carry if t < last else 0.0)
                advantages[row, t], returns[row, t] = carry, carry + before
        return advantages, returns, mask

    def _policy_step(self, step: Step, advantages: Tensor, mask: Tensor) -> float:
        """PPO over [C, T, V]: three normalisations, a softmax, a one-hot choice, entropy and divergence of it all."""
        generator = self.config.generator
        ids, _ = self._ids(step.state, step.candidates)
        logits = self.policy.model(input_ids=ids, use_cache=False).logits
        logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
        new = torch.log_softmax(logits, -1)
        old = torch.log_softmax(torch.stack([candidate.logits for candidate in step.candidates]), -1)
        reference = torch.log_softmax(step.reference, -1)
        chosen = torch.nn.functional.one_hot(ids, logits.shape[-1])
        ratio = ((new * chosen).sum(-1) - (old * chosen).sum(-1)).exp()
        sign = torch.where(advantages > 0, 1.0, -1.0)
        gain = torch.minimum(ratio * advantages, (1 + generator.clip * sign) * advantages)
        probs = new.exp()
        entropy = -(probs * new).sum(-1)
        kl = (probs * (new - reference)).sum(-1)
        loss = (-gain - generator.entropy * entropy + generator.kl * kl)[mask].mean()
        loss.backward()
        _step(self._optimisers["policy"])
        return float(loss.detach())

    def _value_step(self, step: Step, returns: Tensor, mask: Tensor) -> float:
        ids, _ = self._ids(step.state, step.candidates)
        longest = max(len(candidate.tokens) for candidate in step.candidates)
        start = len(step.state) - 1
        values = self._values(self.value, ids, range(start, start + longest))
        before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)
        loss = ((before - returns)[mask] ** 2).mean()
        loss.backward()
        _step(self._optimisers["value"])
        return float(loss.detach())


def _body(model: Any) -> Any:
    """The backbone below the head, adapters included."""
    return getattr(model, "get_base_model", lambda: model)().model


def _head(model: Any) -> Any:
    return getattr(model, "get_base_model", lambda: model)().score


def _adam(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)


def _step(optimiser: torch.optim.Optimizer) -> None:
    optimiser.step()
    optimiser.zero_grad()
