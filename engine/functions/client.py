"""Asking the user's functions, wherever they run.

`open_functions` gives what stages know as `Functions` and `Stops`. This side keeps a copy of every growing
text, so a host that was killed is replaced and nobody else's state is lost. Running a host is the business of
`process`, what runs in it that of `host`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from engine.errors import DataError, FunctionError
from engine.functions.host import CODES
from engine.functions.process import Died, HostProcess
from engine.functions.sources import FUNCTIONS, Limits, Sources
from engine.log import get_logger
from engine.runtime.stopwatch import spends

log = get_logger(__name__)

_BATCH_TEXTS = 512
_BATCH_CHARACTERS = 8 << 20
_KEPT_INPUT = 2000

Given = Callable[[int, str], str]
"""The text that a function was called with, by the index of the call and the function's name."""

_FLAGS = ((False, False), (True, False), (False, True), (True, True))
_NAMES = {code: name for name, code in CODES.items()}


def open_functions(sources: Sources, limits: Limits | None = None, *, host: HostProcess | None = None) -> FunctionHost:
    """Start a host, or take `host`, and load the sources. Raises FunctionError if they do not load."""
    return FunctionHost(sources, Limits() if limits is None else limits, host)


class FunctionHost:
    """The user's functions in a process of their own; see `runtime.context.Functions`.

    After a FunctionError the object remains usable: a host that had to be killed is replaced at the next call.
    """

    def __init__(self, sources: Sources, limits: Limits, host: HostProcess | None = None) -> None:
        self._sources, self._limits, self._spare = sources, limits, host
        self._hash = sources.hash
        self._lock = threading.Lock()
        self._process: HostProcess | None = None
        self._texts = _Texts()
        self._closed = False
        try:
            self._ask(["restore", []], None)
        except BaseException:
            self.close()
            raise

    @property
    def hash(self) -> str:
        """SHA-256 over the functions' sources."""
        return self._hash

    @property
    def has_reply(self) -> bool:
        """Whether there is a `reply_fn`."""
        return self._sources.reply_fn is not None

    @property
    def confinement(self) -> tuple[str, ...]:
        """What confines the running host, in words."""
        return self._process.confinement() if self._process else ()

    @property
    def pid(self) -> int | None:
        """The host's process, None while there is none."""
        return self._process.pid if self._process else None

    def score(self, texts: Sequence[str], answers: Sequence[Any]) -> list[float]:
        """`score_fn(text, answer)` of each pair."""
        return [float(value) for value in self._each("score", "score_fn", texts, answers)]

    def done(self, texts: Sequence[str]) -> list[bool]:
        """`done_fn` of each whole conversation; always False where the dataset has none."""
        return self._each("done", "done_fn", texts) if self._sources.done_fn is not None else [False] * len(texts)

    def split(self, outputs: Sequence[str]) -> list[bool]:
        """`split_fn` of each utterance's text; always False where the dataset has none."""
        return (
            self._each("split", "split_fn", outputs) if self._sources.split_fn is not None else [False] * len(outputs)
        )

    def reply(self, texts: Sequence[str], answers: Sequence[Any]) -> list[str]:
        """`reply_fn(text, answer)` of each pair: what the environment says next."""
        return self._each("reply", "reply_fn", texts, answers)

    def stops(self) -> Streams:
        """The done and split functions over growing texts; several may be open side by side."""
        return Streams(self)

    def close(self) -> None:
        """End the host. Idempotent."""
        self._closed = True
        self._drop()

    def __enter__(self) -> FunctionHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, request: str, name: str, texts: Sequence[str], answers: Sequence[Any] | None = None) -> list[Any]:
        """The function's value for each text, in as few round trips as their size allows."""
        if getattr(self._sources, name) is None:
            raise FunctionError(name, "the dataset has no such function")
        if answers is not None and len(answers) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(answers)} answers")
        results: list[Any] = []
        start = 0
        while start < len(texts):
            end, size = start, 0
            while end < len(texts) and end - start < _BATCH_TEXTS and (end == start or size < _BATCH_CHARACTERS):
                size += len(texts[end])
                end += 1
            batch = texts[start:end]
            message = [request, batch] if answers is None else [request, batch, answers[start:end]]
            try:
                results += self._ask(message, partial(_input_of, batch))
            except OverflowError:
                raise DataError(f"{name}: an answer holds an integer beyond 64 bits; write it as text") from None
            start = end
        return results

    def _extend(self, numbers: list[int], pieces: Sequence[str]) -> list[tuple[bool, bool]]:
        texts = self._texts
        opened: dict[str, list[int]] = {}
        for number, context in texts.opened.items():
            opened.setdefault(context, []).append(number)
        request = ["extend", numbers, pieces, list(opened.items()), texts.closed]
        try:
            flags = self._ask(request, lambda index, name: texts.input(numbers[index], name, pieces[index]))
        finally:  # also after an error: the texts have grown, whether or not the functions could judge them
            texts.grow(numbers, pieces)
        return [_FLAGS[flag] for flag in flags]

    @spends("functions")
    def _ask(self, request: list[Any], given: Given | None) -> Any:
        """One round trip, with a new host where there is none. `given` finds a call's input, for the error."""
        with self._lock:
            for attempt in (1, 2):
                try:
                    process = self._process or self._start()
                    ok, result, printed = process.ask(request)
                except Died as death:
                    self._drop()
                    if death.serial == 0 and attempt == 1:  # not during a call: nobody's fault, ask again
                        log.warning(
                            "the host of the user's functions ended between calls", extra={"why": death.message}
                        )
                        continue
                    raise self._error(death.serial, death.message, death.function, death.line, given) from None
                if printed:
                    log.info("printed by the user's functions", extra={"text": printed})
                if ok:
                    return result
                if result["kind"] in ("overrun", "memory"):  # interrupted half-way: its globals are not to be trusted
                    self._drop()
                raise self._error(result["serial"], self._worded(result), None, result["line"], given)
        raise AssertionError("unreachable")

    def _start(self) -> HostProcess:
        """A new host that knows the sources and every open text."""
        if self._closed:
            raise RuntimeError("these functions are closed")
        process, self._spare = self._spare or HostProcess(self._limits), None
        process.confinement()
        self._process = process
        try:
            ok, result, printed = process.ask(["load", {name: getattr(self._sources, name) for name in FUNCTIONS}])
        except Died as death:
            self._drop()
            raise self._error(death.serial, death.message, death.function, death.line, None) from None
        if printed:
            log.info("printed by the user's functions", extra={"text": printed})
        if not ok:
            self._drop()
            raise self._error(result["serial"], self._worded(result, loading=True), None, result["line"], None)
        process.ask(["restore", self._texts.all()])
        return process

    def _drop(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _worded(self, report: dict[str, Any], *, loading: bool = False) -> str:
        limits = self._limits
        match report["kind"]:
            case "overrun":
                return f"took more than {limits.load_s if loading else limits.call_s:g} s of CPU time"
            case "memory":
                return f"ran out of memory (the functions may use {limits.memory >> 20} MiB)"
            case _:
                return str(report["message"])

    def _error(
        self, serial: int, message: str, function: str | None, line: int | None, given: Given | None
    ) -> FunctionError:
        index, code = divmod(serial, 8)
        name, text = _NAMES.get(code, "the user's functions"), None
        if given is not None and code in _NAMES:
            with suppress(IndexError):  # the user's function can reach the progress word, and has
                text = given(index, name)[:_KEPT_INPUT]
        return FunctionError(name, message, line if function in (None, name) else None, text)


def _input_of(batch: Sequence[str], index: int, _function: str) -> str:
    return batch[index]


class _Texts:
    """Our copy of every growing text, by number, and what the host has not been told about them yet."""

    def __init__(self) -> None:
        self.opened: dict[int, str] = {}
        self.closed: list[int] = []
        self._contexts: dict[int, str] = {}
        self._pieces: dict[int, list[str]] = {}
        self._free: list[int] = []

    def open(self, context: str) -> int:
        """A small number for a new text; small numbers take one byte on the wire."""
        number = self._free.pop() if self._free else len(self._contexts)
        self._contexts[number], self._pieces[number] = context, []
        self.opened[number] = context
        return number

    def close(self, number: int) -> None:
        del self._contexts[number], self._pieces[number]
        self._free.append(number)
        if self.opened.pop(number, None) is None:
            self.closed.append(number)

    def grow(self, numbers: Sequence[int], pieces: Sequence[str]) -> None:
        """The host has been told: of what was opened and closed, and of these pieces."""
        if self.opened or self.closed:
            self.opened, self.closed = {}, []
        own = self._pieces
        for number, piece in zip(numbers, pieces, strict=True):
            own[number].append(piece)

    def input(self, number: int, function: str, piece: str) -> str:
        """What the function saw of this text once `piece` had been added."""
        part = "".join(self._pieces[number]) + piece
        return part if function == "split_fn" else self._contexts[number] + part

    def all(self) -> list[tuple[int, str, str]]:
        """Number, context and utterance of each text."""
        return [(number, context, "".join(self._pieces[number])) for number, context in self._contexts.items()]


class Streams:
    """The `Stops` of one generation: rows that the caller numbers, their texts sent once, in increments.

    Opening and closing cost no round trip of their own; they travel with the next `extend`. Not for use by
    several threads at once.
    """

    def __init__(self, host: FunctionHost) -> None:
        self._host = host
        self._numbers: dict[int, int] = {}

    def open(self, row: int, context: str) -> None:
        """Begin an utterance in `row` after `context`; a row that was open begins anew."""
        self.open_many((row,), context)

    def open_many(self, rows: Sequence[int], context: str) -> None:
        """Begin one utterance in each of `rows` after the same context, which is sent once."""
        self.close([row for row in rows if row in self._numbers])
        for row in rows:
            self._numbers[row] = self._host._texts.open(context)

    def extend(self, rows: Sequence[int], pieces: Sequence[str]) -> list[tuple[bool, bool]]:
        """Append one piece to each row; returns (split, done) for each, in order.

        `split_fn` sees the utterance, `done_fn` context and utterance. Both are asked whatever the other says.
        """
        if len(rows) != len(pieces):
            raise ValueError(f"{len(rows)} rows but {len(pieces)} pieces of text")
        if not rows:
            return []
        numbers = self._numbers
        return self._host._extend([numbers[row] for row in rows], pieces)

    def close(self, rows: Sequence[int]) -> None:
        """Forget these rows; unknown ones are ignored."""
        for row in rows:
            number = self._numbers.pop(row, None)
            if number is not None:
                self._host._texts.close(number)
