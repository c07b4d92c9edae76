"""Where the time of attempts went, split into activities that exclude each other, as it is stored and added up.

An attempt's `spent` holds two readings of its stopwatch in seconds: `total`, the newest, and `kept`, the one at its
last recorded checkpoint. What an attempt that did not succeed has done since is lost. Taking the readings is
`runtime.stopwatch`'s business. Light: the process of every stage imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

ACTIVITIES = ("start_up", "generation", "training", "functions", "waiting", "saving", "other")
"""Until the stage first does something · the sampler · the learner · the user's functions · services and the database ·
checkpoints and artifacts · everything else."""
LOST = "lost"
"""From an attempt's last recorded checkpoint to its end, where that was no success."""

Times = dict[str, float]
"""Activity -> seconds, in the order above, `lost` last; what took no time is left out."""


class Timed(Protocol):
    """What is needed of an attempt."""

    @property
    def status(self) -> str: ...
    @property
    def spent(self) -> Mapping[str, Any]: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def finished_at(self) -> datetime | None: ...


def of_attempt(attempt: Timed) -> Times:
    """Where one attempt's time went. Of a running one: as far as its last heartbeat told."""
    total, kept = attempt.spent.get("total", {}), attempt.spent.get("kept", {})
    if attempt.finished_at is None:
        return _tidy(total)
    seconds = (attempt.finished_at - attempt.started_at).total_seconds()
    counted, rest = (total, "other") if attempt.status == "succeeded" else (kept, LOST)
    left = max(0.0, seconds - sum(counted.values()))
    return _tidy({**counted, rest: counted.get(rest, 0.0) + left})


def added(times: Iterable[Mapping[str, float]]) -> Times:
    """The sums over attempts or stages."""
    sums: Times = {}
    for one in times:
        for activity, seconds in one.items():
            sums[activity] = sums.get(activity, 0.0) + seconds
    return _tidy(sums)


def _tidy(times: Mapping[str, float]) -> Times:
    known = (*ACTIVITIES, LOST)
    ordered = [*known, *sorted(set(times) - set(known))]  # a newer version may have told of more
    return {name: round(times[name], 3) for name in ordered if times.get(name, 0.0) >= 0.0005}
