"""The token-level update on a real model: aligned log-probabilities, masked replies, an anchor, and resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.functions.client import FunctionHost
from engine.lm.encode import encode, hidden_states
from engine.lm.heads import new_head
from engine.lm.hf import HFSampler
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.logprobs import token_logps
from engine.lm.policy import Policy
from engine.methods.dialogue.config import PolicyUpdate
from engine.methods.dialogue.environment import Episode, Game, Item
from engine.methods.dialogue.improve import Reference, TokenLearner, TokenRule
from engine.methods.dialogue.play import Speaker
from engine.methods.dialogue.tokens import Group, Trajectory, collate, trajectory_of


def sampled(policy: Policy, functions: FunctionHost, rewards: tuple[float, ...] = (1.0, 0.0, 0.5)) -> list[Group]:
    """Candidates that the policy itself has just sampled in two states."""
    game = Game([Item("Say a word.", "x")], chat=policy, functions=functions, system="", max_tokens=96)
    episodes = [game.start(0, 0), game.start(1, 0)]
    proposals = Speaker(HFSampler(policy), game).propose(episodes, len(rewards), seed=9)
    return [
        Group(e.tokens, [Trajectory(u.token_ids, u.logps, r) for u, r in zip(group, rewards, strict=True)])
        for e, group in zip(episodes, proposals, strict=True)
    ]


def token_learner(
    policy: Policy, model_dir: str | None = None, *, algorithm: str = "ppo", **update: object
) -> TokenLearner:
    settings = PolicyUpdate.model_validate({"epochs": 1, **update})
    value = None
    if model_dir is not None:
        net = new_head(model_dir, policy.tokenizer)
        value = (net, Learner(net, LearnerSettings(lr=1e-2)))
    return TokenLearner(
        policy,
        Learner(policy.model, LearnerSettings(lr=1e-3)),
        update=settings,
        rule=TokenRule(algorithm, gamma=1.0, lam=0.95),  # type: ignore[arg-type]
        reference=Reference(policy, fresh_adapters=False) if settings.kl > 0 else None,
        value=value,
    )


def test_the_ratio_is_one_before_the_first_step(policy: Policy, functions: FunctionHost) -> None:
    """Identity f: what the sampler recorded is what the learner computes, for every token of every candidate."""
    metrics = token_learner(policy).improve(sampled(policy, functions), np.random.default_rng(0))
    assert metrics["policy/ratio_error"] < 1e-4
    assert metrics["policy/clipped"] == 0.0


def test_reading_one_place_later_breaks_the_ratio(policy: Policy) -> None:
    """The original's first mistake, made on purpose: it must be visible in the ratio."""
    tokens = [30, 41, 52, 63, 74, 85]
    logps = plain_logps(policy, [5, 6, 7], tokens)
    batch = collate([Group([5, 6, 7], [Trajectory(tokens, logps.tolist(), 1.0)])])
    with torch.no_grad():
        flat = encode(policy.model, batch.packed)
        right = token_logps(policy.model, flat[batch.places], batch.targets)
        shifted = token_logps(policy.model, flat[batch.places].roll(-1, dims=0), batch.targets)
    torch.testing.assert_close(right, logps, atol=1e-4, rtol=0)
    assert (shifted - logps).abs().mean() > 0.5


def plain_logps(policy: Policy, context: list[int], tokens: list[int]) -> torch.Tensor:
    """By the library's own forward over the whole sequence."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*context, *tokens]])).logits[0]
    return logits.log_softmax(-1)[len(context) - 1 : -1].gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)


def test_an_untrained_policy_is_at_no_distance_from_its_reference(policy: Policy, functions: FunctionHost) -> None:
    groups = sampled(policy, functions)
    learner = token_learner(policy, kl=0.1, epochs=3)
    assert token_learner(policy, kl=0.1).improve(groups, np.random.default_rng(0))["policy/kl"] == pytest.approx(
        0.0, abs=1e-5
    )
    assert learner.improve(groups, np.random.default_rng(0))["policy/kl"] > 1e-5


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_rewarded_utterances_become_likelier(policy: Policy, functions: FunctionHost, algorithm: str) -> None:
    groups = sampled(policy, functions, rewards=(1.0, -1.0))
    learner = token_learner(policy, algorithm=algorithm, kl=0.0)
    before = logps_of(policy, groups)
    for _ in range(5):
        learner.improve(groups, np.random.default_rng(0))
    gained = logps_of(policy, groups) - before
    assert gained[:, 0].min() > 0
    assert gained[:, 1].max() < 0


def logps_of(policy: Policy, groups: list[Group]) -> torch.Tensor:
    """Summed log-probability of each trajectory, [groups, candidates]."""
    with torch.no_grad():
        hidden = hidden_states(
            policy.model, [g.context for g in groups], [[t.tokens for t in g.trajectories] for g in groups]
        )
        return torch.tensor(
            [
                [
                    float(token_logps(policy.model, h, torch.tensor(t.tokens)).sum())
                    for h, t in zip(row, g.trajectories, strict=True)
                ]
                for row, g in zip(hidden, groups, strict=True)
            ]
        )


def test_a_value_network_learns_the_return(policy: Policy, model_dir: object, functions: FunctionHost) -> None:
    groups = sampled(policy, functions, rewards=(0.6, 0.6))
    learner = token_learner(policy, str(model_dir), kl=0.0, normalise=False)
    # With a head at zero the return k tokens before the end is 0.6 · 0.95^k.
    lengths = [len(t.tokens) for g in groups for t in g.trajectories]
    by_hand = sum((0.6 * 0.95**k) ** 2 for n in lengths for k in range(n)) / sum(lengths)

    first = learner.improve(groups, np.random.default_rng(0))["value/loss"]
    assert first == pytest.approx(by_hand, rel=1e-4)
    for _ in range(25):
        last = learner.improve(groups, np.random.default_rng(0))["value/loss"]
    assert last < first / 5


def test_replies_are_read_but_are_nobodys_action(policy: Policy) -> None:
    episode = Episode(
        serial=0,
        item=0,
        prompt=2,
        tokens=[5, 6, 10, 11, 20, 21, 12, 22],
        text="",
        spans=[[2, 4], [6, 7]],
        logps=[-0.1, -0.2, -0.3],
        rewards=[0.0, 1.0],
        score=1.0,
    )
    trajectory = trajectory_of(episode, 0.5)
    assert list(trajectory.tokens) == [10, 11, 20, 21, 12]  # the last reply comes after every action
    assert list(trajectory.own or ()) == [True, True, False, False, True]

    batch = collate([Group([5, 6], [trajectory, Trajectory([9], [-0.7], 2.0)])])
    assert batch.targets.tolist() == [10, 11, 12, 9]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.rewards.tolist() == [[0.0, 0.0, 0.5], [2.0, 0.0, 0.0]]
    assert batch.continues.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(batch.behaviour, torch.tensor([[-0.1, -0.2, -0.3], [-0.7, 0.0, 0.0]]))


def test_utterances_keep_their_own_rewards_and_the_last_one_makes_up_the_episodes_worth() -> None:
    """Rewards −1, −1 and 4 − 1, a score of 1; against a baseline of 3 the episode is worth −2."""
    episode = Episode(
        serial=0,
        item=0,
        prompt=1,
        tokens=[5, 10, 11, 20, 12, 21, 13, 14],
        text="",
        spans=[[1, 3], [4, 5], [6, 8]],
        logps=[-0.1, -0.2, -0.3, -0.4, -0.5],
        rewards=[-1.0, -1.0, 3.0],
        score=1.0,
    )
    batch = collate([Group([5], [trajectory_of(episode, 1.0 - 3.0)])])
    assert batch.rewards.tolist() == [[0.0, -1.0, -1.0, 0.0, 0.0]]
    batch = collate([Group([5], [trajectory_of(episode, 1.0)])])
    assert batch.rewards.tolist() == [[0.0, -1.0, -1.0, 0.0, 3.0]]


def test_a_trajectory_without_its_log_probabilities_is_refused() -> None:
    with pytest.raises(ValueError, match="log-probability"):
        collate([Group([1], [Trajectory([2, 3], [-0.1], 0.0)])])


def test_minibatches_visit_every_group_once_an_epoch(policy: Policy, functions: FunctionHost) -> None:
    learner = token_learner(policy, minibatch=1, epochs=3)
    learner.improve(sampled(policy, functions), np.random.default_rng(0))
    assert learner.learner.steps == 2 * 3
