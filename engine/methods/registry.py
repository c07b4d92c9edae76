"""The methods that rlx knows: for each, what a spec may say about it and the stages it asks for.

Light: importing this never imports torch. The heavy stage modules are named by dotted path in the plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from engine.methods.archer import config as archer_config
from engine.methods.archer import plan as archer_plan
from engine.methods.ppo import config as ppo_config
from engine.methods.ppo import plan as ppo_plan
from engine.methods.reinforce import config as reinforce_config
from engine.methods.reinforce import plan as reinforce_plan
from engine.methods.reward import config as reward_config
from engine.methods.reward import plan as reward_plan
from engine.methods.sft import config as sft_config
from engine.methods.sft import plan as sft_plan
from engine.plan.compile import compile_plan
from engine.plan.stage import Plan, Stage
from engine.spec.base import SpecModel
from engine.spec.experiment import Experiment


@dataclass(frozen=True)
class Method:
    """One method: its name in `algorithm.name`, its config, its planner, and its config at twin size."""

    name: str
    config: type[SpecModel]
    stages: Callable[[Experiment], list[Stage]]
    tiny: Callable[[Any], SpecModel]
    """The same algorithm at two steps a stage, for `--tiny`."""


def _method(config: type[SpecModel], plan: ModuleType) -> Method:
    return Method(name=config.model_fields["name"].default, config=config, stages=plan.stages, tiny=plan.tiny)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        _method(archer_config.Archer, archer_plan),
        _method(ppo_config.PPO, ppo_plan),
        _method(reinforce_config.Reinforce, reinforce_plan),
        _method(reward_config.Reward, reward_plan),
        _method(sft_config.SFT, sft_plan),
    )
}


def configs() -> dict[str, type[SpecModel]]:
    """Each method's config, for `experiment_type` and the schema."""
    return {name: method.config for name, method in METHODS.items()}


def plan(experiment: Experiment, set_paths: frozenset[str] = frozenset()) -> Plan:
    """The plan of an experiment, by its method. Raises SpecError for fields that no stage reads."""
    method = METHODS[experiment.algorithm.name]  # type: ignore[attr-defined]  # the union guarantees it
    stages = [_scored(stage, experiment.dataset.score_by) for stage in method.stages(experiment)]
    return compile_plan(experiment, stages, set_paths)


def _scored(stage: Stage, service: str | None) -> Stage:
    """The stage beside the service that scores, if one does and the stage asks for scores: one that makes no model."""
    if service is None or "dataset" not in stage.reads or stage.kind.endswith(".prepare"):
        return stage
    return replace(stage, services=(*stage.services, service))
