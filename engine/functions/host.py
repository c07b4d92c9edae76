"""The process that runs the user's functions.

Started by `process` with nothing but a channel, a progress word and a pipe for crash reports. It loads the
sources once, then answers one request after another until the channel closes. It imports no part of rlx but
its wire and its sandbox: a host starts in tens of milliseconds. Restarting it, and deciding when, is the
client's business.

Before each call of a user's function the host writes down which one and for which input (the progress word,
shared memory), so that the client can say so even when this process dies or never returns.
"""

from __future__ import annotations

import builtins
import faulthandler
import gc
import io
import math
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any, NoReturn

from engine.functions import sandbox, wire

CODES = {"score_fn": 1, "done_fn": 2, "split_fn": 3, "reply_fn": 4}
"""A function's number in the progress word, which holds 8 × (index of the input) + number; 0 means none yet."""

LOST_CHANNEL = 86
"""Exit status of a host whose descriptors were closed under it."""

_RETURNS = {
    "score_fn": "a finite number",
    "done_fn": "True or False",
    "split_fn": "True or False",
    "reply_fn": "a str",
}


class Overrun(BaseException):
    """A call used up its CPU time. Not an Exception, so that the user's `except Exception` lets it pass."""


class Flood(BaseException):
    """A call printed more than it may."""


class BrokenContract(Exception):
    """A function returned what it must not."""


class Printed(io.TextIOBase):
    """Stands in for stdout and stderr: counts per call, keeps the first characters in all."""

    def __init__(self, limit: int, serial: Callable[[], int]) -> None:
        self._limit, self._serial = limit, serial
        self._call, self._count, self._room = -1, 0, limit
        self.kept: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        call = self._serial()
        if call != self._call:
            self._call, self._count = call, 0
        self._count += len(text)
        if self._room > 0:
            self.kept.append(text[: self._room])
            self._room -= len(self.kept[-1])
        if self._count > self._limit:
            raise Flood
        return len(text)

    def begin(self) -> None:
        """A new request: calls are numbered from the start again."""
        self._call = -1

    def take(self) -> str:
        """What was printed since the last time, as far as kept."""
        if not self.kept:
            return ""
        text = "".join(self.kept)
        self.kept.clear()
        return text


class Host:
    """The user's functions, and the texts that grow under them."""

    def __init__(self, progress: memoryview, call_s: float, load_s: float, output: int) -> None:
        self._progress = progress
        self._call_s, self._load_s, self._output = call_s, load_s, output
        self._functions: dict[str, Callable[..., Any]] = {}
        self._full: dict[int, str] = {}
        self._part: dict[int, str] = {}
        self._armed, self._seen, self._ticks = False, 0, 0
        self.printed = Printed(output, lambda: progress[0])
        self._requests: dict[str, Callable[..., Any]] = {
            "load": self.load,
            "score": self.score,
            "done": self.done,
            "split": self.split,
            "reply": self.reply,
            "extend": self.extend,
            "restore": self.restore,
        }

    def answer(self, request: Sequence[Any]) -> list[Any]:
        """[True, result, printed] or [False, report, printed]. The user's code cannot make it raise."""
        name, *arguments = request
        ok: bool
        self.printed.begin()
        try:
            self._arm(self._load_s if name == "load" else self._call_s)
            try:
                ok, result = True, self._requests[name](*arguments)
            finally:
                self._disarm()
        except BaseException as error:  # noqa: BLE001 - SystemExit and all else that a user's function may raise
            ok, result = False, self._report(error)
        return [ok, result, self.printed.take()]

    def load(self, sources: dict[str, str | None]) -> None:
        """Run the sources and find the functions in them."""
        codes = {name: self._compile(name, source) for name, source in sources.items() if source is not None}
        shared, alone = _namespace(), _namespace()
        # As in recurve, score_fn and done_fn are one module and split_fn another. reply_fn sees a copy of the first.
        for name in ("score_fn", "done_fn", "split_fn", "reply_fn"):
            space = {"split_fn": alone, "reply_fn": dict(shared)}.get(name, shared)
            if name in codes:
                self._progress[0] = CODES[name]
                exec(codes[name], space)
                if not callable(space.get(name)):
                    raise BrokenContract(f"the source defines no function of the name {name}")
                self._functions[name] = space[name]

    def score(self, texts: Sequence[str], answers: Sequence[Any]) -> list[float]:
        function, progress, results = self._functions["score_fn"], self._progress, []
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            progress[0] = 8 * index + 1
            value = function(text, answer)
            if type(value) is not float:
                if not isinstance(value, (float, int)):
                    self._refuse("score_fn", value)
                value = _as_float(value)
            if not math.isfinite(value):
                raise BrokenContract(f"returned {value}; score_fn must return a finite number")
            results.append(value)
        return results

    def done(self, texts: Sequence[str]) -> list[bool]:
        return self._verdicts("done_fn", texts)

    def split(self, outputs: Sequence[str]) -> list[bool]:
        return self._verdicts("split_fn", outputs)

    def reply(self, texts: Sequence[str], answers: Sequence[Any]) -> list[str]:
        function, progress, results = self._functions["reply_fn"], self._progress, []
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            progress[0] = 8 * index + 4
            value = function(text, answer)
            if type(value) is not str:
                if not isinstance(value, str):
                    self._refuse("reply_fn", value)
                value = str.__str__(value)
            if len(value) > self._output:
                raise BrokenContract(f"returned {len(value)} characters; a reply may have {self._output}")
            results.append(value)
        return results

    def extend(
        self,
        rows: Sequence[int],
        pieces: Sequence[str],
        opened: Iterable[tuple[str, Sequence[int]]],
        closed: Iterable[int],
    ) -> bytes:
        """Close and open rows, append one piece to each of `rows`, ask split then done; a byte a row."""
        full, part, progress = self._full, self._part, self._progress
        for row in closed:
            full.pop(row, None)
            part.pop(row, None)
        for context, numbers in opened:
            for row in numbers:
                full[row], part[row] = context, ""
        for row, piece in zip(rows, pieces, strict=True):
            full[row] += piece
            part[row] += piece
        flags = bytearray(len(rows))
        split, done = self._functions.get("split_fn"), self._functions.get("done_fn")
        for index, row in enumerate(rows):
            if split is not None:
                progress[0] = 8 * index + 3
                value = split(part[row])
                if value is True:
                    flags[index] = 1
                elif value is not False:
                    self._refuse("split_fn", value)
            if done is not None:
                progress[0] = 8 * index + 2
                value = done(full[row])
                if value is True:
                    flags[index] |= 2
                elif value is not False:
                    self._refuse("done_fn", value)
        return bytes(flags)

    def restore(self, rows: Iterable[tuple[int, str, str]]) -> None:
        """Take over rows from an earlier host: number, context, text of the utterance so far."""
        for row, context, text in rows:
            self._full[row], self._part[row] = context + text, text

    def _verdicts(self, name: str, texts: Sequence[str]) -> list[bool]:
        function, progress, code, results = self._functions[name], self._progress, CODES[name], []
        for index, text in enumerate(texts):
            progress[0] = 8 * index + code
            value = function(text)
            if value is not True and value is not False:
                self._refuse(name, value)
            results.append(value)
        return results

    def _compile(self, name: str, source: str) -> CodeType:
        self._progress[0] = CODES[name]
        return compile(source, f"<{name}>", "exec", dont_inherit=True)

    def _refuse(self, name: str, value: Any) -> NoReturn:
        shown = f"a {type(value).__name__}"
        if value is None:
            shown = "None (is a `return` missing?)"
        elif type(value) is str or (type(value) is int and abs(value) < 1 << 64):
            shown = f"the {type(value).__name__} {value!r:.100}"
        raise BrokenContract(f"returned {shown}; {name} must return {_RETURNS[name]}")

    def _arm(self, seconds: float) -> None:
        self._armed, self._seen, self._ticks = True, self._progress[0], 0
        signal.setitimer(signal.ITIMER_PROF, seconds / 4, seconds / 4)

    def _disarm(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)

    def tick(self, _signal: int, _frame: FrameType | None) -> None:
        """A quarter of a call's CPU time has passed; the fourth in the same call ends it."""
        if not self._armed:
            return
        serial = self._progress[0]
        self._ticks = self._ticks + 1 if serial == self._seen else 0
        self._seen = serial
        if self._ticks >= 4:
            raise Overrun

    def _report(self, error: BaseException) -> dict[str, Any]:
        """What happened, as data: kind, progress word, message, line in the function's own source."""
        serial = self._progress[0]
        name = next((name for name, code in CODES.items() if code == serial % 8), "")
        line = _line(error, name)
        if line is None and isinstance(error, BrokenContract):
            line = _first_line(self._functions.get(name), name)
        match error:
            case Overrun():
                kind, message = "overrun", "used up its CPU time"
            case Flood():
                kind, message = "flood", f"printed more than {self._output} characters in one call"
            case BrokenContract():
                kind, message = "contract", str(error)
            case MemoryError():
                kind, message = "memory", "ran out of memory"
            case RecursionError():
                kind, message = "raised", "calls itself without end (RecursionError)"
            case SystemExit():
                kind, message = "raised", "tried to exit; it must return instead"
            case SyntaxError():
                kind, message = "raised", f"is not valid Python: {error.msg}"
            case _:
                kind, message = "raised", f"raised {_described(error)}"
        return {"kind": kind, "serial": serial, "message": message, "line": line}


def _namespace() -> dict[str, Any]:
    return {"__name__": "dataset", "__builtins__": builtins}


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _described(error: BaseException) -> str:
    try:
        text = str(error)[:500]
    except BaseException:  # noqa: BLE001 - the exception's own __str__ is the user's code too
        text = "(its message cannot be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException, name: str) -> int | None:
    """The innermost line of the named function's source that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename == f"<{name}>":
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == f"<{name}>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _first_line(function: Any, name: str) -> int | None:
    """Where the function is defined, if that is its own source."""
    code = getattr(function, "__code__", None)
    return code.co_firstlineno if code is not None and code.co_filename == f"<{name}>" else None


def main(arguments: Sequence[str]) -> None:
    """Serve until the channel closes. Arguments: channel, progress, reports, parent, memory, call_s, load_s, output."""
    channel_fd, progress_fd, reports_fd, parent, memory = map(int, arguments[:5])
    call_s, load_s, output = float(arguments[5]), float(arguments[6]), int(arguments[7])
    sandbox.die_with(parent)
    faulthandler.enable(file=reports_fd, all_threads=False)
    faulthandler.register(signal.SIGUSR1, file=reports_fd, all_threads=True)  # a supervisor asks where we stand
    channel = socket.socket(fileno=channel_fd)
    progress = memoryview(mmap.mmap(progress_fd, mmap.PAGESIZE)).cast("Q")
    os.close(progress_fd)
    host = Host(progress, call_s, load_s, output)
    signal.signal(signal.SIGPROF, host.tick)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr = host.printed
    os.dup2(1, 2)  # until here, stderr led to the crash report
    os.environ.clear()
    wire.send(channel, sandbox.confine(memory))
    reader = wire.Reader(channel)
    gc.freeze()
    while True:
        try:
            request = reader.read()
        except EOFError:
            os._exit(0)
        except OSError:
            os._exit(LOST_CHANNEL)
        reply = host.answer(request)
        try:
            wire.send(channel, reply)
        except OSError:
            os._exit(LOST_CHANNEL)
