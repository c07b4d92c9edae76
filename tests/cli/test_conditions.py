"""`--fail-if`: what parses, what it is compared with, and what is refused."""

from __future__ import annotations

import pytest

from engine.cli.conditions import parse
from engine.compare.report import Evaluated, Subject, compare
from engine.errors import SpecError


def comparison():
    def rows(ones: int):
        scores = {0: [1.0] * ones + [0.0] * (10 - ones)}
        return [Evaluated("score", split, 1, "train", 1, scores) for split in ("train", "heldout")]

    return compare(Subject("a", {}, evaluations=rows(5)), Subject("b", {}, evaluations=rows(7)))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("score < 0.9", True),
        ("score<0.7", False),
        ("score >= 0.7", True),
        ("score@heldout == 0.7", True),
        ("p > 0.05", True),
        ("difference <= 0", False),
        ("difference > 1e-1", True),
    ],
)
def test_conditions(text, holds):
    assert parse(text).holds(comparison()) is holds


@pytest.mark.parametrize(
    "text", ["score", "score < high", "score =< 1", "< 0.9", "score < 1.2.3", "__import__('os') < 1"]
)
def test_what_is_no_condition_is_bad_input(text):
    with pytest.raises(SpecError, match="name sign number"):
        parse(text)


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(SpecError, match="score@heldout, score@train, p, difference"):
        parse("accuracy < 1").holds(comparison())
