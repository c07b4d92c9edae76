"""What a spec may say about training a reward model. The loss is `maths.preferences`'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from engine.methods.supervised.config import Training
from engine.spec.dataset import Dataset


class Reward(Training):
    """A reward model by the Bradley–Terry likelihood of preferences.

    An item is a `prompt` with a `chosen` and a `rejected` answer. Iterations are optimiser steps.
    """

    name: Literal["reward"] = "reward"
    margins: bool = True
    """Whether the reward of the better answer has to be larger by an item's `margin`, where it has one."""
    centre: float = Field(0.0, ge=0)
    """Weight of (r_c + r_r)², which keeps rewards near 0 (Eisenstein et al., 2023)."""

    def refuses(self, dataset: Dataset) -> Iterator[tuple[str, str]]:
        """Items without a preference."""
        yield from super().refuses(dataset)
        for place, item in dataset.inline_items():
            if item.chosen is None:
                yield place, "reward learns from preferences: the item needs `chosen` and `rejected`"
