"""Trying the user's functions before anything is queued: on probes, in the host, against their contract.

A broken contract is a problem and stops the submission; what merely looks wrong (a reward that an echo of the
prompt wins) is a warning. How a conversation is rendered for a model is the caller's to say.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.errors import FunctionError, Problem, SpecError
from engine.functions.client import FunctionHost, open_functions
from engine.functions.process import HostProcess
from engine.functions.sources import FUNCTIONS, Limits, Sources

_ITEMS = 8
_REPEATS = 16
_SLOW_S = 1e-3
"""Above this a function that is asked after every token is felt."""
_SUSPECT = ("nothing", "the prompt echoed", "random words", "a very long text", "odd Unicode")
_WORDINGS = ("{}", "{}.", "The answer is {}.", "It is {}.", "It is the {}.")


class Item(Protocol):
    """What a probe needs of a dataset item."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> Any: ...


Render = Callable[[Any, str], str]
"""The whole conversation as `score_fn` gets it, from an item and what the model said."""


@dataclass(frozen=True)
class Report:
    """What the probes found."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    latencies: Mapping[str, float] = field(default_factory=dict)
    """Seconds a call, by function."""

    def check(self) -> None:
        """Raise SpecError where a contract is broken."""
        if self.problems:
            raise SpecError(self.problems)


def chat_render(system_prompt: str = "", main_prompt: str = "") -> Render:
    """A conversation in the style of Llama 3, for where no tokenizer is at hand."""

    def render(item: Item, output: str) -> str:
        user = f"{main_prompt}\n{item.prompt}" if main_prompt else item.prompt
        opening = [("system", system_prompt)] if system_prompt else []
        turns = "".join(f"{_header(role)}{text}<|eot_id|>" for role, text in [*opening, ("user", user)])
        return f"<|begin_of_text|>{turns}{_header('assistant')}{output}"

    return render


def preflight(
    sources: Sources,
    items: Sequence[Item],
    render: Render | None = None,
    *,
    limits: Limits | None = None,
    starts: Mapping[str, tuple[str, int]] | None = None,
    host: HostProcess | None = None,
) -> Report:
    """Probe every function on up to eight of the items, in `host` if one was started.

    `starts` says, by function, in which file and at which line its source begins, so that problems can point there.
    """
    findings = _Findings(starts or {})
    try:
        functions = open_functions(sources, limits, host=host)
    except FunctionError as error:
        findings.broken(error)
        return findings.report({})
    with functions:
        probed = _Probed(functions, sources, render or chat_render(), findings)
        for item in _spread(items):
            probed.try_item(item)
        latencies = probed.latencies(items[0]) if items and not findings.problems else {}
    for name, seconds in latencies.items():
        if name in ("done_fn", "split_fn") and seconds > _SLOW_S:
            findings.warn(f"{name} takes {seconds * 1e3:.1f} ms a call, and is called after every generated token")
    return findings.report(latencies)


class _Findings:
    """Problems, once per function and message, and warnings, once each."""

    def __init__(self, starts: Mapping[str, tuple[str, int]]) -> None:
        self._starts = starts
        self.problems: dict[tuple[str, str], Problem] = {}
        self.warnings: dict[str, None] = {}

    def broken(self, error: FunctionError) -> None:
        file, first = self._starts.get(error.function, (None, None))
        line = first + (error.line or 1) - 1 if first is not None else None
        problem = Problem(str(error), path=f"dataset.{error.function}", file=file, line=line)
        self.problems.setdefault((error.function, error.message), problem)

    def has_broken(self, name: str) -> bool:
        return any(function == name for function, _ in self.problems)

    def warn(self, message: str) -> None:
        self.warnings.setdefault(message)

    def report(self, latencies: Mapping[str, float]) -> Report:
        return Report(tuple(self.problems.values()), tuple(self.warnings), latencies)


class _Probed:
    """The functions under probes. One that broke its contract is not asked again: a loop costs its limit each time."""

    def __init__(self, host: FunctionHost, sources: Sources, render: Render, findings: _Findings) -> None:
        self._host, self._render, self._findings = host, render, findings
        self._present = [name for name in FUNCTIONS if getattr(sources, name) is not None]

    def try_item(self, item: Item) -> None:
        """All functions on all probes of one item, each twice."""
        scores: dict[str, float] = {}
        for name, output in _probes(item):
            text = self._render(item, output)
            score = self._twice("score_fn", text, item.answer)
            if score is not None:
                scores[name] = score
            done = self._twice("done_fn", text)
            if name == "nothing" and done:
                self._findings.warn(
                    "done_fn is true before the model has said a word, so every episode would end at its first token; "
                    "does it look behind the last `assistant`?"
                )
            self._twice("split_fn", output)
            self._twice("reply_fn", text, item.answer)
        if "reply_fn" not in self._present:  # in a game, the first thing said is a move and no answer
            self._judge(scores)

    def latencies(self, item: Item) -> dict[str, float]:
        """Seconds a call on the longest of the ordinary probes, by function."""
        text = self._render(item, item.prompt)
        found = {}
        for name in self._present:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                self._call(name, [item.prompt if name == "split_fn" else text] * _REPEATS, item.answer)
                times.append((time.perf_counter() - start) / _REPEATS)
            found[name] = statistics.median(times)
        return found

    def _twice(self, name: str, text: str, answer: Any = None) -> Any:
        """The function's value, None where it has none to give; that two calls agree is checked."""
        if name not in self._present or self._findings.has_broken(name):
            return None
        try:
            first, second = self._call(name, [text, text], answer)
        except FunctionError as error:
            self._findings.broken(error)
            return None
        if first != second:
            message = f"gives {first!r}, then {second!r} for the same input; a run could not be repeated or resumed"
            self._findings.broken(FunctionError(name, message, None, text))
        return first

    def _call(self, name: str, texts: Sequence[str], answer: Any) -> Sequence[Any]:
        answers = [answer] * len(texts)
        match name:
            case "score_fn":
                return self._host.score(texts, answers)
            case "done_fn":
                return self._host.done(texts)
            case "split_fn":
                return self._host.split(texts)
            case _:
                return self._host.reply(texts, answers)

    def _judge(self, scores: Mapping[str, float]) -> None:
        """Does the gold answer, in any wording, stand out?"""
        golds = [score for name, score in scores.items() if name.startswith("gold")]
        others = {name: scores[name] for name in _SUSPECT if name in scores}
        if not golds or not others:
            return
        gold = max(golds)
        if len({*golds, *others.values()}) == 1:
            self._findings.warn(f"score_fn gives {gold:g} for every probe, the gold answer included")
            return
        winners = [f"{name} {score:g}" for name, score in others.items() if score >= gold]
        if winners:
            self._findings.warn(
                f"score_fn gives the gold answer {gold:g}, and as much or more to: {', '.join(winners)}"
            )


def _probes(item: Item) -> Iterator[tuple[str, str]]:
    """What a model might say, by name."""
    gold = item.answer if isinstance(item.answer, str) else str(item.answer)
    for wording in _WORDINGS:
        yield f"gold as {wording!r}", wording.format(gold)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(40)]
    yield "nothing", ""
    yield "the prompt echoed", item.prompt
    yield "random words", " ".join(words)
    yield "the gold answer cut short", gold[: len(gold) // 2]
    yield "a very long text", " ".join(words) * 400
    yield "the gold answer repeated", f"{gold} " * 200
    yield "odd Unicode", "\x00\ufeff\u202e\u2028 e\u0301 \ufffd \U0001f468\u200d\U0001f469 \udcff \U0010ffff İ ß"


def _spread(items: Sequence[Item]) -> list[Item]:
    """Up to eight items, evenly over the dataset."""
    count = min(_ITEMS, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"
