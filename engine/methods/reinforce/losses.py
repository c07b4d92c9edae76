"""Baselines of REINFORCE: what is subtracted from the scores of a batch of episodes. Plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

Baseline = Literal["none", "batch", "leave_one_out"]


def centred(scores: Sequence[float], baseline: Baseline) -> list[float]:
    """Scores minus their baseline.

    `leave_one_out` subtracts the mean of the *other* episodes and so stays unbiased (Kool et al., 2019); with a
    single episode there are no others, and nothing is subtracted.
    """
    count, total = len(scores), sum(scores)
    match baseline:
        case "none":
            return list(scores)
        case "batch":
            return [score - total / count for score in scores]
        case "leave_one_out":
            return [score - (total - score) / max(1, count - 1) for score in scores]
        case _:
            assert_never(baseline)
