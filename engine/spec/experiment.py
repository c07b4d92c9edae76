"""A whole experiment, as validated. The methods' own configs are handed in, so that this layer knows none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, create_model, model_validator

from engine.errors import OWN_FAULT, Cause
from engine.spec.base import Duration, SpecModel, complaint
from engine.spec.dataset import Dataset
from engine.spec.hardware import Hardware
from engine.spec.model import Model
from engine.spec.services import SCORING, AnyService, ServiceName, unknown_service
from engine.spec.tracking import Tracking


class EvaluationPlan(SpecModel):
    """When and how often the policy is evaluated."""

    every: int = Field(10, ge=1)
    """Iterations between evaluations; there is one before the first and one after the last, too."""
    runs_per_item: int = Field(10, ge=1)
    """Independent episodes of each item."""
    splits: tuple[str, ...] | None = Field(None, min_length=1)
    """Which splits to evaluate on; empty: all of them."""


class Retries(SpecModel):
    """How often a stage is tried again after a failure that is not the spec's own.

    A cause that has a number here is counted by itself: `lost: 10` allows ten losses, whatever else fails.
    """

    max_attempts: int = Field(3, ge=1, le=100)
    """Attempts at a stage, the first included, over all causes without a number of their own."""
    backoff: Duration | None = None
    """Wait before the first retry; it doubles each time. Empty: by cause, from nothing after a loss to 30 s."""
    max_backoff: Duration = 600.0
    """Longest wait; up to a quarter is added, so that stages that failed together do not come back together."""
    oom: int | None = Field(None, ge=0, le=1000)
    """Retries after memory ran out."""
    hang: int | None = Field(None, ge=0, le=1000)
    """Retries after a stage stood still, or was not through in its time."""
    service_down: int | None = Field(None, ge=0, le=1000)
    """Retries after something that the stage needs did not answer."""
    disk: int | None = Field(None, ge=0, le=1000)
    """Retries after a disk was full."""
    lost: int | None = Field(None, ge=0, le=1000)
    """Retries after the stage's process or its worker died."""
    internal: int | None = Field(None, ge=0, le=1000)
    """Retries after a failure that has no better name."""
    quarantine: int | None = Field(3, ge=2, le=1000)
    """Workers in a row that may die under a stage before it is set aside, the last one with it alone; empty: never."""

    @model_validator(mode="before")
    @classmethod
    def _never_for_its_own_fault(cls, said: Any) -> Any:
        for cause in OWN_FAULT if isinstance(said, Mapping) else ():
            if cause in said:
                raise complaint(
                    f"{cause} is never retried: what is wrong with a spec, its data, its functions or its imports is "
                    "wrong the next time too. Remove it",
                    at=cause,
                )
        if isinstance(said, Mapping) and Cause.PREEMPTED in said:
            raise complaint("preempted costs no attempt, and is always retried. Remove it", at=Cause.PREEMPTED)
        return said


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
    services: Mapping[ServiceName, AnyService] = Field(default_factory=dict)
    """What stages need beside them, by name, such as `reader: {kind: vllm, model: org/name}`."""
    evaluation: EvaluationPlan = EvaluationPlan()
    """When and how often the policy is evaluated."""
    retries: Retries = Retries()
    """What happens after a failure."""
    tracking: Tracking = Tracking()
    """Where else its metrics are shown while it runs."""
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
    return create_model(
        "Experiment",
        __base__=Experiment,
        __doc__=Experiment.__doc__,
        __module__=__name__,
        algorithm=(annotation, ...),
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
        if getattr(dataset, name) is None and not (name == "score_fn" and dataset.scores):
            yield "dataset", f"{method} needs dataset.{name}: add it"
    yield from _scoring(experiment)
    if not getattr(experiment.algorithm, "takes_messages", False):
        for place, item in dataset.inline_items():
            if item.messages is not None:
                yield place, f"{method} begins with a `prompt`: it learns from no conversation"
    refuses = getattr(experiment.algorithm, "refuses", None)
    if refuses is not None:
        yield from refuses(dataset)


def _scoring(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """What is wrong with the service that is to score."""
    name, services = experiment.dataset.score_by, experiment.services
    if name is None:
        return
    if name not in services:
        yield "dataset.score_by", unknown_service(name, list(services))
    elif services[name].kind not in SCORING:
        kinds = " or ".join(SCORING)
        yield "dataset.score_by", f"the service {name!r} is of kind {services[name].kind}: only {kinds} scores texts"
