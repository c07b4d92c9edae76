"""The texts of the seeded store: specs as users write them, episodes with their candidates, one hostile output."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

HOSTILE = (
    '<script>window.pwned = true</script><img src=x onerror="window.pwned = true">\n'
    "# Heading **bold** [link](javascript:alert(1)) :material/home: :red[red]\n"
    "$\\frac{a}{b}$ $$x^2$$ <b>loud</b>\n"
)
"""What a model might write: it must appear on the page as these very characters."""

LANGUAGE_PROMPT = (
    "Create a list of 3 compiled programming languages, with a short description of each on one line. Then, tell me "
    'the best programming language in the form "The best programming language is ____.".'
)

_LANGUAGE = """\
version: 1
name: {name}
description: Teach a small model to prefer one answer.
seed: 0
dataset: {{file: datasets/best_lang.yaml}}
algorithm:
{algorithm}
model:
  name: scratch:llama-nano
  warmup: {{steps: 500, lr: 0.003}}
hardware: {{device: cpu, timeout: 30m}}
evaluation: {{every: 5, runs_per_item: 20}}
"""
_GAME = """\
version: 1
name: twenty_questions
description: Find the object by yes/no questions; every question costs a little.
seed: 0
dataset: {{file: datasets/twenty_questions.yaml}}
algorithm:
  name: archer
  iterations: 60
  ranker: {{candidates: {candidates}, lr: 0.001}}
model:
  name: scratch:llama-nano
  warmup: {{steps: 500, lr: 0.003}}
evaluation: {{every: 5, runs_per_item: 5, splits: [train, heldout]}}
"""


def _archer(candidates: int, extra: str = "") -> str:
    return f"  name: archer\n  iterations: 60\n  ranker: {{candidates: {candidates}, lr: 0.001}}{extra}"


SOURCES = {
    ("best_lang", 1): _LANGUAGE.format(name="best_lang", algorithm=_archer(4)),
    ("best_lang", 2): _LANGUAGE.format(name="best_lang", algorithm=_archer(8)),
    ("best_lang", 3): _LANGUAGE.format(
        name="best_lang", algorithm=_archer(8, "\n  generator: {signal: centred, kl: 0.02}")
    ),
    ("best_lang_reinforce", 1): _LANGUAGE.format(
        name="best_lang_reinforce", algorithm="  name: reinforce\n  iterations: 60\n  lr: 0.0003"
    ),
    ("best_lang_ppo", 1): _LANGUAGE.format(
        name="best_lang_ppo", algorithm="  name: ppo\n  iterations: 60\n  lr: 0.0003"
    ),
    ("twenty_questions", 1): _GAME.format(candidates=4),
    ("twenty_questions", 2): _GAME.format(candidates=8),
}


def resolved(name: str, revision: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The spec as data with overrides applied."""
    spec: dict[str, Any] = copy.deepcopy(yaml.safe_load(SOURCES[name, revision]))
    for override in overrides:
        path, _, value = override.partition("=")
        *parents, leaf = path.split(".")
        at = spec
        for parent in parents:
            at = at[parent]
        at[leaf] = yaml.safe_load(value)
    return spec


_KNOWN = ("C", "Rust", "Go", "Zig", "Fortran", "Haskell", "Swift", "Ada")
_SAID = ("small and close to the machine", "memory safety without a collector", "quick to compile and to read")
_QUESTIONS = (
    "Is it alive?",
    "Can you eat it?",
    "Is it larger than a cat?",
    "Does it have legs?",
    "Is it made of metal?",
)
_OBJECTS = ("an apple", "a violin", "a horse", "a spoon", "a cloud", "a candle")


def episode(rng: np.random.Generator, *, game: bool, skill: float) -> tuple[str, dict[str, Any], float]:
    """One trajectory of a policy with some skill: its text, its candidates with Q-values, its score."""
    return _game(rng, skill) if game else _list(rng, skill)


def _choose(rng: np.random.Generator, texts: Sequence[str], favour: int, skill: float) -> list[dict[str, Any]]:
    q = np.clip(rng.normal(0.35, 0.08, len(texts)), 0.01, 0.99)
    q[favour] = min(0.98, 0.4 + 0.55 * skill + rng.normal(0, 0.03))
    chosen = int(np.argmax(q))
    return [{"text": text, "q": round(float(q[i]), 4), "chosen": i == chosen} for i, text in enumerate(texts)]


def _list(rng: np.random.Generator, skill: float) -> tuple[str, dict[str, Any], float]:
    steps, said = [], ""
    for place in (1, 2, 3):
        names = rng.choice(_KNOWN, 8)
        texts = [f"{place}. {name}: {_SAID[int(rng.integers(3))]}.\n" for name in names]
        steps.append(_choose(rng, texts, int(rng.integers(8)), skill))
        said += next(candidate["text"] for candidate in steps[-1] if candidate["chosen"])
    texts = [f"The best programming language is {name}.\n" for name in ("Rust", *rng.choice(_KNOWN, 7))]
    right = rng.random() < 0.2 + 0.8 * skill
    steps.append(_choose(rng, texts, 0 if right else int(rng.integers(1, 8)), skill))
    said += next(candidate["text"] for candidate in steps[-1] if candidate["chosen"])
    text = f"system\nYou are a helpful assistant.\nuser\n{LANGUAGE_PROMPT}\nassistant\n{said}"
    return text, {"steps": steps, "answer": "Rust"}, float(said.rstrip().endswith("Rust."))


def _game(rng: np.random.Generator, skill: float) -> tuple[str, dict[str, Any], float]:
    answer = str(rng.choice(_OBJECTS))
    turns = int(rng.integers(4, 7))
    steps, text = [], "user\nI am thinking of an object. Find it with yes/no questions.\n"
    for turn in range(turns):
        last = turn == turns - 1
        texts = [f"Is it {name}?" for name in (answer, *rng.choice(_OBJECTS, 5))] if last else list(_QUESTIONS)
        right = rng.random() < 0.2 + 0.7 * skill
        steps.append(_choose(rng, texts, 0 if last and right else int(rng.integers(len(texts))), skill))
        said = next(candidate["text"] for candidate in steps[-1] if candidate["chosen"])
        reply = "Yes, that is it!" if said == f"Is it {answer}?" else ("Yes." if rng.random() < 0.5 else "No.")
        text += f"assistant\n{said}\nuser\n{reply}\n"
    won = text.rstrip().endswith("that is it!")
    return text, {"steps": steps, "answer": answer}, round(max(0.0, 1.0 - 0.05 * turns), 3) if won else 0.0
