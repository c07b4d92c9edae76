"""ArCHer's config: presets beneath what was written, and combinations that make no sense refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from engine.methods.archer.config import Archer
from engine.spec.dataset import Dataset, Item


def test_the_paper_is_one_key_away() -> None:
    paper = Archer.model_validate({"variant": "paper"})
    assert (paper.ranker.critic, paper.ranker.candidates, paper.ranker.target.kind) == ("qv", 1, "polyak")
    assert (paper.generator.algorithm, paper.generator.signal, paper.generator.states) == (
        "reinforce",
        "advantage",
        "replay",
    )


def test_what_the_spec_says_wins_over_the_preset() -> None:
    mixed = Archer.model_validate({"variant": "paper", "ranker": {"candidates": 4, "target": {"tau": 0.5}}})
    assert (mixed.ranker.candidates, mixed.ranker.critic) == (4, "qv")
    assert (mixed.ranker.target.kind, mixed.ranker.target.tau) == ("polyak", 0.5)


def test_a_resolved_config_reads_back_as_itself() -> None:
    for variant in ("recurve", "paper"):
        config = Archer.model_validate({"variant": variant, "generator": {"kl": 0.3}})
        assert Archer.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("ranker", "loss"),
    [({}, "cross_entropy"), ({"sigmoid": False}, "squared"), ({"loss": "squared"}, "squared")],
)
def test_values_that_are_squashed_are_fitted_by_cross_entropy(ranker: dict[str, Any], loss: str) -> None:
    assert Archer.model_validate({"ranker": ranker}).ranker.chosen_loss == loss


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"generator": {"signal": "advantage"}}, "critic: qv"),
        ({"ranker": {"candidates": 1}, "generator": {"signal": "centred"}}, "two candidates"),
        ({"generator": {"signal": "centred", "states": "replay"}}, "rivals"),
        ({"ranker": {"candidates": 1}, "generator": {"mode": "frozen"}}, "nothing to learn"),
        ({"ranker": {"sigmoid": False, "loss": "cross_entropy"}}, "sigmoid: true"),
        ({"ranker": {"updates": 5, "accumulate": 2}}, "multiple"),
        ({"ranker": {"replay": {"capacity": 10, "min_fill": 11}}}, "capacity"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Archer.model_validate(wrong)


@pytest.mark.parametrize(
    ("config", "signal"),
    [
        ({}, "centred"),
        ({"generator": {"signal": "q"}}, "q"),
        ({"ranker": {"candidates": 1}}, "q"),
        ({"ranker": {"candidates": 4}, "generator": {"states": "replay"}}, "q"),
        ({"variant": "paper"}, "advantage"),
    ],
)
def test_utterances_with_rivals_earn_what_they_are_better_by(config: dict[str, Any], signal: str) -> None:
    assert Archer.model_validate(config).signal == signal


def test_costs_a_turn_do_not_go_with_values_between_0_and_1() -> None:
    free = Dataset(items=(Item(prompt="Which?"),))
    costly = free.model_copy(update={"turn_cost": 0.1})

    assert list(Archer().refuses(free)) == []
    assert [path for path, _ in Archer().refuses(costly)] == ["algorithm.ranker.sigmoid"]
    assert list(Archer.model_validate({"ranker": {"sigmoid": False}}).refuses(costly)) == []
