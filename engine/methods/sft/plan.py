"""SFT's stages. Light: names code, imports none."""

from __future__ import annotations

from engine.methods.supervised.plan import course_stages, two_steps
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of an experiment."""
    return course_stages("sft", sampling=("evaluate",) if experiment.dataset.score_fn else ())


tiny = two_steps
