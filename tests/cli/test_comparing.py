"""`rlx compare` over a real store: the one difference named, intervals, a paired test, a verdict."""

from __future__ import annotations

import pytest


def test_two_seeds_differ_in_their_seed_alone(rlx, lab):
    lab.succeeded(8)
    lab.succeeded(9, seed=1)

    data = rlx("compare", "best-lang-1", "best-lang-2", "--json").data

    assert data["differences"] == {
        "spec": [{"path": "seed", "a": 0, "b": 1}],
        "code": [],
        "packages": [],
        "hardware": [],
    }
    (metric,) = data["metrics"]
    assert metric["verdict"] == data["verdict"] == "cannot tell"
    assert metric["test"]["exact"] is True
    assert metric["b"]["final"]["interval"]["mean"] == pytest.approx(0.9)
    assert metric["difference"]["low"] < 0 < metric["difference"]["high"]
    assert {axis["cost"] for axis in metric["axes"]} == {"step", "scored_episodes", "seconds"}

    text = rlx("compare", "best-lang-1", "best-lang-2").out
    assert "spec        seed  0            1" in text
    assert "paired permutation test over 1 shared item: p = 1 (exact)" in text
    assert "cannot tell: difference +0.100" in text


def test_a_clear_gain_is_said_and_fails_nobody(rlx, lab):
    lab.succeeded(1)
    lab.succeeded(10)
    answer = rlx("compare", "best-lang-1", "best-lang-2", "--fail-if", "score < 0.9")
    assert answer.code == 0
    assert "best-lang-2 is better than best-lang-1" in answer.out


def test_a_broken_condition_fails(rlx, lab):
    lab.succeeded(1)
    lab.succeeded(10)
    answer = rlx("compare", "best-lang-2", "best-lang-1", "--fail-if", "score < 0.9")
    assert answer.code == 1
    assert "score < 0.9: holds, with score = 0.1" in answer.err
    assert "worse than" in answer.out
    assert rlx("compare", "best-lang-2", "best-lang-1", "--fail-if", "nonsense").code == 2


def test_different_items_are_not_paired(rlx, lab):
    lab.succeeded(1)
    lab.succeeded(10, dataset={"items": [{"prompt": "Other?", "answer": "C"}]})
    data = rlx("compare", "best-lang-1", "best-lang-2", "--json").data
    (metric,) = data["metrics"]
    assert (metric["verdict"], metric["test"]) == ("cannot tell", None)
    assert "different items" in metric["reason"]
    assert next(row["path"].split("[")[0] for row in data["differences"]["spec"]) == "dataset.items"


def test_runs_without_evaluations_still_show_what_differs(rlx, lab):
    lab.submit()
    lab.submit(seed=5)
    answer = rlx("compare", "best-lang-1", "best-lang-2")
    assert answer.code == 0
    assert "seed" in answer.out
    assert "nothing to compare" in answer.out


def test_an_unknown_run_is_not_found(rlx, lab):
    lab.submit()
    assert rlx("compare", "best-lang-1", "best-lang-9").code == 3
