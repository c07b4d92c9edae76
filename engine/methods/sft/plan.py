"""SFT's stages. Light: names code, imports none."""

from __future__ import annotations

from dataclasses import replace

from engine.methods.sft.config import DRAWN, SFT
from engine.methods.supervised.plan import course_stages, two_steps
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of an experiment. A new model's tokenizer learns from the text, wherever that comes from."""
    model, *others = course_stages("sft", sampling=("evaluate",) if experiment.dataset.score_fn else ())
    return [replace(model, reads=(*model.reads, "algorithm.data")), *others]


def tiny(config: SFT) -> SFT:
    """The same at two steps, with few texts where they are drawn."""
    small = two_steps(config)
    if small.data is None or (small.data.file is not None and small.data.examples is None):
        return small
    few = min(small.data.examples or DRAWN, 64)
    return small.model_copy(update={"data": small.data.model_copy(update={"examples": few})})
