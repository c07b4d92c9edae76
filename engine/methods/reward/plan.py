"""The stages of a reward model. Light: names code, imports none."""

from __future__ import annotations

from engine.methods.supervised.plan import course_stages, two_steps
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of an experiment."""
    return course_stages("reward")


tiny = two_steps
