"""The critic on a real model: equal scores however they are batched, a target that moves only when told to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.lm.heads import ScalarHead, load_head, new_head
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.methods.archer.config import Ranker as RankerConfig
from engine.methods.archer.config import Target
from engine.methods.archer.ranker import Ranker, spread_twins
from engine.methods.archer.replay import Transition, ids

STATES = [[5, 6, 7, 8], [5, 6, 9], [40, 41, 42, 43, 44]]
CANDIDATES = [[[1, 2, 3], [4], [9, 9]], [[3, 2], [1]], [[7, 7, 7, 7]]]


def head(model_dir: Path, policy: Policy, outputs: int = 1) -> ScalarHead:
    """A critic whose head is not zero."""
    critic = new_head(str(model_dir), policy.tokenizer, outputs=outputs)
    with torch.no_grad():
        critic.model.score.weight.copy_(torch.randn(outputs, 64, generator=torch.Generator().manual_seed(1)))
    return critic


def ranker(net: ScalarHead, opening: Sequence[int] = (), **config: object) -> Ranker:
    settings = RankerConfig.model_validate({"batch_size": 4, "updates": 2, **config})
    return Ranker(net, Learner(net, LearnerSettings(lr=1e-3)), settings, gamma=1.0, opening=opening)


def rows(*, done: bool = False, count: int = 6) -> list[Transition]:
    rng = np.random.default_rng(0)
    return [
        Transition(
            state=ids(rng.integers(5, 60, size=4).tolist()),
            action=ids(rng.integers(5, 60, size=3).tolist()),
            reward=float(number % 2) if done else 0.0,
            done=done,
            reply=ids([]),
            candidates=() if done else tuple(ids(rng.integers(5, 60, size=2).tolist()) for _ in range(3)),
        )
        for number in range(count)
    ]


def plainly(critic: ScalarHead, state: list[int], candidate: list[int]) -> float:
    """One sequence through the library's own forward, read at its last token, whatever that token is."""
    hidden = critic.model.model(input_ids=torch.tensor([[*state, *candidate]])).last_hidden_state
    return float(critic.model.score(hidden[0, -1]).squeeze().sigmoid())


def test_scores_are_those_of_one_candidate_at_a_time(model_dir: Path, policy: Policy) -> None:
    """Candidate [4] is the padding token: the original would have read the token before it."""
    assert policy.tokenizer.pad_token_id == 4
    critic = head(model_dir, policy)
    values = ranker(critic).values(STATES, CANDIDATES)
    with torch.no_grad():
        for state, options, scored in zip(STATES, CANDIDATES, values, strict=True):
            assert scored == pytest.approx([plainly(critic, state, option) for option in options], abs=1e-5)


def test_where_the_environment_answers_a_value_is_read_at_the_opening_of_its_turn(
    model_dir: Path, policy: Policy
) -> None:
    critic, opening = head(model_dir, policy), policy.reply_opening()
    told = [5, 6, 7]
    closed = [*told, opening[0]]  # an utterance that ended its turn itself is not ended twice

    (values,) = ranker(critic, opening).values([STATES[0]], [[told, closed]])

    with torch.no_grad():
        read = plainly(critic, STATES[0], [*told, *opening])
    assert values == pytest.approx([read, read], abs=1e-5)
    assert values[0] != pytest.approx(ranker(critic).values([STATES[0]], [[told]])[0][0], abs=1e-3)


def test_learning_reads_values_where_ranking_does(model_dir: Path, policy: Policy) -> None:
    """Episodes of one utterance: the loss is the mean square of value minus score, the opening included."""
    judge = ranker(head(model_dir, policy), policy.reply_opening(), sigmoid=False, updates=1)
    data = rows(done=True, count=4)
    values = judge.values([r.state.tolist() for r in data], [[r.action.tolist()] for r in data])
    by_hand = sum((value[0] - row.reward) ** 2 for value, row in zip(values, data, strict=True)) / 4

    assert judge.update(lambda n: data)["ranker/loss"] == pytest.approx(by_hand, rel=1e-4)


def test_permuting_candidates_permutes_scores(model_dir: Path, policy: Policy) -> None:
    judge = ranker(head(model_dir, policy))
    (straight,) = judge.values(STATES[:1], CANDIDATES[:1])
    (turned,) = judge.values(STATES[:1], [CANDIDATES[0][::-1]])
    assert turned == pytest.approx(straight[::-1], abs=1e-6)
    assert len(set(straight)) == 3


def test_a_saved_critic_scores_the_same(model_dir: Path, policy: Policy, tmp_path: Path) -> None:
    critic = head(model_dir, policy)
    critic.save(tmp_path)
    again = ranker(load_head(tmp_path, policy.tokenizer))
    assert again.values(STATES, CANDIDATES) == ranker(critic).values(STATES, CANDIDATES)


def test_the_target_moves_at_a_synchronisation_and_not_before(model_dir: Path, policy: Policy) -> None:
    judge = ranker(head(model_dir, policy), target={"kind": "hard", "every": 3})
    before = copy.deepcopy(judge.target.state_dict())

    judge.update(lambda n: rows()[:n])
    judge.synchronise(1)
    assert all(torch.equal(value, before[name]) for name, value in judge.target.state_dict().items())

    judge.synchronise(3)
    online = judge.critic.state_dict()
    assert all(torch.equal(value, online[name]) for name, value in judge.target.state_dict().items())
    assert not torch.equal(online["model.score.weight"], before["model.score.weight"])


def test_polyak_moves_the_target_by_tau_after_each_step(model_dir: Path, policy: Policy) -> None:
    judge = ranker(head(model_dir, policy), target={"kind": "polyak", "tau": 0.25}, updates=1)
    before = judge.target.model.score.weight.clone()
    judge.update(lambda n: rows()[:n])
    moved = 0.75 * before + 0.25 * judge.critic.model.score.weight
    torch.testing.assert_close(judge.target.model.score.weight, moved)


def test_episodes_of_one_utterance_are_regression_on_scores(model_dir: Path, policy: Policy) -> None:
    """Identity k: the critic's loss is the mean square of value minus score, and training fits it."""
    judge = ranker(head(model_dir, policy), sigmoid=False, updates=1)
    data = rows(done=True, count=4)
    values = judge.values([r.state.tolist() for r in data], [[r.action.tolist()] for r in data])
    by_hand = sum((value[0] - row.reward) ** 2 for value, row in zip(values, data, strict=True)) / 4

    first = judge.update(lambda n: data)["ranker/loss"]
    assert first == pytest.approx(by_hand, rel=1e-4)
    for _ in range(60):
        last = judge.update(lambda n: data)["ranker/loss"]
    assert last < first / 20


def test_cutting_a_step_into_minibatches_changes_nothing_but_rounding(model_dir: Path, policy: Policy) -> None:
    weights = []
    for size, accumulate in ((6, 1), (2, 3)):
        judge = ranker(head(model_dir, policy), batch_size=size, accumulate=accumulate, updates=accumulate)
        judge.update(lambda n: rows()[:n])
        weights.append(judge.critic.model.score.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


def test_the_twins_differ_and_their_advantage_is_q_minus_v(model_dir: Path, policy: Policy) -> None:
    critic = new_head(str(model_dir), policy.tokenizer, outputs=4)
    spread_twins(critic, seed=5)
    judge = ranker(critic, critic="qv", sigmoid=False)
    first, second = critic.model.score.weight[0], critic.model.score.weight[1]
    assert not torch.equal(first, second)

    advantages = judge.advantages(STATES[:1], CANDIDATES[:1])[0]
    body = critic.model.model
    with torch.no_grad():
        for candidate, advantage in zip(CANDIDATES[0], advantages, strict=True):
            hidden = body(input_ids=torch.tensor([[*STATES[0], *candidate]])).last_hidden_state[0]
            at = hidden @ critic.model.score.weight.T
            expected = at[-1, :2].min() - at[len(STATES[0]) - 1, 2:].min()
            assert advantage == pytest.approx(float(expected), abs=1e-5)


def test_q_and_v_learn_from_the_policys_own_utterance(model_dir: Path, policy: Policy) -> None:
    critic = new_head(str(model_dir), policy.tokenizer, outputs=4)
    spread_twins(critic, seed=5)
    judge = ranker(critic, critic="qv", sigmoid=False, updates=1)
    asked: list[list[int]] = []

    def fresh(states: object) -> list[list[int]]:
        asked.extend(list(states))  # type: ignore[call-overload]
        return [[11, 12]] * len(asked)

    metrics = judge.update(lambda n: rows()[:n], fresh)
    assert asked == [row.state.tolist() for row in rows()[:4]]
    assert metrics["ranker/grad_norm"] > 0
    with pytest.raises(ValueError, match="fresh"):
        judge.update(lambda n: rows()[:n])


def test_a_ranker_continues_from_its_state(model_dir: Path, policy: Policy) -> None:
    one = ranker(head(model_dir, policy), target=Target(every=2).model_dump())
    one.update(lambda n: rows()[:n])
    other = ranker(head(model_dir, policy), target=Target(every=2).model_dump())
    other.load_state(one.state())
    for judge in (one, other):
        judge.update(lambda n: rows()[:n])
        judge.synchronise(2)
    assert one.values(STATES, CANDIDATES) == other.values(STATES, CANDIDATES)
