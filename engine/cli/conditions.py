"""Conditions of `rlx compare --fail-if`: a name, a comparison sign and a number, such as `score < 0.9`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import SpecError

if TYPE_CHECKING:
    from engine.compare.report import Comparison

SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_FORM = re.compile(r"\s*([\w/@.-]+?)\s*(<=|>=|==|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """`name sign bound`: `p` and `difference` are the leading metric's, any other name is B's final mean."""

    text: str
    name: str
    sign: str
    bound: float

    def value(self, comparison: Comparison) -> float:
        """What stands on the left. Raises SpecError where the comparison has no such thing."""
        if self.name in ("p", "difference"):
            test = comparison.metrics[0].test if comparison.metrics else None
            if test is None:
                raise SpecError(
                    f"--fail-if {self.text!r}: the two runs share no evaluated item, so there is no {self.name}"
                )
            return test.p_value if self.name == "p" else test.difference
        metric, _, split = self.name.partition("@")
        for found in comparison.metrics:
            if found.metric == metric and split in ("", found.split):
                return found.b.final.interval.mean
        known = sorted({f"{found.metric}@{found.split}" for found in comparison.metrics})
        raise SpecError(
            f"--fail-if {self.text!r}: the runs do not share a metric {self.name!r}; "
            f"there are {', '.join([*known, 'p', 'difference'])}"
        )

    def holds(self, comparison: Comparison) -> bool:
        """Whether the condition is met."""
        return SIGNS[self.sign](self.value(comparison), self.bound)


def parse(text: str) -> Condition:
    """A condition from the command line. Raises SpecError."""
    found = _FORM.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        return Condition(text.strip(), found[1], found[2], float(found[3]))
    except ValueError:
        raise SpecError(f"--fail-if {text!r} is not `name sign number`, such as 'score < 0.9' or 'p > 0.05'") from None
