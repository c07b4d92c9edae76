"""Two runs side by side: what differs, how their scores compare, and a verdict with its reason.

The caller reads the store and fills in two `Subject`s; here they become one `Comparison`. Every statement is
about b as seen from a: `better` means that b is better than a.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engine.compare import curves
from engine.compare.bootstrap import Interval, Scores, difference_interval, mean_interval, shared_items
from engine.compare.curves import Curve
from engine.compare.diff import Difference, differences
from engine.compare.permutation import EXACT_LIMIT, PairedTest, paired_permutation_test

ALPHA = 0.05
LEADING = ("final/score", "score", "final/accuracy", "accuracy", "final/logp", "logp")
"""Which metric speaks for a run: the best checkpoint on fresh episodes, else the score during training; and so on."""
COSTS = ("step", "scored_episodes", "generated_tokens", "trained_tokens", "gold_labels", "seconds")
"""The axes of a learning curve, in the order in which we print them; others follow by name."""


class Verdict(StrEnum):
    """What the data say about b against a."""

    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Evaluated:
    """One stored evaluation: where on the run it was made, its per-item scores, and what it had cost until then."""

    metric: str
    split: str
    step: int
    stage: str
    position: int
    """Place of its stage in the plan; the final evaluation has the last."""
    scores: Scores
    functions_hash: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """One run, as far as a comparison needs it."""

    handle: str
    spec: Mapping[str, Any]
    code: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Evaluated] = ()


@dataclass(frozen=True)
class Standing:
    """One evaluation of one run with its interval."""

    step: int
    stage: str
    interval: Interval


@dataclass(frozen=True)
class Side:
    """How one run fares by one metric on one split."""

    first: Standing
    best: Standing
    final: Standing


@dataclass(frozen=True)
class Axis:
    """The two learning curves over one cost."""

    cost: str
    mean_height: tuple[float, float] | None
    """Area under each curve over the stretch that both cover, divided by its width."""
    stretch: tuple[float, float] | None
    reached: tuple[float | None, float | None]
    """The cost at which each was first seen at the threshold."""


@dataclass(frozen=True)
class MetricComparison:
    """One metric on one split, in both runs."""

    metric: str
    split: str
    a: Side
    b: Side
    difference: Interval | None
    """b − a at the final evaluations, paired by item; None where no item is shared."""
    test: PairedTest | None
    threshold: float
    axes: tuple[Axis, ...]
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All of it: differences by subject (`spec`, `code`, `packages`, `hardware`) and a comparison a metric."""

    a: str
    b: str
    differences: Mapping[str, tuple[Difference, ...]]
    metrics: tuple[MetricComparison, ...]

    @property
    def verdict(self) -> Verdict:
        """That of the leading metric on its first split."""
        return self.metrics[0].verdict if self.metrics else Verdict.CANNOT_TELL


def compare(
    a: Subject,
    b: Subject,
    *,
    threshold: float | None = None,
    alpha: float = ALPHA,
    same_items: bool = True,
    seed: int = 0,
) -> Comparison:
    """Put two runs side by side.

    `threshold` is the score to which costs are counted; by default the highest that both reached. `same_items` is
    False where the caller knows that item 3 of the one is not item 3 of the other; nothing is paired then.
    """
    keys = {(row.metric, row.split) for row in a.evaluations} & {(row.metric, row.split) for row in b.evaluations}
    metrics = (
        _metric(_of(a, key), _of(b, key), threshold=threshold, alpha=alpha, same_items=same_items, seed=seed)
        for key in sorted(keys, key=_prominence)
    )
    subjects = {name: tuple(differences(getattr(a, name), getattr(b, name))) for name in _SUBJECTS}
    return Comparison(a=a.handle, b=b.handle, differences=subjects, metrics=tuple(metrics))


_SUBJECTS = ("spec", "code", "packages", "hardware")


def _prominence(key: tuple[str, str]) -> tuple[int, str, bool, str]:
    metric, split = key
    place = LEADING.index(metric) if metric in LEADING else len(LEADING)
    return place, metric, split != "train", split


def _of(subject: Subject, key: tuple[str, str]) -> list[Evaluated]:
    rows = [row for row in subject.evaluations if (row.metric, row.split) == key]
    return sorted(rows, key=lambda row: (row.position, row.step))


def _metric(
    a: list[Evaluated], b: list[Evaluated], *, threshold: float | None, alpha: float, same_items: bool, seed: int
) -> MetricComparison:
    one, other = _side(a, seed), _side(b, seed)
    paired = same_items and bool(shared_items(a[-1].scores, b[-1].scores))
    difference = difference_interval(a[-1].scores, b[-1].scores, seed=seed) if paired else None
    test = paired_permutation_test(a[-1].scores, b[-1].scores, seed=seed) if paired else None
    goal = min(one.best.interval.mean, other.best.interval.mean) if threshold is None else threshold
    verdict, reason = _judge(a[-1], b[-1], difference, test, alpha, same_items)
    return MetricComparison(
        metric=a[-1].metric,
        split=a[-1].split,
        a=one,
        b=other,
        difference=difference,
        test=test,
        threshold=goal,
        axes=tuple(_axes(a, b, goal)),
        verdict=verdict,
        reason=reason,
    )


def _side(rows: list[Evaluated], seed: int) -> Side:
    standings = [Standing(row.step, row.stage, mean_interval(row.scores, seed=seed)) for row in rows]
    best = max(standings, key=lambda standing: standing.interval.mean)
    return Side(first=standings[0], best=best, final=standings[-1])


def _axes(a: list[Evaluated], b: list[Evaluated], goal: float) -> Iterable[Axis]:
    one, other = _curve_rows(a), _curve_rows(b)
    shared = {"step"} | (set.intersection(*({*row.cost} for row in (*one, *other))))
    for cost in sorted(shared, key=lambda name: (COSTS.index(name) if name in COSTS else len(COSTS), name)):
        curve_a, curve_b = _curve(one, cost), _curve(other, cost)
        stretch = curves.common_range(curve_a, curve_b)
        heights = (curves.mean_height(curve_a, *stretch), curves.mean_height(curve_b, *stretch)) if stretch else None
        yield Axis(cost, heights, stretch, (curves.reached(curve_a, goal), curves.reached(curve_b, goal)))


def _curve_rows(rows: list[Evaluated]) -> list[Evaluated]:
    """The rows of the stage that was evaluated most often: the learning curve, without the final evaluation's redo."""
    stages: dict[str, list[Evaluated]] = {}
    for row in rows:
        stages.setdefault(row.stage, []).append(row)
    return max(stages.values(), key=len)


def _curve(rows: list[Evaluated], cost: str) -> Curve:
    return Curve.of(
        [
            (float(row.step) if cost == "step" else float(row.cost[cost]), mean_interval(row.scores, resamples=1).mean)
            for row in rows
        ]
    )


def _judge(
    a: Evaluated, b: Evaluated, difference: Interval | None, test: PairedTest | None, alpha: float, same_items: bool
) -> tuple[Verdict, str]:
    if a.functions_hash != b.functions_hash:
        return Verdict.CANNOT_TELL, "the two were scored by different reward functions: their scores are not comparable"
    if difference is None or test is None:
        what = "have no scored item in common" if same_items else "were evaluated on different items"
        return Verdict.CANNOT_TELL, f"the two {what}"
    smallest = 2 / test.arrangements if test.exact else 0.0
    if smallest > alpha and test.difference != 0:
        return Verdict.CANNOT_TELL, (
            f"{test.items} shared item{'s' if test.items != 1 else ''} with so few scores cannot give a p below "
            f"{smallest:.3g}; evaluate with more `runs_per_item`"
        )
    evidence = (
        f"difference {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}], p = {test.p_value:.2g}"
    )
    clear = test.p_value <= alpha and (difference.low > 0 or difference.high < 0)
    if not clear:
        return Verdict.CANNOT_TELL, evidence
    return (Verdict.BETTER if difference.mean > 0 else Verdict.WORSE), evidence


__all__ = ["ALPHA", "EXACT_LIMIT", "Comparison", "Evaluated", "MetricComparison", "Subject", "Verdict", "compare"]
