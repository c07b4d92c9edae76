"""What a bridge to another tool is given, and what it has to do. Reading SQL, and when, is `mirror`'s business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Left = Mapping[str, Any]
"""What a bridge remembers of where it stands: JSON data, which the next process hands back."""


@dataclass(frozen=True)
class Point:
    """One value of a series."""

    stage: str
    key: str
    step: int
    value: float
    """NaN where it was not finite."""
    time: float
    """Seconds since the epoch."""

    @property
    def name(self) -> str:
        """Its key where the stages of a run have one list of names: two of them may report the same key."""
        return f"{self.stage}/{self.key}"


@dataclass(frozen=True)
class About:
    """A run, as far as it is no series."""

    id: str
    handle: str
    spec: str
    """The experiment's name."""
    status: str
    params: Mapping[str, Any]
    """The resolved spec, flat: `{"algorithm.name": "sft"}`."""
    tags: tuple[str, ...]
    notes: str
    user: str
    submitted: float
    finished: float | None


class Bridge(Protocol):
    """A way into another tool. Whatever its library raises may escape: the mirror tells, and tries again later.

    `open` comes first and `close` last; what is written between two `flush`es may be written again after a crash.
    """

    @property
    def where(self) -> str:
        """Where the run can be looked at."""

    def open(self, about: About, left: Left | None) -> bool:
        """Go on from where an earlier process left; False where that is impossible, and everything begins anew."""

    def describe(self, about: About) -> None:
        """Say what is known of the run; again whenever that changes."""

    def write(self, points: Sequence[Point]) -> None:
        """Points that were not there before: of each series by step."""

    def amend(self, points: Sequence[Point], since: float) -> bool:
        """Points that may stand in the place of earlier ones of their steps; those logged after `since` surely do.

        False where what was written can be thrown away instead, so that everything begins anew.
        """

    def flush(self) -> Left | None:
        """Make what was written last; where we stand then, or None where only `close` can tell."""

    def close(self) -> Left:
        """End for now; where we stand."""
