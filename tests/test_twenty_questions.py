"""The rules of the shipped game, and what its header says of players, by playing it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SPEC = yaml.safe_load((Path(__file__).parents[1] / "specs" / "twenty_questions.yaml").read_text())
DATASET = SPEC["dataset"]
OPENING = "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture(scope="module")
def functions() -> dict[str, Any]:
    space: dict[str, Any] = {}
    for name in ("score_fn", "reply_fn", "done_fn"):
        exec(DATASET[name], space)
    return space


def play(functions: dict[str, Any], answer: str, ask: Callable[[str], str]) -> float:
    """The score of a game in which `ask` gets the last board and answers with a word."""
    text, board = "user\n\n" + DATASET["main_prompt"] + "\n" + OPENING, DATASET["main_prompt"]
    turns = 0
    while turns < 20:
        turns += 1
        text += ask(board) + "?"
        reply = functions["reply_fn"](text, answer)
        assert functions["reply_fn"](text, answer) == reply
        text += f"<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{reply}<|eot_id|>{OPENING}"
        board = reply
        if functions["done_fn"](text):
            break
    return float(functions["score_fn"](text, answer)) - DATASET["turn_cost"] * turns


WORDS = [("small", "big"), ("red", "blue"), ("round", "square"), ("old", "new")]


def test_a_reply_says_yes_or_no_and_all_that_is_known(functions: dict[str, Any]) -> None:
    replies: list[str] = []
    questions = iter(["red", "big", "big", "nonsense", "new", "round"])

    def ask(board: str) -> str:
        replies.append(board)
        return next(questions)

    score = play(functions, "small red square old", ask)

    assert replies[1:] == [
        "Yes: ? red ? ?",
        "No: small red ? ?",
        "No: small red ? ?",
        "No: small red ? ?",
        "No: small red ? old",
    ]
    assert score == pytest.approx(1 - 6 * 0.1)


def test_a_turn_that_the_player_opens_himself_is_no_question(functions: dict[str, Any]) -> None:
    text = "user\n\n" + DATASET["main_prompt"] + "\n" + OPENING + "red" + OPENING + "small?"
    assert functions["reply_fn"](text, "small red square old") == "Yes: small ? ? ?"


def test_a_player_who_gives_up_keeps_the_share_that_he_found(functions: dict[str, Any]) -> None:
    assert play(functions, "small red square old", lambda board: "red") == pytest.approx(0.25 - 20 * 0.1)


def test_the_best_and_the_random_player_score_what_the_header_says(functions: dict[str, Any]) -> None:
    rng = random.Random(0)
    answers = [item["answer"] for item in [*DATASET["items"], *DATASET["splits"]["heldout"]]]

    def careful(board: str) -> str:
        slots = board.split(":")[1].split()
        return WORDS[slots.index("?")][0]

    assert [play(functions, answer, careful) for answer in answers] == pytest.approx([0.6] * 16)
    games = [play(functions, answer, lambda _: rng.choice(rng.choice(WORDS))) for answer in answers * 250]
    # 4 (1 + 1/2 + 1/3 + 1/4) questions on average, and one game in eighty is not finished in twenty.
    assert sum(games) / len(games) == pytest.approx(1 - 0.1 * 25 / 3, abs=0.02)


def test_no_object_is_both_met_and_held_out() -> None:
    met = {item["answer"] for item in DATASET["items"]}
    held_out = {item["answer"] for item in DATASET["splits"]["heldout"]}
    assert (len(met), len(held_out)) == (12, 4)
    assert not met & held_out
