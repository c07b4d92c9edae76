"""Preflight stops broken contracts and names what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine.errors import SpecError
from engine.functions.preflight import chat_render, preflight
from engine.functions.sources import Limits, Sources


@dataclass(frozen=True)
class Item:
    prompt: str
    answer: Any


ITEMS = [Item("Which language is best?", "Rust"), Item("Which is second?", "Zig")]
GOOD = Sources(
    score_fn="def score_fn(text, answer):\n    return answer in text.split('assistant')[-1]\n",
    done_fn="def done_fn(text):\n    return text.split('assistant')[-1].endswith('.')\n",
    split_fn="def split_fn(output):\n    return '\\n' in output\n",
)


def test_good_functions_pass_and_their_latency_is_told() -> None:
    report = preflight(GOOD, ITEMS)
    report.check()

    assert report.problems == ()
    assert report.warnings == ()
    assert set(report.latencies) == {"score_fn", "done_fn", "split_fn"}
    assert all(seconds > 0 for seconds in report.latencies.values())


def test_an_answer_that_counts_in_one_wording_only_is_no_suspicion() -> None:
    sources = replace(GOOD, score_fn="def score_fn(text, answer):\n    return f'It is the {answer}.' in text\n")

    assert preflight(sources, ITEMS).warnings == ()


@pytest.mark.parametrize(
    "name, code, message",
    [
        ("score_fn", "def score_fn(text, answer):\n    return float('nan')\n", "returned nan"),
        ("score_fn", "def score_fn(text, answer):\n    return 'high'\n", "returned the str 'high'"),
        (
            "score_fn",
            "def score_fn(text, answer):\n    return 1 / len(text.split('\\n\\n')[-1])\n",
            "ZeroDivisionError",
        ),
        ("done_fn", "def done_fn(text):\n    while True: pass\n", "took more than 0.3 s of CPU time"),
        ("split_fn", "def split_fn(output):\n    return output[0] == 'x'\n", "IndexError"),
        ("reply_fn", "def reply_fn(text, answer):\n    return None\n", "returned None"),
        ("done_fn", "def done_fn(text):\n    return text.encode() and True\n", "UnicodeEncodeError"),
        (
            "score_fn",
            "import random\ndef score_fn(text, answer):\n    return random.random()\n",
            "for the same input; a run could not be repeated",
        ),
        ("split_fn", "import nonsense\n", "ModuleNotFoundError"),
    ],
)
def test_a_broken_contract_is_a_problem_of_that_function(name: str, code: str, message: str) -> None:
    report = preflight(replace(GOOD, **{name: code}), ITEMS, limits=Limits(call_s=0.3))

    (problem,) = report.problems
    assert problem.path == f"dataset.{name}"
    assert message in problem.message
    with pytest.raises(SpecError, match=name):
        report.check()


def test_a_game_is_not_expected_to_pay_for_the_gold_answer_as_a_first_move() -> None:
    flat = Sources(score_fn="def score_fn(text, answer):\n    return 0.0\n")
    game = replace(flat, reply_fn="def reply_fn(text, answer):\n    return 'No.'\n")

    assert len(preflight(flat, ITEMS).warnings) == 1
    assert preflight(game, ITEMS).warnings == ()


def test_every_broken_function_is_told_at_once_with_its_place_in_the_file() -> None:
    sources = Sources(
        score_fn="def score_fn(text, answer):\n    x = 1\n    raise KeyError(x)\n",
        done_fn="def done_fn(text):\n    return 'no'\n",
    )
    report = preflight(sources, ITEMS, starts={"score_fn": ("spec.yaml", 10), "done_fn": ("spec.yaml", 20)})

    places = {problem.path: (problem.file, problem.line) for problem in report.problems}
    assert places == {"dataset.score_fn": ("spec.yaml", 12), "dataset.done_fn": ("spec.yaml", 20)}


@pytest.mark.parametrize(
    "name, code, message",
    [
        ("score_fn", "def score_fn(text, answer):\n    return 0.25\n", "gives 0.25 for every probe"),
        ("score_fn", "def score_fn(text, answer):\n    return text.count('best')\n", "the prompt echoed 2"),
        ("score_fn", "def score_fn(text, answer):\n    return len(text)\n", "a very long text"),
        ("done_fn", "def done_fn(text):\n    return '?' in text\n", "before the model has said a word"),
    ],
)
def test_a_suspicion_is_a_warning(name: str, code: str, message: str) -> None:
    report = preflight(replace(GOOD, **{name: code}), ITEMS[:1])

    report.check()
    assert any(message in warning for warning in report.warnings), report.warnings


def test_a_function_too_slow_to_ask_after_every_token() -> None:
    code = """
import time
def done_fn(text):
    start = time.process_time()
    while time.process_time() - start < 0.003:
        pass
    return False
"""
    report = preflight(replace(GOOD, done_fn=code), ITEMS[:1])

    (warning,) = report.warnings
    assert "done_fn takes" in warning
    assert report.latencies["done_fn"] > 0.003


def test_the_conversation_stands_as_a_model_would_see_it() -> None:
    text = chat_render("Be brief.", "Answer.")(ITEMS[0], "Rust")

    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnswer.\nWhich language is best?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nRust"
    )
    assert "system" not in chat_render()(ITEMS[0], "")
