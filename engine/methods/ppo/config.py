"""What a spec may say about token-level PPO. Numbers are `methods/maths`' part, episodes `dialogue`'s."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from engine.methods.dialogue.config import Episodes, PolicyUpdate


class PPOEpisodes(Episodes):
    """How a dataset is played; each iteration plays all its environments to their ends."""

    environments: int = Field(16, ge=1)
    """Whole episodes per iteration, played in one batch."""


class PPO(PolicyUpdate):
    """Proximal policy optimisation on tokens (Schulman et al., 2017), with a value network and GAE."""

    needs: ClassVar[tuple[str, ...]] = ("score_fn",)
    name: Literal["ppo"] = "ppo"
    iterations: int = Field(40, ge=1)
    discount: float = Field(1.0, gt=0, le=1)
    """γ, per token."""
    episodes: PPOEpisodes = PPOEpisodes()
    lr: float = Field(1e-3, gt=0)
    """AdamW's learning rate."""
    value_lr: float = Field(1e-3, gt=0)
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ."""
    clip: float = Field(0.2, gt=0)
    """Half-width of the trust region on the importance ratio."""
    checkpoint_every: int = Field(5, ge=1)
    """Iterations between checkpoints; evaluations make one too."""
