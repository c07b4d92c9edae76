"""The rules of the game, with a real tokenizer and the user's functions in their own process."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from engine.errors import DataError
from engine.functions.client import FunctionHost, open_functions
from engine.functions.sources import Sources
from engine.lm.policy import Policy
from engine.methods.dialogue.environment import Episode, Game, Item, Utterance

TALK = Sources(
    split_fn="def split_fn(output):\n    return '?' in output or '.' in output",
    done_fn="def done_fn(text):\n    return 'over.' in text",
    score_fn="def score_fn(text, answer):\n    return float(text.count(answer))",
    reply_fn="def reply_fn(text, answer):\n    return 'Say it again.' if text.endswith('?') else 'over.'",
)


@pytest.fixture(scope="module")
def alone() -> Iterator[FunctionHost]:
    with open_functions(Sources(TALK.score_fn, TALK.done_fn, TALK.split_fn)) as host:
        yield host


@pytest.fixture(scope="module")
def answered() -> Iterator[FunctionHost]:
    with open_functions(TALK) as host:
        yield host


def game(policy: Policy, functions: FunctionHost, **rules: int) -> Game:
    items = [Item("Say a word.", "gold"), Item("Say more.", "x")]
    eos = [policy.tokenizer.eos_token_id]
    return Game(items, chat=policy, functions=functions, system="", eos=eos, **{"max_tokens": 128, **rules})


def said(policy: Policy, text: str, *, done: bool = False) -> Utterance:
    tokens = tuple(policy.encode(text))
    return Utterance(tokens, (-1.0,) * len(tokens), text, done)


def test_an_utterance_is_appended_and_pays_nothing_before_the_end(policy: Policy, alone: FunctionHost) -> None:
    rules = game(policy, alone)
    episode = rules.start(serial=0, item=0)
    opening = episode.text

    rules.say([episode], [said(policy, "a gold.")])
    assert (episode.score, episode.turns, episode.text) == (None, 1, opening + "a gold.")

    rules.say([episode], [said(policy, "gold is over.", done=True)])
    assert episode.score == 2.0
    assert episode.text == policy.decode(episode.tokens)
    assert [episode.tokens[start:end] for start, end in episode.spans] == [
        policy.encode("a gold."),
        policy.encode("gold is over."),
    ]


def test_every_utterance_costs_and_the_score_is_the_sum_of_what_was_earned(policy: Policy, alone: FunctionHost) -> None:
    items = [Item("Say a word.", "gold")]
    rules = Game(items, chat=policy, functions=alone, system="", max_tokens=128, turn_cost=0.25)
    episode = rules.start(serial=0, item=0)

    rules.say([episode], [said(policy, "a gold.")])
    assert (episode.rewards, episode.score) == ([-0.25], None)

    rules.say([episode], [said(policy, "gold is over.", done=True)])
    assert episode.rewards == [-0.25, 2.0 - 0.25]
    assert episode.score == 2.0 - 2 * 0.25
    assert Episode.of(json.loads(json.dumps(episode.state()))) == episode


def test_split_and_done_at_the_same_token_end_the_episode_once(policy: Policy, alone: FunctionHost) -> None:
    rules = game(policy, alone)
    episode = rules.start(0, 0)
    rules.say([episode], [said(policy, "over.", done=True)])
    assert (episode.done, episode.turns, episode.score) == (True, 1, 0.0)


def test_a_conversation_four_tokens_from_its_limit_is_over_and_scored(policy: Policy, alone: FunctionHost) -> None:
    room = len(policy.chat_ids("", "Say a word.")) + 20
    word = said(policy, "gold")
    for spare, over in ((4, True), (5, False)):
        rules = game(policy, alone, max_tokens=room)
        episode = rules.start(0, 0)
        fill = room - spare - len(episode.tokens) - len(word.token_ids)
        padding = Utterance((policy.encode(" ")[0],) * fill, (-1.0,) * fill, " " * fill, False)
        rules.say([episode], [Utterance((*word.token_ids, *padding.token_ids), (), "gold" + padding.text, False)])
        assert episode.done == over
        assert episode.score == (1.0 if over else None)


def test_a_limit_on_turns(policy: Policy, alone: FunctionHost) -> None:
    rules = game(policy, alone, max_turns=2)
    episode = rules.start(0, 0)
    rules.say([episode], [said(policy, "a.")])
    assert not episode.done
    rules.say([episode], [said(policy, "gold.")])
    assert episode.score == 1.0


def test_the_environment_answers_as_a_user_turn(policy: Policy, answered: FunctionHost) -> None:
    rules = game(policy, answered)
    episode = rules.start(0, 0)
    rules.say([episode], [said(policy, "What?")])

    assert not episode.done
    tail = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nSay it again.<|eot_id|>"
    assert episode.text.endswith(f"What?{tail}<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert episode.tokens[episode.spans[0][0] : episode.spans[0][1]] == policy.encode("What?")


def test_an_utterance_that_closed_its_turn_is_not_closed_twice(policy: Policy, answered: FunctionHost) -> None:
    rules = game(policy, answered)
    episode = rules.start(0, 0)
    eos = policy.tokenizer.eos_token_id
    rules.say([episode], [Utterance((*policy.encode("What?"), eos), (), "What?<|eot_id|>", False)])
    assert "<|eot_id|><|eot_id|>" not in episode.text
    assert episode.text == policy.decode(episode.tokens)


def test_a_reply_can_end_the_game(policy: Policy, answered: FunctionHost) -> None:
    rules = game(policy, answered)
    first, second = rules.start(0, 0), rules.start(1, 1)
    rules.say([first, second], [said(policy, "I give up. gold"), said(policy, "Why?")])
    assert first.score == 1.0
    assert second.score is None


def test_a_prompt_without_room_for_an_answer_is_refused(policy: Policy, alone: FunctionHost) -> None:
    with pytest.raises(DataError, match=r"item 0.*max_tokens"):
        game(policy, alone, max_tokens=16)


def test_an_episode_comes_back_from_its_state(policy: Policy, alone: FunctionHost) -> None:
    rules = game(policy, alone)
    episode = rules.start(4, 1)
    rules.say([episode], [said(policy, "a.")])
    assert Episode.of(episode.state()) == episode
