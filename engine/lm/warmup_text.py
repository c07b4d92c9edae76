"""Conversations made from the text that a spec declares: what a scratch model reads before it is of any use, or SFT.

Templates with weighted alternatives, a file of answers, or turns of a game that the dataset's own
`reply_fn` plays. Every draw comes from one seed. Training on the result is the callers' part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import DataError, SpecError
from engine.runtime.context import Functions
from engine.spec.text import TextSource

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Task:
    """One dataset item as the warm-up sees it."""

    user: str
    """The user's message in full."""
    answer: Any


@dataclass(frozen=True)
class Turn:
    """One utterance of the assistant, and what the environment said to it (None where the talk ended)."""

    said: str
    reply: str | None = None


@dataclass(frozen=True)
class Conversation:
    """One example: the user's message, then the turns."""

    user: str
    turns: tuple[Turn, ...]


class Weighted:
    """Alternatives of which one is drawn with its weight's probability."""

    def __init__(self, options: Sequence[str] | Mapping[str, float], where: str) -> None:
        weights = options if isinstance(options, Mapping) else dict.fromkeys(options, 1.0)
        total = float(sum(weights.values()))
        if not weights or total <= 0 or min(weights.values()) < 0:
            raise SpecError(f"{where} needs alternatives whose weights are not negative and not all 0.")
        self._texts = list(weights)
        self._bounds = np.cumsum([weight / total for weight in weights.values()])

    def draw(self, rng: np.random.Generator) -> str:
        """One of the alternatives."""
        index = int(np.searchsorted(self._bounds, rng.random(), side="right"))
        return self._texts[min(index, len(self._texts) - 1)]


class Filler:
    """Fills `{slot}`s of templates, each occurrence with a draw of its own. `block` is where in the spec they stand."""

    def __init__(self, slots: Mapping[str, Sequence[str] | Mapping[str, float]], block: str) -> None:
        self._block = block
        self._slots = {name: Weighted(options, f"{block}.slots.{name}") for name, options in slots.items()}

    def fill(self, template: str, rng: np.random.Generator) -> str:
        """The template with every slot filled. Raises SpecError for a slot that is not declared."""
        return _SLOT.sub(lambda match: self._slot(match.group(1)).draw(rng), template)

    def _slot(self, name: str) -> Weighted:
        if name not in self._slots:
            known = ", ".join(sorted(self._slots)) or "none"
            raise SpecError(f"{self._block}: the template asks for {{{name}}}, but slots declares {known}.")
        return self._slots[name]


def conversations(
    source: TextSource,
    tasks: Sequence[Task],
    *,
    examples: int | None,
    opening: Mapping[str, str],
    bridge: Callable[[str], str],
    functions: Functions | None,
    rng: np.random.Generator,
) -> list[Conversation]:
    """So many conversations about tasks drawn uniformly; for None every answer of the source's file, once.

    `opening[user]` is the rendered beginning of a conversation and `bridge(reply)` the rendered text from the
    end of an utterance to the next one: what `reply_fn` and `done_fn` read around the utterances.
    """
    if source.file is not None:
        return _of_file(source, source.file, tasks, examples, rng)
    if examples is None:
        raise SpecError(f"{source.block}.examples: say how many texts are drawn")
    drawn = _drawn(source, tasks, examples, rng)
    filler = Filler(source.slots, source.block)
    if source.template is not None:
        return [Conversation(task.user, (Turn(filler.fill(source.template, rng)),)) for task in drawn]
    if source.utterances is None:
        raise SpecError(f"{source.block} needs exactly one of template, utterances and file.")
    if functions is None:
        raise SpecError(f"{source.block}.utterances needs the dataset's functions.")
    return _played(source, drawn, opening, bridge, functions, filler, rng)


def _drawn(source: TextSource, tasks: Sequence[Task], count: int, rng: np.random.Generator) -> list[Task]:
    if not tasks:
        raise SpecError(f"{source.block} needs items that begin with a `prompt`: what it has is said after one of them")
    return [tasks[int(index)] for index in rng.integers(len(tasks), size=count)]


def _of_file(
    source: TextSource, file: str, tasks: Sequence[Task], examples: int | None, rng: np.random.Generator
) -> list[Conversation]:
    """Answers of the file, drawn with replacement or each once, after its own prompt or that of a task."""
    answers = read_answers(Path(file), source.block)
    users = [""] * (examples or len(answers))
    if tasks or any(user is None for user, _ in answers):
        users = [task.user for task in _drawn(source, tasks, len(users), rng)]
    chosen = answers if examples is None else [answers[int(i)] for i in rng.integers(len(answers), size=examples)]
    return [
        Conversation(user if own is None else own, (Turn(text),))
        for user, (own, text) in zip(users, chosen, strict=True)
    ]


def _played(
    source: TextSource,
    tasks: Sequence[Task],
    opening: Mapping[str, str],
    bridge: Callable[[str], str],
    functions: Functions,
    filler: Filler,
    rng: np.random.Generator,
) -> list[Conversation]:
    """Games of random utterances, all played side by side, one call of each function a turn."""
    utterances = Weighted(source.utterances or {}, f"{source.block}.utterances")
    texts = [opening[task.user] for task in tasks]
    turns: list[list[Turn]] = [[] for _ in tasks]
    playing = list(range(len(tasks)))
    for number in range(source.turns):
        if not playing:
            break
        said = [filler.fill(utterances.draw(rng), rng) for _ in playing]
        for game, text in zip(playing, said, strict=True):
            texts[game] += text
            turns[game].append(Turn(text))
        done = functions.done([texts[game] for game in playing])
        playing = [game for game, over in zip(playing, done, strict=True) if not over]
        if not functions.has_reply or number + 1 == source.turns:
            break
        replies = functions.reply([texts[game] for game in playing], [tasks[game].answer for game in playing])
        for game, reply in zip(playing, replies, strict=True):
            turns[game][-1] = Turn(turns[game][-1].said, reply)
            texts[game] += bridge(reply)
        over = functions.done([texts[game] for game in playing])
        playing = [game for game, ended in zip(playing, over, strict=True) if not ended]
    return [Conversation(task.user, tuple(done)) for task, done in zip(tasks, turns, strict=True)]


def read_answers(path: Path, block: str = "model.warmup") -> list[tuple[str | None, str]]:
    """(user message or None, answer) pairs of a file: `.jsonl` with `completion` and maybe `prompt`, else plain
    text whose answers are separated by blank lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{block}.file: cannot read {path}: {error}") from error
    if path.suffix != ".jsonl":
        found: list[tuple[str | None, str]] = [(None, part.strip("\n")) for part in re.split(r"\n\s*\n", text)]
        found = [(user, answer) for user, answer in found if answer.strip()]
    else:
        found = [_row(line, f"{path}:{i}") for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not found:
        raise DataError(f"{block}.file: {path} holds no answers.")
    return found


def _row(line: str, where: str) -> tuple[str | None, str]:
    try:
        row = json.loads(line)
        if "messages" in row:
            raise DataError(f"{where} is a whole conversation: name this file as dataset.items, from which sft learns")
        answer, user = row["completion"], row.get("prompt")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: expected an object with a `completion`: {error}") from error
    if not isinstance(answer, str) or not (user is None or isinstance(user, str)):
        raise DataError(f"{where}: `completion` and `prompt` must be text.")
    return user, answer
