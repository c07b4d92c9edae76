"""The services block: what stages need beside them, by name: processes, and endpoints that somebody else runs.

Only described here: `plan.compile` gives each stage those it needs, and `runtime.services` starts them, waits until
they are healthy, and stops them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from engine.spec.base import Duration, SpecModel, complaint
from engine.spec.endpoint import Endpoint
from engine.spec.model import Model

SCORING = ("reward", "command")
"""Kinds that may stand in `dataset.score_by`."""
PLACEHOLDERS = ("host", "port", "key")
_SLOT = re.compile(r"\{(\w+)\}")
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_FROM_ENV = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")
_ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_OURS = {"--host": "the engine's", "--port": "the engine's", "--api-key": "a secret, and the engine's"}
"""Options of `vllm serve` that are not for a spec to set."""


class Service(SpecModel):
    """What every service may say of how it runs; of this only `env` counts in a cache key."""

    gpus: int = Field(0, ge=0)
    """GPUs leased for it on top of the stage's own, the last ones of the lease; the stage does not see them."""
    start_timeout: Duration = 600.0
    """Longest until it is healthy, such as `10m`."""
    keep: Duration | None = None
    """How long it waits, once its stage is through, for the next stage of the run on the same worker that needs it.
    Empty: it ends with its stage."""
    env: Mapping[Annotated[str, Field(pattern=_VARIABLE)], str] = Field(default_factory=dict)
    """Environment variables; `${env:NAME}`, `{host}`, `{port}` and `{key}` are replaced."""

    @field_validator("env")
    @classmethod
    def _known_slots(cls, env: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in env.items():
            _check_slots(text, PLACEHOLDERS, at=name)
        return env


class VLLM(Service):
    """A language model behind vLLM's OpenAI-compatible server."""

    kind: Literal["vllm"]
    """`vllm`."""
    model: str
    """A hub id (`org/name@revision`), a local path, or `run:<handle>@<label>`."""
    lora: str | None = None
    """An adapter to serve on top of the model: a hub id, a path, or `run:<handle>@<label>`."""
    max_length: int | None = Field(None, ge=1)
    """Longest sequence in tokens, prompt included; empty: what the model allows."""
    memory: float | None = Field(None, gt=0, le=1)
    """Share of each GPU's memory that it may take; empty: vLLM's choice."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights."""
    args: tuple[str, ...] = ()
    """More arguments for `vllm serve`, such as `[--max-num-seqs, "64"]`."""

    @field_validator("model", "lora")
    @classmethod
    def _exists(cls, name: str | None) -> str | None:
        return None if name is None else _trained(name)

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        for index, word in enumerate(args):
            option = word.partition("=")[0].replace("_", "-")
            if option in _OURS:
                raise complaint(f"{option} is {_OURS[option]} to choose: leave it out", at=str(index))
        return args


class Reward(Service):
    """A reward model that scores texts over HTTP: `POST /score`."""

    kind: Literal["reward"]
    """`reward`."""
    model: str
    """What the method `reward` has trained (`run:<handle>@<label>`), or any sequence classifier with one output."""
    max_tokens: int = Field(2048, ge=8)
    """Longest text that it reads; of a longer one the end counts."""
    batch_tokens: int = Field(16384, ge=8)
    """Most tokens in one pass over the model."""

    @field_validator("model")
    @classmethod
    def _exists(cls, name: str) -> str:
        return _trained(name)


class Corpus(SpecModel):
    """Passages in a JSONL file: a `text` a line, and if you like an `id` and a `title`."""

    file: str
    """The file, relative to the spec that names it."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """The file's hash. Filled in when the spec is loaded."""


class HTTPRetriever(Service):
    """Passages for queries over HTTP: `POST /search`."""

    kind: Literal["http-retriever"]
    """`http-retriever`."""
    corpus: Corpus | None = None
    """Passages to search by BM25; needs the extra `retrieval`."""
    function: str | None = None
    """In place of a corpus: `module:function` that returns a retriever of your own, with `search(queries, k)`."""
    k1: float = Field(1.5, ge=0)
    """BM25: how soon a word that is repeated counts no more."""
    b: float = Field(0.75, ge=0, le=1)
    """BM25: how much a long passage is held back."""

    @model_validator(mode="after")
    def _one_source(self) -> HTTPRetriever:
        if (self.corpus is None) == (self.function is None):
            raise complaint("a retriever needs one of `corpus` (a JSONL file) and `function` (module:function)")
        if self.function is not None and not _ENTRY.fullmatch(self.function):
            raise complaint(f"{self.function!r} names no function: write package.module:function", at="function")
        return self


class Command(Service):
    """Any server of yours: a command line and a path that answers once it is up."""

    kind: Literal["command"]
    """`command`."""
    argv: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments, not a shell's line; `{host}` and `{port}` say where it is to listen."""
    health: str = Field("/health", pattern=r"^/")
    """A path that answers 200 once it is up."""
    folder: str | None = None
    """Its working directory, relative to the spec; empty: the worker's."""
    version: str = ""
    """Part of the cache key: change it when what the command serves changes."""

    @field_validator("argv")
    @classmethod
    def _no_secret(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        for index, word in enumerate(argv):
            if "{key}" in word or "${env:" in word:
                raise complaint(
                    "everybody on the machine can read a command line: the key is in $RLX_SERVICE_KEY, and other "
                    "secrets go into `env`",
                    at=str(index),
                )
            _check_slots(word, ("host", "port"), at=str(index))
        return argv


class Hosted(Endpoint):
    """A language model behind an OpenAI-compatible server that somebody else runs: nothing is started, and a stage
    begins once it answers."""

    kind: Literal["endpoint"]
    """`endpoint`."""
    health: str = Field("/models", pattern=r"^/")
    """A path below `url` that answers 200. Of `/models` the answer must name the model: write another path for a server
    whose list is not complete."""
    start_timeout: Duration = 60.0
    """Longest that a stage waits for it to answer, such as `5m`."""
    version: str = ""
    """Part of the cache key: change it when what is behind the address changes."""

    @field_validator("key")
    @classmethod
    def _only_its_name(cls, key: str | None) -> str | None:
        if key is not None and not _FROM_ENV.fullmatch(key):
            raise complaint(
                "a spec is stored as it stands: write ${env:NAME}, and export the key in the worker's shell"
            )
        return key


AnyService = Annotated[VLLM | Reward | HTTPRetriever | Command | Hosted, Field(discriminator="kind")]
ServiceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


def unknown_service(name: str, known: Sequence[str]) -> str:
    """What to say of a service that nobody has declared."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"no service is called {name!r}. Did you mean {close[0]!r}?"
    return f"no service is called {name!r}: declare it under `services`" + (
        f", where there are {', '.join(known)}" if known else ""
    )


def _trained(name: str) -> str:
    if name.startswith(("scratch:", "tiny:")):
        raise complaint(f"{name} has learnt nothing yet: a service serves a hub model, a path, or run:<handle>@<label>")
    return Model.leads_somewhere(name)


def _check_slots(text: str, known: Sequence[str], *, at: str) -> None:
    for slot in _SLOT.findall(text):
        if slot not in known:
            close = difflib.get_close_matches(slot, known, n=1, cutoff=0.4)
            hint = f"did you mean {{{close[0]}}}?" if close else f"only {', '.join(f'{{{k}}}' for k in known)} are."
            raise complaint(f"{{{slot}}} is not replaced: {hint}", at=at)
