"""A plan as one reads it: a tree of stages with what each needs and whether the cache has its answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engine.cli.output import seconds, style

if TYPE_CHECKING:
    from engine.cli.compiling import Compiled
    from engine.plan.stage import Plan, Resources


@dataclass(frozen=True)
class Forecast:
    """What the cache knows about one stage."""

    name: str
    key: str | None
    """None while an input's content is not known."""
    hit: bool
    why: str


def forecast(plan: Plan) -> list[Forecast]:
    """For each stage whether it would be taken from the cache, in the plan's order."""
    from engine.cli.places import existing_store
    from engine.plan.hashing import cache_key
    from engine.store import artifacts

    db = existing_store()
    known: dict[str, str] = {}
    found: list[Forecast] = []
    for stage in plan.stages:
        waiting = [producer for producer in stage.inputs.values() if producer not in known]
        if waiting:
            found.append(Forecast(stage.name, None, False, f"runs after {', '.join(dict.fromkeys(waiting))}"))
            continue
        key = cache_key(stage, plan.seed, {name: known[producer] for name, producer in stage.inputs.items()})
        artifact = None
        if db is not None:
            with db.read() as session:
                artifact = artifacts.cached(session, key)
        if artifact is None:
            found.append(Forecast(stage.name, key, False, "not computed yet"))
        else:
            known[stage.name] = artifact.sha256
            found.append(Forecast(stage.name, key, True, f"in the cache as {artifact.sha256[:12]}"))
    return found


def tree(variant: Compiled, forecasts: list[Forecast]) -> list[str]:
    """The plan as lines."""
    plan, experiment = variant.plan, variant.loaded.experiment
    algorithm = getattr(experiment.algorithm, "name", "")
    changed = f"  {' '.join(variant.loaded.overrides)}" if variant.loaded.overrides else ""
    lines = [f"{style(plan.name, None, bold=True)}  {algorithm} on {experiment.model.name}, seed {plan.seed}{changed}"]
    names = max(len(stage.name) for stage in plan.stages)
    kinds = max(len(stage.kind) for stage in plan.stages)
    for index, (stage, cache) in enumerate(zip(plan.stages, forecasts, strict=True)):
        branch = "└─" if index == len(plan.stages) - 1 else "├─"
        state = style("hit ", "green") if cache.hit else style("miss", "yellow")
        reads = f"  ← {', '.join(dict.fromkeys(stage.inputs.values()))}" if stage.inputs else ""
        what = f"{stage.name:<{names}}  {stage.kind:<{kinds}}  {needs(stage.resources)}"
        lines.append(f"{branch} {what}  {state} {cache.why}{reads}")
    return lines


def needs(resources: Resources) -> str:
    """What a stage asks of a worker, in a few words."""
    parts = [f"{resources.gpus} GPU{'s' if resources.gpus > 1 else ''}" if resources.gpus else resources.device]
    if resources.slots != 1:
        parts.append(f"{resources.slots} slots")
    if resources.launcher != "single":
        how = f"zero {resources.zero}" if resources.launcher == "deepspeed" else resources.parallel
        parts.append(f"{resources.launcher} ×{resources.ranks} ({how})")
    if resources.nodes > 1:
        parts.append(f"{resources.nodes} nodes, each {resources.needs}")
    if resources.queue != "default":
        parts.append(f"queue {resources.queue}")
    if resources.timeout_s is not None:
        parts.append(f"at most {seconds(resources.timeout_s)}")
    return ", ".join(parts)


def as_json(variant: Compiled, forecasts: list[Forecast]) -> dict[str, Any]:
    """The plan as data, with the config that each stage would see."""
    return {
        "name": variant.plan.name,
        "seed": variant.plan.seed,
        "overrides": list(variant.loaded.overrides),
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "version": stage.version,
                "run": stage.run,
                "inputs": dict(stage.inputs),
                "resources": asdict(stage.resources),
                "config": stage.config,
                "extra": stage.extra,
                "cache": {"key": cache.key, "hit": cache.hit, "why": cache.why},
            }
            for stage, cache in zip(variant.plan.stages, forecasts, strict=True)
        ],
    }
