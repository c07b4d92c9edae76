"""A whole experiment, as validated. The methods' own configs are handed in, so that this layer knows none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, create_model

from engine.spec.base import Duration, SpecModel
from engine.spec.dataset import Dataset
from engine.spec.hardware import Hardware
from engine.spec.model import Model


class EvaluationPlan(SpecModel):
    """When and how often the policy is evaluated."""

    every: int = Field(10, ge=1)
    """Iterations between evaluations; there is one before the first and one after the last, too."""
    runs_per_item: int = Field(10, ge=1)
    """Independent episodes of each item."""
    splits: tuple[str, ...] | None = Field(None, min_length=1)
    """Which splits to evaluate on; empty: all of them."""


class Retries(SpecModel):
    """How often a stage is tried again after a failure that is not the spec's own."""

    max_attempts: int = Field(3, ge=1, le=100)
    """Attempts at a stage, the first included."""
    backoff: Duration = 5.0
    """Wait before the second attempt; it doubles each time."""
    max_backoff: Duration = 600.0
    """Longest wait."""


class Experiment(SpecModel):
    """What a user wants to have run."""

    version: Literal[1]
    """Version of the spec's format."""
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)
    """Lower-case letters, digits and underscores; runs are called after it."""
    description: str = ""
    """A line on what this is for."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random."""
    dataset: Dataset
    """What the model is asked, and how it is scored."""
    algorithm: SerializeAsAny[SpecModel]
    """Which method trains the model, and its settings."""
    model: Model
    """The language model that is trained."""
    hardware: Hardware = Hardware()
    """What the run may use."""
    evaluation: EvaluationPlan = EvaluationPlan()
    """When and how often the policy is evaluated."""
    retries: Retries = Retries()
    """What happens after a failure."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Higher goes first in the queue."""
    tags: tuple[str, ...] = ()
    """Words to find the run by."""
    notes: str = ""
    """Anything you want to remember about it."""


@lru_cache(maxsize=16)
def _experiment_type(methods: tuple[tuple[str, type[SpecModel]], ...]) -> type[Experiment]:
    configs = [config for _, config in methods]
    annotation: Any = reduce(or_, configs)
    if len(configs) > 1:
        annotation = Annotated[annotation, Field(discriminator="name")]
    description = Experiment.model_fields["algorithm"].description
    return create_model(
        "Experiment",
        __base__=Experiment,
        __doc__=Experiment.__doc__,
        __module__=__name__,
        algorithm=(annotation, Field(description=description)),
    )


def experiment_type(methods: Mapping[str, type[SpecModel]]) -> type[Experiment]:
    """The experiment whose `algorithm` is one of these configs, told apart by their `name`."""
    if not methods:
        raise ValueError("an experiment needs at least one method to choose from")
    return _experiment_type(tuple(methods.items()))


def inconsistencies(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """What the blocks of an experiment ask of each other and do not get: (path, what is wrong).

    A method's config says with a class variable `needs` which of the dataset's functions it cannot do without, and
    with a method `refuses(dataset)`, if it has one, what else it cannot work with.
    """
    dataset, warmup = experiment.dataset, experiment.model.warmup
    known = dataset.split_names
    for index, split in enumerate(experiment.evaluation.splits or ()):
        if split not in known:
            close = difflib.get_close_matches(split, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(known)}."
            yield f"evaluation.splits.{index}", f"the dataset has no split called {split!r}. {hint}"
    if warmup is not None and warmup.utterances is not None and dataset.reply_fn is None:
        yield "model.warmup.utterances", "utterances are answered by the dataset's reply_fn, and there is none"
    method = getattr(experiment.algorithm, "name", "this method")
    for name in getattr(experiment.algorithm, "needs", ()):
        if getattr(dataset, name) is None:
            yield "dataset", f"{method} needs dataset.{name}: add it"
    refuses = getattr(experiment.algorithm, "refuses", None)
    if refuses is not None:
        yield from refuses(dataset)
