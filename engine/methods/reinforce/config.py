"""What a spec may say about token-level REINFORCE. Numbers are `methods/maths`' part, episodes `dialogue`'s."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from engine.methods.dialogue.config import Episodes, PolicyUpdate


class ReinforceEpisodes(Episodes):
    """How a dataset is played; each iteration plays all its environments to their ends."""

    environments: int = Field(16, ge=1)
    """Whole episodes per iteration, played in one batch."""


class Reinforce(PolicyUpdate):
    """REINFORCE on tokens (Williams, 1992): the log-probability of an episode, weighed by its score."""

    needs: ClassVar[tuple[str, ...]] = ("score_fn",)
    name: Literal["reinforce"] = "reinforce"
    iterations: int = Field(40, ge=1)
    discount: float = Field(1.0, gt=0, le=1)
    """γ, per token."""
    episodes: ReinforceEpisodes = ReinforceEpisodes()
    baseline: Literal["none", "batch", "leave_one_out"] = "leave_one_out"
    """What is subtracted from a score: nothing, the batch's mean, or the mean of the others in the batch."""
    lr: float = Field(1e-3, gt=0)
    """AdamW's learning rate."""
    epochs: int = Field(1, ge=1, le=1)
    """Always one: the estimator is on-policy."""
    checkpoint_every: int = Field(5, ge=1)
    """Iterations between checkpoints; evaluations make one too."""
