"""Every error a user of rlx can meet, as one tree.

A class says three things about itself: the exit code that the command line earns by it, the cause code
that a failed stage is stored under, and whether trying again can help. The message says what is wrong,
where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Cause(StrEnum):
    """Why a stage failed; the retry policy and the suggested next step follow from it."""

    OOM = "oom"
    HANG = "hang"
    REWARD_ERROR = "reward_error"
    DATA_ERROR = "data_error"
    SPEC_ERROR = "spec_error"
    SERVICE_DOWN = "service_down"
    DISK = "disk"
    LOST = "lost"
    PREEMPTED = "preempted"
    IMPORT = "import"
    INTERNAL = "internal"


OWN_FAULT = frozenset({Cause.REWARD_ERROR, Cause.DATA_ERROR, Cause.SPEC_ERROR, Cause.IMPORT})
"""Causes that are never retried: what is wrong with a spec, its data, its functions or its imports is wrong the next
time too."""


class ExitCode:
    """What the `rlx` command exits with (DESIGN section 11)."""

    OK = 0
    RUN_FAILED = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    REFUSED = 5
    INTERNAL = 70
    INTERRUPTED = 130


class RlxError(Exception):
    """Base of all our errors; a bare one is our own fault."""

    exit_code: ClassVar[int] = ExitCode.INTERNAL
    cause: ClassVar[Cause] = Cause.INTERNAL
    retryable: ClassVar[bool] = False


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: what, and where in which file.

    line and column count from 1; None where the problem has no single place (a missing file, an override).
    """

    message: str
    path: str = ""
    """Dotted path of the field, such as `algorithm.ranker.candidates`."""
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.message}" if place else self.message


class SpecError(RlxError):
    """The spec cannot be accepted; carries every problem found, not only the first."""

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.SPEC_ERROR

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = (Problem(problems),)
        elif isinstance(problems, Problem):
            problems = (problems,)
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DataError(RlxError):
    """A dataset file or row cannot be read; the message names the file and the row."""

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.DATA_ERROR


class ModelError(RlxError):
    """A model reference does not lead to a model that we can load."""

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.SPEC_ERROR


class FunctionError(RlxError):
    """A user's function broke its contract: raised, looped, exited, or returned what it must not.

    `line` counts in the function's own source text, from 1; `text` is the start of the input it was given.
    """

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.REWARD_ERROR

    def __init__(self, function: str, message: str, line: int | None = None, text: str | None = None) -> None:
        super().__init__(function, message, line, text)
        self.function, self.message, self.line, self.text = function, message, line, text

    def __str__(self) -> str:
        where = f"{self.function}, line {self.line}" if self.line is not None else self.function
        given = f" (input: {self.text[:200]!r})" if self.text is not None else ""
        return f"{where}: {self.message}{given}"


class NotFound(RlxError):
    """No run, spec, worker or checkpoint answers to that name."""

    exit_code = ExitCode.NOT_FOUND


class Unreachable(RlxError):
    """A database, a broker or an endpoint does not answer."""

    exit_code = ExitCode.UNREACHABLE
    cause = Cause.SERVICE_DOWN
    retryable = True


class ServiceDown(Unreachable):
    """A service that a stage needs did not become healthy, or died; of what was started, with its log's tail."""


class Refused(RlxError):
    """The request is well formed, but the state of things forbids it."""

    exit_code = ExitCode.REFUSED


class StaleAttempt(Refused):
    """A newer attempt at the stage has begun: this one may write nothing more."""


class ResumeError(RlxError):
    """A checkpoint lacks a component, or does not match its manifest: resuming from it would lie."""


class MissingPackage(RlxError):
    """A library that is an extra is not installed; the message says how it is."""

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.IMPORT


class TrackingError(RlxError):
    """A run cannot be mirrored into another tool. The run itself is untouched by that."""

    exit_code = ExitCode.UNREACHABLE
    cause = Cause.SERVICE_DOWN
    retryable = True


class DiskError(RlxError):
    """The disk is full, or the artifact store refused a write."""

    cause = Cause.DISK
    retryable = True


class HungStage(RlxError):
    """A stage made no progress within its deadline."""

    cause = Cause.HANG
    retryable = True
