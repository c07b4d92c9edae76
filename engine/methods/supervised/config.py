"""What a spec may say about learning from a fixed set of examples, for every method that does. Light."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from engine.spec.base import SpecModel
from engine.spec.dataset import Dataset


class Training(SpecModel):
    """Steps of AdamW over shuffled examples; an iteration is an optimiser step."""

    epochs: int = Field(3, ge=1)
    """Times that every example is learnt."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, in place of `epochs`; empty: as many as the epochs have."""
    batch_size: int = Field(16, ge=1)
    """Examples in an optimiser step."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens that are computed at once, at most: a step of more takes several parts, with the same result."""
    max_tokens: int = Field(1024, ge=2)
    """Longest conversation; what is over is cut off."""
    lr: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls to 0 by the last step."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises to `lr`."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled, as in AdamW."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; empty: unbounded."""
    best_by: str | None = None
    """The split whose evaluation chooses the best checkpoint; empty: the last one is the best."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; evaluations make one too."""

    def refuses(self, dataset: Dataset) -> Iterator[tuple[str, str]]:
        """What the dataset lacks."""
        if self.best_by is not None and self.best_by not in dataset.split_names:
            names = ", ".join(dataset.split_names)
            yield "algorithm.best_by", f"the dataset has no split called {self.best_by!r}. There are {names}"
