"""From a spec to its plan: every stage gets the parts of the spec that it reads, and the hardware it asked for.

Pure and fast. A method's `plan.py` says which stages there are; `hashing` names their outputs; the store
knows which of those exist already.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import Problem, SpecError
from engine.plan.graph import ordered
from engine.plan.stage import Plan, Resources, Stage
from engine.spec.experiment import Experiment

# What the engine itself acts on: no stage needs to read these for them to have an effect.
READ_BY_ENGINE = (
    *("version", "name", "description", "seed", "hardware", "retries", "tracking", "priority", "tags", "notes"),
    "sweep",
)


def compile_plan(experiment: Experiment, stages: Sequence[Stage], set_paths: Collection[str] = ()) -> Plan:
    """The plan of `experiment`, whose stages its method's planner has listed.

    `set_paths` are the dotted paths that the user wrote. Raises SpecError for one that no stage reads (it
    would be a silent nothing) and for hardware given to a stage that the plan does not have.
    """
    resolved = experiment.model_dump(mode="json")
    plan = ordered(stages)
    problems = _unread(set_paths, plan) + _unknown_stages(experiment, plan)
    if problems:
        raise SpecError(problems)
    return Plan(
        name=experiment.name,
        seed=experiment.seed,
        stages=tuple(
            replace(stage, config=pick(resolved, stage.reads), resources=_resources(experiment, stage))
            for stage in plan
        ),
    )


def pick(tree: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The sub-tree of `tree` at the dotted `paths`. A path that is absent is left out."""
    chosen: dict[str, Any] = {}
    for path in paths:
        keys = path.split(".")
        source: Any = tree
        for key in keys:
            if not isinstance(source, Mapping) or key not in source:
                break
            source = source[key]
        else:
            target = chosen
            for key in keys[:-1]:
                target = target.setdefault(key, {})
            target[keys[-1]] = source
    return chosen


def _unread(set_paths: Collection[str], stages: Sequence[Stage]) -> list[Problem]:
    reads = {path for stage in stages for path in stage.reads} | set(READ_BY_ENGINE)
    unread = [path for path in sorted(set_paths) if not any(_overlap(path, read) for read in reads)]
    return [
        Problem(f"{path} is set, but no stage of this plan reads it: remove it, or the setting that disables it", path)
        for path in unread
    ]


def _overlap(path: str, read: str) -> bool:
    return path == read or path.startswith(read + ".") or read.startswith(path + ".")


def _unknown_stages(experiment: Experiment, stages: Sequence[Stage]) -> list[Problem]:
    names = [stage.name for stage in stages]
    problems = []
    for name in experiment.hardware.stages:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Its stages are {', '.join(names)}."
            problems.append(Problem(f"no stage of this plan is called {name!r}. {hint}", f"hardware.stages.{name}"))
    return problems


def _resources(experiment: Experiment, stage: Stage) -> Resources:
    """What the planner fixed, else the spec's hardware; then the spec's word on this stage."""
    hardware = experiment.hardware
    resources = stage.resources
    light = resources.light
    if resources == Resources(light=light):
        resources = Resources(
            gpus=0 if light else hardware.gpus,
            queue=hardware.queue,
            timeout_s=hardware.timeout,
            stall_timeout_s=hardware.stall_timeout,
            launcher="single" if light else hardware.launcher,
            device="cpu" if light else hardware.device,
            precision=hardware.precision,
            threads=hardware.threads,
            light=light,
        )
    override = hardware.stages.get(stage.name)
    if override is None:
        return resources
    changes = {key: getattr(override, key) for key in override.model_fields_set}
    for key in ("timeout", "stall_timeout"):
        if key in changes:
            changes[f"{key}_s"] = changes.pop(key)
    return replace(resources, **changes)
