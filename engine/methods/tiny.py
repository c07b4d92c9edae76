"""The tiny twin of an experiment: the same plan at a size that two CPU cores finish in under a minute.

Same dataset and functions, same stages, same code path; a randomly initialised small model of the same
family (or the scratch model, hardly warmed up) and two steps a stage. It finds what is wrong with a spec
before a GPU is leased. What "two steps" means for a method is told by its `plan.tiny`.
"""

from __future__ import annotations

from dataclasses import replace

from engine.methods.registry import METHODS
from engine.spec.experiment import Experiment
from engine.spec.hardware import Hardware
from engine.spec.load import Loaded
from engine.spec.model import Model
from engine.spec.sampler import Sampler
from engine.spec.services import Service
from engine.spec.tracking import Tracking

NAME_LIMIT = 64


def twin(loaded: Loaded) -> Loaded:
    """The loaded spec at twin size; runs of it are called `<name>_tiny`, so that its scores mix with no others."""
    small = tiny_experiment(loaded.experiment)
    return replace(loaded, experiment=small, resolved=small.model_dump(mode="json"))


def tiny_experiment(experiment: Experiment) -> Experiment:
    """The experiment at twin size."""
    method = METHODS[experiment.algorithm.name]  # type: ignore[attr-defined]  # the union guarantees it
    suffix = "_tiny"
    return experiment.model_copy(
        update={
            "name": experiment.name[: NAME_LIMIT - len(suffix)] + suffix,
            "algorithm": method.tiny(experiment.algorithm),
            "model": tiny_model(experiment.model),
            "hardware": Hardware(
                device="cpu", queue=experiment.hardware.queue, threads=experiment.hardware.threads, timeout=600.0
            ),
            "services": {
                name: found.model_copy(update={"gpus": 0}) if isinstance(found, Service) else found
                for name, found in experiment.services.items()
            },
            "tracking": Tracking(),  # a trial is nothing to show
            "evaluation": experiment.evaluation.model_copy(update={"every": 1, "runs_per_item": 2}),
        }
    )


def tiny_model(model: Model) -> Model:
    """A scratch model with two steps of warm-up, or `tiny:<name>`: random weights of the same family.

    `hf` samples from it: vLLM's engine takes longer to start than the twin has, and no model as narrow as this.
    """
    model = model.model_copy(update={"sampler": Sampler()})
    if model.warmup is not None:
        few = min(model.warmup.examples, 64)
        return model.model_copy(
            update={"warmup": model.warmup.model_copy(update={"steps": min(model.warmup.steps, 2), "examples": few})}
        )
    return model if model.name.startswith("tiny:") else model.model_copy(update={"name": f"tiny:{model.name}"})
