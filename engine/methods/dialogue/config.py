"""What a spec may say about playing episodes and stepping an optimiser, for every method that does so. Light."""

from __future__ import annotations

from pydantic import Field

from engine.spec.base import SpecModel


class Episodes(SpecModel):
    """How a dataset is played: several environments side by side, one utterance a decision."""

    environments: int = Field(4, ge=1)
    """Episodes played at the same time, in one batch. They stay alive across iterations."""
    max_tokens: int = Field(128, ge=16)
    """Longest conversation, prompt included; one that reaches it ends there and is scored as it stands."""
    max_turns: int | None = Field(None, ge=1)
    """Most utterances of an episode; empty: no limit but `done_fn` and `max_tokens`."""


class PolicyUpdate(SpecModel):
    """How a token-level learner moves the policy."""

    lr: float = Field(3e-4, gt=0)
    """AdamW's learning rate."""
    epochs: int = Field(2, ge=1)
    """Passes over the tokens of an iteration."""
    minibatch: int | None = Field(None, ge=1)
    """Groups of one prompt per optimiser step; empty: all of the iteration at once."""
    kl: float = Field(0.05, ge=0)
    """Weight of the exact KL divergence to the model that training started from."""
    entropy: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; empty: unbounded."""
    normalise: bool = True
    """Whiten advantages over the tokens of an iteration."""
