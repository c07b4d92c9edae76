"""Two runs side by side: the verdicts that the data force, and what is named as different."""

from __future__ import annotations

import pytest

from engine.compare.diff import Difference
from engine.compare.report import Evaluated, Subject, Verdict, compare

SPEC = {"seed": 0, "algorithm": {"name": "archer"}}


def evaluated(step, scores, *, stage="train", position=1, metric="score", split="train", functions="f", **cost):
    return Evaluated(metric, split, step, stage, position, scores, functions, cost)


def subject(handle, *rows, spec=SPEC, **more):
    return Subject(handle, spec=spec, evaluations=rows, **more)


def scored(*successes):
    """One item, ten scores each."""
    return {0: [1.0] * successes[0] + [0.0] * (10 - successes[0])}


def test_a_clear_gain_is_better_and_its_mirror_worse():
    low, high = subject("a", evaluated(10, scored(1))), subject("b", evaluated(10, scored(10)))

    (metric,) = compare(low, high).metrics

    assert metric.verdict is Verdict.BETTER
    assert metric.difference.mean == pytest.approx(0.9)
    assert compare(high, low).verdict is Verdict.WORSE


def test_a_small_gain_cannot_be_told():
    comparison = compare(subject("a", evaluated(10, scored(5))), subject("b", evaluated(10, scored(7))))
    assert comparison.verdict is Verdict.CANNOT_TELL
    assert "p = 0.65" in comparison.metrics[0].reason  # Fisher's exact test, two-sided: 0.6499


def test_different_reward_functions_are_never_compared():
    a, b = subject("a", evaluated(1, scored(0), functions="f")), subject("b", evaluated(1, scored(10), functions="g"))
    (metric,) = compare(a, b).metrics
    assert metric.verdict is Verdict.CANNOT_TELL
    assert "reward functions" in metric.reason


def test_different_items_are_not_paired():
    a, b = subject("a", evaluated(1, scored(0))), subject("b", evaluated(1, scored(10)))
    (metric,) = compare(a, b, same_items=False).metrics
    assert (metric.verdict, metric.test, metric.difference) == (Verdict.CANNOT_TELL, None, None)
    assert "different items" in metric.reason


def test_too_few_scores_say_what_would_help():
    a, b = subject("a", evaluated(1, {0: [0.0], 1: [0.0]})), subject("b", evaluated(1, {0: [1.0], 1: [1.0]}))
    (metric,) = compare(a, b).metrics
    assert metric.verdict is Verdict.CANNOT_TELL
    assert "0.5" in metric.reason  # two signs each: 2 of 4 arrangements are as extreme
    assert "runs_per_item" in metric.reason


def test_first_best_and_final_stand_apart():
    rows = [
        evaluated(0, scored(1)),
        evaluated(10, scored(9)),
        evaluated(20, scored(4)),
        evaluated(10, scored(8), stage="evaluate", position=2),
    ]
    (metric,) = compare(subject("a", *reversed(rows)), subject("b", *rows)).metrics
    for side in (metric.a, metric.b):
        assert [side.first.interval.mean, side.best.interval.mean, side.final.interval.mean] == pytest.approx(
            [0.1, 0.9, 0.8]
        )
        assert (side.best.step, side.final.stage) == (10, "evaluate")


def test_costs_to_a_threshold_and_areas_by_hand():
    a = subject(
        "a",
        evaluated(0, scored(0), scored_episodes=0, seconds=0),
        evaluated(10, scored(10), scored_episodes=100, seconds=5),
        evaluated(10, scored(10), stage="evaluate", position=2),
    )
    b = subject(
        "b",
        evaluated(0, scored(0), scored_episodes=0, seconds=0),
        evaluated(10, scored(5), scored_episodes=50, seconds=5),
        evaluated(20, scored(10), scored_episodes=100, seconds=9),
    )

    (metric,) = compare(a, b, threshold=0.9).metrics

    axes = {axis.cost: axis for axis in metric.axes}
    assert list(axes) == ["step", "scored_episodes", "seconds"]
    assert axes["step"].reached == (10, 20)
    assert axes["seconds"].reached == (5, 9)
    assert axes["step"].stretch == (0, 10)
    assert axes["step"].mean_height == pytest.approx((0.5, 0.25))
    assert axes["scored_episodes"].mean_height == pytest.approx((0.5, 0.5))


def test_the_default_threshold_is_what_both_reached():
    a, b = subject("a", evaluated(0, scored(2)), evaluated(1, scored(9))), subject("b", evaluated(0, scored(6)))
    (metric,) = compare(a, b).metrics
    assert metric.threshold == pytest.approx(0.6)
    assert metric.axes[0].reached == (1, 0)


def test_only_the_seed_differs():
    a = subject("a", code={"commit": "1"}, packages={"torch": "2.13"}, hardware={"cpu": "x"})
    b = subject("b", spec={**SPEC, "seed": 1}, code={"commit": "1"}, packages={"torch": "2.13"}, hardware={"cpu": "x"})

    comparison = compare(a, b)

    assert comparison.differences == {
        "spec": (Difference("seed", 0, 1),),
        "code": (),
        "packages": (),
        "hardware": (),
    }
    assert comparison.metrics == ()
    assert comparison.verdict is Verdict.CANNOT_TELL


def test_score_on_train_leads_whatever_else_was_measured():
    rows = [
        evaluated(1, scored(5), metric="accuracy"),
        evaluated(1, scored(5), metric="score/generator"),
        evaluated(1, scored(5), split="heldout"),
        evaluated(1, scored(5)),
    ]
    metrics = compare(subject("a", *rows), subject("b", *rows)).metrics
    assert [(m.metric, m.split) for m in metrics] == [
        ("score", "train"),
        ("score", "heldout"),
        ("accuracy", "train"),
        ("score/generator", "train"),
    ]
