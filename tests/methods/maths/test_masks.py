"""Masked statistics and schedules."""

from __future__ import annotations

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from engine.methods.maths.masks import masked_mean, whiten
from engine.methods.maths.schedules import linear_decay

VALUES, MASK = tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]]), tensor([[1, 1, 0], [1, 0, 0]])


def test_the_mean_counts_only_what_is_real() -> None:
    assert masked_mean(VALUES, MASK).item() == pytest.approx(3.0)
    assert masked_mean(VALUES, torch.zeros(2, 3)).item() == 0.0


def test_whitened_values_have_mean_zero_and_deviation_one() -> None:
    white = whiten(VALUES, MASK)
    # (1, 3, 5) has mean 3 and population variance 8/3
    scale = (8 / 3) ** 0.5
    assert_close(white, tensor([[-2 / scale, 0.0, 0.0], [2 / scale, 0.0, 0.0]]))


@pytest.mark.parametrize(("iteration", "expected"), [(0, 1.0), (5, 0.55), (10, 0.1), (400, 0.1)])
def test_a_straight_line_and_then_constant(iteration: int, expected: float) -> None:
    assert linear_decay(iteration, start=1.0, end=0.1, over=10) == pytest.approx(expected)


def test_a_schedule_over_nothing_is_at_its_end() -> None:
    assert linear_decay(0, start=1.0, end=0.1, over=0) == 0.1
