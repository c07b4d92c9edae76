"""Whether a stage is tried again after a failure, and when: by its cause, as far as the spec does not say otherwise.

Pure. `outcomes` acts on it; what a spec may say is `spec.experiment.Retries`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

from engine.errors import OWN_FAULT, Cause

BACK_OFF_S: Mapping[Cause, float] = {
    Cause.OOM: 30.0,
    Cause.HANG: 10.0,
    Cause.SERVICE_DOWN: 10.0,
    Cause.DISK: 30.0,
    Cause.LOST: 0.0,
    Cause.PREEMPTED: 0.0,
    Cause.INTERNAL: 5.0,
}
"""Seconds before the first retry; each further one waits twice as long."""

JITTER = 0.25
"""Up to this share is added to a wait, so that stages that failed together do not come back together."""
QUARANTINE = 3
"""Workers that may die under a stage in a row, the last one under it alone."""


@dataclass(frozen=True)
class Retries:
    """The policy of one stage."""

    max_attempts: int = 3
    limits: Mapping[Cause, int] = field(default_factory=dict)
    """Retries after a cause that is counted by itself; every other cause counts towards `max_attempts`."""
    backoff_s: float | None = None
    """Before the first retry, whatever the cause; None: as `BACK_OFF_S` says."""
    max_backoff_s: float = 600.0
    quarantine: int | None = QUARANTINE

    @classmethod
    def of(cls, max_attempts: int, said: Mapping[str, Any]) -> Self:
        """From a stage's row. Read leniently: a key that this version does not know is passed over."""
        return cls(
            max_attempts=max_attempts,
            limits={cause: int(said[cause]) for cause in BACK_OFF_S if said.get(cause) is not None},
            backoff_s=said.get("backoff"),
            max_backoff_s=said.get("max_backoff") or 600.0,
            quarantine=said.get("quarantine", QUARANTINE),
        )

    def again(self, failures: Sequence[Cause]) -> bool:
        """Whether there is another attempt after these failures, of which the last has just happened."""
        cause = failures[-1]
        if cause in OWN_FAULT:
            return False
        if cause in self.limits:
            return failures.count(cause) <= self.limits[cause]
        return sum(other not in self.limits for other in failures) < self.max_attempts

    def wait_s(self, failures: Sequence[Cause], attempt_id: UUID) -> float:
        """Seconds until that attempt; the same for the same attempt, whoever asks."""
        first = BACK_OFF_S[failures[-1]] if self.backoff_s is None else self.backoff_s
        wait = min(first * 2.0 ** min(len(failures) - 1, 32), self.max_backoff_s)
        return wait * (1 + JITTER * random.Random(attempt_id.int).random())
