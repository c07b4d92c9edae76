"""The order of a plan: every stage after the stages it reads."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from engine.plan.stage import Stage


def ordered(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages sorted so that every input precedes its reader, otherwise as they were given.

    Raises ValueError for a repeated name, an input that no stage makes, or a cycle: a planner's bug.
    """
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) != len(stages):
        raise ValueError(f"two stages share a name: {[stage.name for stage in stages]}")
    for stage in stages:
        for name, producer in stage.inputs.items():
            if producer not in by_name:
                raise ValueError(f"stage {stage.name!r} reads {name!r} from {producer!r}, which no stage is called")
    # Names go in and come out in the given order, so a plan prints as its author wrote it.
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for stage in stages:
        sorter.add(stage.name, *stage.inputs.values())
    try:
        names = list(sorter.static_order())
    except CycleError as error:
        raise ValueError(f"the stages wait for each other: {' -> '.join(error.args[1])}") from error
    place = {name: index for index, name in enumerate(by_name)}
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = 1 + max((depth[p] for p in by_name[name].inputs.values()), default=-1)
    return tuple(by_name[name] for name in sorted(names, key=lambda n: (depth[n], place[n])))
