"""All that a stage sees of the engine.

A stage is written against the `StageContext` protocol and runs the same under a worker (`engine_context`)
and under pytest with no store at all (`local`). What a stage reports are the frozen values below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engine.plan.stage import Resources
from engine.runtime.world import World

if TYPE_CHECKING:
    from engine.runtime.trace import Trace

State = Mapping[str, Any]
"""A tree of dicts, lists, tensors, numpy arrays and JSON scalars; never pickled."""

SaveModel = Callable[[Path], None]
"""Writes one Hugging Face directory (weights, config, tokenizer)."""


@dataclass(frozen=True)
class Sample:
    """One generated text or trajectory with its scores."""

    step: int
    text: str
    score: float | None = None
    item: int | None = None
    """Index of the dataset item within its split."""
    split: str = "train"
    kind: str = "episode"
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON details: for ArCHer, `steps`: per decision a list of candidates {text, q, chosen}."""


@dataclass(frozen=True)
class ItemScore:
    """The scores that one dataset item received, one a run."""

    item: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """One metric over one dataset split, with its per-item scores."""

    step: int
    metric: str
    """Such as `score` (the whole policy) or `score/generator` (one sample, no ranker)."""
    items: Sequence[ItemScore]
    split: str = "train"
    functions_hash: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    """Where on the learning curve this was: `scored_episodes`, `generated_tokens`, `seconds`."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint, read back: the step it was taken at, its state, and its directory."""

    step: int
    state: State
    path: Path


@dataclass(frozen=True)
class Address:
    """Where a service is reached while the stage runs."""

    url: str
    """`http://127.0.0.1:…`, or an endpoint's own; of a vllm service with its `/v1`, as OpenAI's clients take it."""
    key: str = field(repr=False)
    """A client shows it as `Authorization: Bearer …`; empty: an endpoint that asks for none."""
    model: str | None = None
    """What a request calls the model, where the service has one."""


class Stops(Protocol):
    """The user's done and split functions over growing texts, one round trip a decoding step."""

    def open(self, row: int, context: str) -> None:
        """Begin an utterance in `row` after `context` (the whole conversation so far, decoded)."""

    def open_many(self, rows: Sequence[int], context: str) -> None:
        """Begin one utterance in each of `rows` after the same context, which is sent once."""

    def extend(self, rows: Sequence[int], pieces: Sequence[str]) -> list[tuple[bool, bool]]:
        """Append one piece of text to each row; returns (split, done) for each, in order."""

    def close(self, rows: Sequence[int]) -> None:
        """Forget these rows."""


class Functions(Protocol):
    """The user's functions, in a process of their own. Any call may raise FunctionError."""

    @property
    def hash(self) -> str:
        """SHA-256 over the functions' sources: the version of the reward."""

    @property
    def has_reply(self) -> bool:
        """Whether the dataset has a `reply_fn`, so that an environment answers after each utterance."""

    def score(self, texts: Sequence[str], answers: Sequence[Any]) -> list[float]: ...

    def done(self, texts: Sequence[str]) -> list[bool]: ...

    def split(self, outputs: Sequence[str]) -> list[bool]: ...

    def reply(self, texts: Sequence[str], answers: Sequence[Any]) -> list[str]: ...

    def stops(self) -> Stops: ...

    def close(self) -> None: ...


class StageContext(Protocol):
    """What a stage is given: its inputs, and the means to report."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The parts of the resolved spec that the stage declared to read, as plain JSON data."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """What the planner decided for this stage."""

    @property
    def seed(self) -> int: ...

    @property
    def rng(self) -> np.random.Generator:
        """A generator seeded from the run's seed and the stage's name; part of no checkpoint by itself."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`; never a device that was not leased."""

    @property
    def resources(self) -> Resources:
        """What the stage was given, and how it is to use it."""

    @property
    def world(self) -> World:
        """The ranks that carry the stage out. All of them read `should_stop`, checkpoint and restore alike."""

    @property
    def inputs(self) -> Mapping[str, Path]:
        """Local, read-only directories of the input artifacts."""

    @property
    def output_dir(self) -> Path:
        """Private and empty at first; what stands in it at the end becomes the stage's artifact."""

    @property
    def functions(self) -> Functions: ...

    @property
    def services(self) -> Mapping[str, Address]:
        """The services that the stage declared to need, healthy since before it began."""

    @property
    def trace(self) -> Trace:
        """The stage's stream of fingerprints: hand it to what draws, samples and learns, and set its `step`."""

    @property
    def should_stop(self) -> bool:
        """True once the stage was asked to stop: checkpoint, then raise `Stopped` (or call `stop_here`)."""

    def spent(self, activity: str) -> AbstractContextManager[None]:
        """`with ctx.spent("generation"):` counts the block's time as one of `store.spent.ACTIVITIES`.

        The sampler, the learner, the user's functions and checkpoints count themselves.
        """

    def log(self, step: int, metrics: Mapping[str, float] | None = None, **more: float) -> None:
        """Record metrics at `step`. Never blocks on the store and never raises."""

    def progress(self, done: float, total: float, note: str = "") -> None: ...

    def sample(self, *samples: Sample) -> None: ...

    def evaluation(self, evaluation: Evaluation) -> None: ...

    def checkpoint(
        self,
        step: int,
        state: State,
        *,
        models: Mapping[str, SaveModel] | None = None,
        labels: Sequence[str] = ("latest",),
    ) -> Path:
        """Write one complete training state, atomically; `models` become Hugging Face directories inside it.

        What is reported before it stands; what is reported after the newest one is struck out when the stage
        resumes from it, and is to be reported again.
        Labels are `latest` and `best`; a label moves to the newest checkpoint that claims it. Returns its folder.
        """

    def restore(self) -> Restored | None:
        """The newest complete checkpoint of this stage, or None. Raises ResumeError for a damaged one."""


class Stopped(Exception):
    """Raised by a stage that has checkpointed and leaves because `should_stop` became true."""
