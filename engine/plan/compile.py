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
from engine.plan.stage import Plan, Resources, Stage, gpus_of
from engine.spec.experiment import Experiment
from engine.spec.hardware import StageHardware
from engine.spec.services import unknown_service

# What the engine itself acts on: no stage needs to read these for them to have an effect.
READ_BY_ENGINE = (
    *("version", "name", "description", "seed", "hardware", "retries", "tracking", "priority", "tags", "notes"),
    "sweep",
)
_JUDGED_APART = ("services",)
"""What stages name one by one: see `_services`."""


def compile_plan(experiment: Experiment, stages: Sequence[Stage], set_paths: Collection[str] = ()) -> Plan:
    """The plan of `experiment`, whose stages its method's planner has listed.

    `set_paths` are the dotted paths that the user wrote. Raises SpecError for one that no stage reads (it
    would be a silent nothing), for hardware given to a stage that the plan does not have, and where the services that
    are declared are not those that stages need.
    """
    resolved = experiment.model_dump(mode="json")
    plan = ordered(stages)
    problems = (
        _unread(set_paths, plan)
        + _unknown_stages(experiment, plan)
        + _alone(experiment, plan)
        + _services(experiment, plan)
        + _apart(experiment, plan)
    )
    if problems:
        raise SpecError(problems)
    return Plan(
        name=experiment.name,
        seed=experiment.seed,
        stages=tuple(_filled_in(stage, experiment, resolved) for stage in plan),
    )


def _filled_in(stage: Stage, experiment: Experiment, resolved: Mapping[str, Any]) -> Stage:
    config, resources = pick(resolved, stage.reads), _resources(experiment, stage)
    services = {name: resolved["services"][name] for name in stage.services}
    services |= {name: service.model_dump(mode="json") for name, service in stage.brings.items()}
    if not services:
        return replace(stage, config=config, resources=resources)
    lent = gpus_of(services)
    if lent:  # CUDA takes a GPU of the stage's own, beside those of its services
        own = resources.needs.gpus
        ranks = resources.processes if resources.launcher == "single" else resources.node_ranks
        resources = replace(resources, gpus=own + lent, processes=ranks)
    return replace(stage, config={**config, "services": services}, resources=resources)


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
    reads = {path for stage in stages for path in stage.reads} | {*READ_BY_ENGINE, *_JUDGED_APART}
    unread = [path for path in sorted(set_paths) if not any(_overlap(path, read) for read in reads)]
    return [
        Problem(f"{path} is set, but no stage of this plan reads it: remove it, or the setting that disables it", path)
        for path in unread
    ]


def _services(experiment: Experiment, stages: Sequence[Stage]) -> list[Problem]:
    """Services that are declared and not used, or used and not declared."""
    declared, problems = list(experiment.services), []
    needed = {name: stage.name for stage in reversed(stages) for name in stage.services}
    for name, stage in needed.items():
        if name not in declared:
            problems.append(Problem(f"stage {stage} needs a service: {unknown_service(name, declared)}", "services"))
    for name in declared:
        if name not in needed:
            message = f"no stage of this plan uses the service {name!r}: remove it, or name it where it is to be used"
            problems.append(Problem(message, f"services.{name}"))
    return problems


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


def _alone(experiment: Experiment, stages: Sequence[Stage]) -> list[Problem]:
    """A launcher of several processes, for stages that run in one."""
    hardware, distributed = experiment.hardware, [stage.name for stage in stages if stage.distributed]
    found = []
    if hardware.launcher != "single" and not distributed:
        method = getattr(experiment.algorithm, "name", "this method")
        found.append(
            Problem(f"every stage of {method} runs in one process: remove it, and take one GPU", "hardware.launcher")
        )
    for stage in stages:
        own = hardware.stages.get(stage.name)
        if (
            own is not None
            and own.launcher != "single"
            and "launcher" in own.model_fields_set
            and not stage.distributed
        ):
            some = f"Those that run in several are {', '.join(distributed)}. " if distributed else ""
            found.append(
                Problem(
                    f"the stage {stage.name!r} runs in one process. {some}Remove it",
                    f"hardware.stages.{stage.name}.launcher",
                )
            )
    return found


def _apart(experiment: Experiment, stages: Sequence[Stage]) -> list[Problem]:
    """Services beside stages of several nodes: they listen on one host, to that host alone."""
    found = []
    for stage in stages:
        names = [*stage.services, *stage.brings]
        if names and _resources(experiment, stage).nodes > 1:
            own = experiment.hardware.stages.get(stage.name)
            said = own is not None and "nodes" in own.model_fields_set
            found.append(
                Problem(
                    f"the stage {stage.name!r} needs the service {names[0]!r}, which its other nodes could not reach: "
                    "services listen to their own host alone. Set nodes: 1",
                    f"hardware.stages.{stage.name}.nodes" if said else "hardware.nodes",
                )
            )
    return found


def _resources(experiment: Experiment, stage: Stage) -> Resources:
    """What the planner fixed, else the spec's hardware; then the spec's word on this stage."""
    hardware = experiment.hardware
    resources = stage.resources
    light = resources.light
    if resources == Resources(light=light):
        resources = _in_one(replace(Resources(light=light), **_words(hardware, StageHardware.model_fields)), stage)
        if light:
            resources = replace(resources, gpus=0, device="cpu")
    override = hardware.stages.get(stage.name)
    return resources if override is None else replace(resources, **_words(override, override.model_fields_set))


def _in_one(resources: Resources, stage: Stage) -> Resources:
    """The same for a stage whose code runs in one process, where the run's others run in several."""
    if stage.distributed or resources.launcher == "single":
        return resources
    alone = Resources()
    return replace(
        resources,
        launcher=alone.launcher,
        processes=alone.processes,
        nodes=alone.nodes,
        parallel=alone.parallel,
        zero=alone.zero,
        offload=alone.offload,
        gpus=min(resources.gpus, 1),
    )


def _words(hardware: StageHardware, keys: Collection[str]) -> dict[str, Any]:
    """What a block of hardware says, as fields of `Resources`."""
    said = {key: getattr(hardware, key) for key in keys}
    return {f"{key}_s" if key in ("timeout", "stall_timeout") else key: value for key, value in said.items()}
