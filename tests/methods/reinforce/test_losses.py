"""Baselines, by hand and by their defining property."""

from __future__ import annotations

import pytest

from engine.methods.reinforce.losses import centred


def test_three_baselines_by_hand() -> None:
    scores = [1.0, 0.0, 0.5]
    assert centred(scores, "none") == scores
    assert centred(scores, "batch") == pytest.approx([0.5, -0.5, 0.0])
    assert centred(scores, "leave_one_out") == pytest.approx([0.75, -0.75, 0.0])


def test_an_episode_does_not_move_its_own_leave_one_out_baseline() -> None:
    low, high = centred([0.0, 0.3, 0.9], "leave_one_out"), centred([5.0, 0.3, 0.9], "leave_one_out")
    assert high[0] - low[0] == pytest.approx(5.0)


def test_a_single_episode_keeps_its_score() -> None:
    assert centred([0.7], "leave_one_out") == [0.7]
