"""Before anything is queued: the user's functions on probes, and the data behind a dataset's references.

What breaks a contract stops the submission; what looks suspicious is said and let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.cli.output import printable, style, talk

if TYPE_CHECKING:
    from engine.spec.experiment import Experiment


def check(experiments: Sequence[Experiment]) -> None:
    """Probe the functions of each distinct dataset. Raises SpecError."""
    from engine.data.splits import split_items
    from engine.errors import SpecError
    from engine.functions.preflight import preflight
    from engine.functions.sources import Sources

    seen: list[object] = []
    for experiment in experiments:
        if experiment.dataset in seen:
            continue
        seen.append(experiment.dataset)
        items = [item for rows in split_items(experiment.dataset).values() for item in rows]
        report = preflight(Sources.of(experiment.dataset), items)
        for warning in report.warnings:
            talk(f"{style('warning:', 'yellow', err=True)} {printable(str(warning))}")
        if report.problems:
            raise SpecError(report.problems)
