"""Playing and evaluating on a real model: records, batching, and the same luck under the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.functions.client import FunctionHost
from engine.lm.hf import HFSampler
from engine.lm.policy import Policy
from engine.methods.dialogue import evaluation
from engine.methods.dialogue.environment import Episode, Game, Item, Utterance
from engine.methods.dialogue.play import Costs, Speaker, best


@pytest.fixture
def speaker(policy: Policy, functions: FunctionHost) -> Speaker:
    items = [Item("Say a word.", "x"), Item("Say it again.", "y")]
    game = Game(items, chat=policy, functions=functions, system="", max_tokens=96)
    return Speaker(HFSampler(policy), game)


def shortest(episodes: Sequence[Episode], proposals: Sequence[Sequence[Utterance]]) -> list[tuple[float, ...]]:
    """Prefers the candidate with the fewest tokens."""
    return [tuple(-float(len(u.token_ids)) for u in group) for group in proposals]


def test_the_first_of_equals_is_said() -> None:
    assert best([0.1, 0.7, 0.7]) == 1


def test_every_item_is_played_as_often_as_asked_and_the_best_candidate_is_said(speaker: Speaker) -> None:
    played = evaluation.evaluate(speaker, "train", runs=3, candidates=4, valuer=shortest, seed=1)

    assert [(one.item, len(one.scores)) for one in played.items] == [(0, 3), (1, 3)]
    assert played.mean == pytest.approx(sum(sum(one.scores) for one in played.items) / 6)
    for episode, decisions in zip(played.episodes, played.decisions, strict=True):
        assert len(decisions) == episode.turns
        for decision, (start, end) in zip(decisions, episode.spans, strict=True):
            lengths = [len(candidate.token_ids) for candidate in decision.candidates]
            assert end - start == min(lengths)
            assert decision.chosen == lengths.index(min(lengths))


def test_samples_carry_every_candidate_with_its_value(speaker: Speaker) -> None:
    played = evaluation.evaluate(speaker, "heldout", runs=2, candidates=3, valuer=shortest, seed=1)
    samples = played.samples(7, per_item=1)

    assert [(s.step, s.item, s.split) for s in samples] == [(7, 0, "heldout"), (7, 1, "heldout")]
    for sample in samples:
        for step in sample.data["steps"]:
            assert len(step) == 3
            assert [c["chosen"] for c in step].count(True) == 1
            chosen = next(c for c in step if c["chosen"])
            assert chosen["q"] == max(c["q"] for c in step)
            assert chosen["text"] in sample.text


def test_luck_depends_on_the_seed_and_not_on_the_batch(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluation.evaluate(speaker, "train", runs=4, candidates=2, valuer=None, seed=1)
    monkeypatch.setattr(evaluation, "ROWS", 2)
    speaker.sampler.refresh()
    alone = evaluation.evaluate(speaker, "train", runs=4, candidates=2, valuer=None, seed=1)
    other = evaluation.evaluate(speaker, "train", runs=4, candidates=2, valuer=None, seed=2)

    texts = [[episode.text for episode in played.episodes] for played in (whole, alone, other)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_evaluation_says_what_it_cost(speaker: Speaker) -> None:
    played = evaluation.evaluate(speaker, "train", runs=1, candidates=1, valuer=None, seed=1)
    row = played.evaluation(5, "score", "abc", Costs(3, 40, 1.5))
    assert row.cost == {"scored_episodes": 3.0, "generated_tokens": 40.0, "seconds": 1.5}
    assert (row.step, row.metric, row.split, row.functions_hash) == (5, "score", "train", "abc")
