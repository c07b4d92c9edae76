"""What a spec may say about ArCHer.

`name: archer` alone is recurve's algorithm with its mistakes corrected, at the scale of two CPU cores;
`variant: paper` is the paper's: one sample a decision, twin Q and V critics under Polyak averages, REINFORCE on
their advantage. This module only describes; `plan` turns it into stages, `losses` into numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from engine.methods.dialogue.config import Episodes, PolicyUpdate
from engine.spec.base import SpecModel
from engine.spec.dataset import Dataset

PAPER: Mapping[str, Mapping[str, Any]] = {
    "ranker": {"candidates": 1, "critic": "qv", "sigmoid": False, "target": {"kind": "polyak", "tau": 0.1}},
    "generator": {"algorithm": "reinforce", "states": "replay", "signal": "advantage", "epochs": 1, "kl": 0.0},
}
"""What `variant: paper` changes; anything that the spec says itself still wins."""


class ArcherEpisodes(Episodes):
    """How a dataset is played, and how much of it an iteration sees."""

    environments: int = Field(8, ge=1)
    """Episodes played at the same time, in one batch. They stay alive across iterations."""
    decisions: int = Field(4, ge=1)
    """Decisions of every environment in one iteration."""


class Epsilon(SpecModel):
    """The chance that a training episode takes a random candidate instead of the best one."""

    start: float = Field(1.0, ge=0, le=1)
    end: float = Field(0.1, ge=0, le=1)
    over: float = Field(0.5, ge=0, le=1)
    """Fraction of the iterations after which `end` is reached, in a straight line."""


class Replay(SpecModel):
    """The memory of transitions that the critic learns from."""

    capacity: int = Field(4000, ge=1)
    """Transitions kept; the oldest leave first."""
    min_fill: int = Field(256, ge=1)
    """Transitions collected with random choices before the first update."""

    @model_validator(mode="after")
    def _fill_fits(self) -> Replay:
        if self.min_fill > self.capacity:
            raise ValueError(f"min_fill ({self.min_fill}) is more than the capacity ({self.capacity})")
        return self


class Target(SpecModel):
    """How the target network follows the critic."""

    kind: Literal["hard", "polyak"] = "hard"
    every: int = Field(1, ge=1)
    """Iterations between hard copies."""
    tau: float = Field(0.1, gt=0, le=1)
    """Polyak's step after each of the critic's optimiser steps."""


class Ranker(SpecModel):
    """The utterance level: a critic values candidate utterances, and the best one is said."""

    candidates: int = Field(8, ge=1)
    """Utterances sampled for each decision."""
    critic: Literal["dqn", "qv"] = "dqn"
    """`dqn`: double DQN over the stored candidates. `qv`: twin Q and V, backed up by the policy's own sample."""
    sigmoid: bool = True
    """Squash values into (0, 1); right when scores are, and it bounds over-estimation."""
    loss: Literal["squared", "cross_entropy"] | None = None
    """What is minimised between a value and its target. Empty: `cross_entropy` with `sigmoid`, else `squared`."""
    lr: float = Field(1e-3, gt=0)
    batch_size: int = Field(32, ge=1)
    """Transitions in one minibatch."""
    updates: int = Field(32, ge=1)
    """Minibatches an iteration."""
    accumulate: int = Field(1, ge=1)
    """Minibatches per optimiser step."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; empty: unbounded."""
    beta2: float = Field(0.95, gt=0, lt=1)
    """Adam's memory of squared gradients. Over the usual 0.999 a long quiet time makes the step after it too large."""
    target: Target = Target()
    epsilon: Epsilon = Epsilon()
    replay: Replay = Replay()

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Ranker:
        if self.updates % self.accumulate:
            raise ValueError(f"updates ({self.updates}) must be a multiple of accumulate ({self.accumulate})")
        return self

    @model_validator(mode="after")
    def _entropy_needs_probabilities(self) -> Ranker:
        if self.loss == "cross_entropy" and not self.sigmoid:
            raise ValueError("loss: cross_entropy needs sigmoid: true, which makes a value a number between 0 and 1")
        return self

    @property
    def chosen_loss(self) -> Literal["squared", "cross_entropy"]:
        """The loss, where the spec leaves it open too."""
        return self.loss or ("cross_entropy" if self.sigmoid else "squared")


class Generator(PolicyUpdate):
    """The token level: the policy that proposes utterances, trained on what the critic thinks of them."""

    lr: float = Field(1e-3, gt=0)
    """AdamW's learning rate."""
    kl: float = Field(0.1, ge=0)
    """Weight of the exact KL divergence to the model that training started from."""
    mode: Literal["train", "frozen"] = "train"
    """`frozen` leaves the policy as it is and trains the ranker alone."""
    algorithm: Literal["ppo", "reinforce"] = "ppo"
    states: Literal["current", "replay"] = "current"
    """`current`: all candidates of this iteration's decisions. `replay`: one fresh utterance in each replayed state."""
    signal: Literal["q", "centred", "advantage"] | None = None
    """An utterance's reward: its Q; Q minus the mean of its rivals; or Q − V, for `critic: qv`.

    Empty: `centred` where an utterance has rivals, else `q`."""
    value_net: bool = True
    """Whether PPO has a token-level value network as its baseline."""
    value_lr: float = Field(1e-3, gt=0)
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ over the tokens of an utterance."""
    clip: float = Field(0.2, gt=0)
    """Half-width of PPO's trust region on the importance ratio."""
    start_after: int = Field(8, ge=0)
    """Iterations of the critic alone before the policy is first moved."""
    batch_size: int = Field(32, ge=1)
    """Replayed states an iteration, for `states: replay`."""


class Archer(SpecModel):
    """Hierarchical RL: a critic over utterances (off-policy) teaches a policy over tokens (on-policy)."""

    needs: ClassVar[tuple[str, ...]] = ("score_fn",)
    name: Literal["archer"] = "archer"
    variant: Literal["recurve", "paper"] = "recurve"
    """Whose algorithm the defaults are."""
    iterations: int = Field(32, ge=1)
    discount: float = Field(1.0, gt=0, le=1)
    """γ, at both levels."""
    episodes: ArcherEpisodes = ArcherEpisodes()
    ranker: Ranker = Ranker()
    generator: Generator = Generator()
    checkpoint_every: int = Field(5, ge=1)
    """Iterations between checkpoints; evaluations make one too."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        """The paper's defaults beneath what was written."""
        if not isinstance(data, Mapping) or data.get("variant") != "paper":
            return data
        return _beneath(PAPER, data)

    @model_validator(mode="after")
    def _advantages_need_state_values(self) -> Archer:
        if self.generator.signal == "advantage" and self.ranker.critic != "qv":
            raise ValueError("generator.signal: advantage needs ranker.critic: qv, which learns the values of states")
        if self.generator.signal == "centred" and self.ranker.candidates == 1:
            raise ValueError("generator.signal: centred needs at least two candidates a decision")
        if self.generator.signal == "centred" and self.generator.states == "replay":
            raise ValueError("generator.signal: centred needs rivals: set generator.states: current")
        if self.ranker.candidates == 1 and self.ranker.critic == "dqn" and self.generator.mode == "frozen":
            raise ValueError("one candidate and a frozen generator leave nothing to learn")
        return self

    @property
    def signal(self) -> Literal["q", "centred", "advantage"]:
        """What an utterance earns, where the spec leaves it open too."""
        rivals = self.ranker.candidates > 1 and self.generator.states == "current"
        return self.generator.signal or ("centred" if rivals else "q")

    def refuses(self, dataset: Dataset) -> Iterator[tuple[str, str]]:
        """What this setting cannot make of a dataset: (the key to blame, why)."""
        if dataset.turn_cost > 0 and self.ranker.sigmoid:
            yield (
                "algorithm.ranker.sigmoid",
                "with dataset.turn_cost a value can be negative, and sigmoid keeps it between 0 and 1: set it to false",
            )


def _beneath(preset: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = dict(data)
    for key, default in preset.items():
        given = merged.get(key)
        if isinstance(default, Mapping) and isinstance(given, Mapping):
            merged[key] = _beneath(default, given)
        elif key not in merged:
            merged[key] = dict(default) if isinstance(default, Mapping) else default
    return merged
