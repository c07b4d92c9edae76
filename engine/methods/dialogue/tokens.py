"""Trajectories of tokens as tensors: what a policy said after a context, and what that was worth as a whole.

The tokens of many trajectories that share a beginning are one `Pack`, so a learner runs a model once over each
distinct token; rows here are trajectories, columns the policy's own tokens (an environment's replies are read by
the model, but nobody's action).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.lm.packing import Pack, pack
from engine.methods.dialogue.environment import Episode
from engine.methods.maths.returns import final_rewards


@dataclass(frozen=True)
class Trajectory:
    """Tokens after a context, and what they earn."""

    tokens: Sequence[int]
    logps: Sequence[float]
    """Of the policy's own tokens, when they were sampled."""
    reward: float
    """Falls due with the last token."""
    own: Sequence[bool] | None = None
    """Which tokens the policy chose; None: all of them."""
    earlier: Sequence[tuple[int, float]] = ()
    """Rewards before the last: (which of the policy's own tokens, counted from 0; how much)."""


@dataclass(frozen=True)
class Group:
    """Trajectories from one context."""

    context: Sequence[int]
    trajectories: Sequence[Trajectory]


@dataclass(frozen=True)
class TokenBatch:
    """Groups as one pack, with tensors [R, L] over rows of trajectories and columns of the policy's own tokens."""

    packed: Pack
    places: Tensor
    """[N] into `packed.nodes`: where the model predicts each own token."""
    targets: Tensor
    """[N] the own tokens."""
    mask: Tensor
    """[R, L] True where there is a token."""
    behaviour: Tensor
    """[R, L] log-probabilities when sampled."""
    rewards: Tensor
    """[R, L] 0, but at each row's last token, and where something was due before it."""

    @property
    def continues(self) -> Tensor:
        """[R, L] 1 where another token follows."""
        following = torch.zeros_like(self.rewards)
        following[:, :-1] = self.mask[:, 1:].to(self.rewards.dtype)
        return following

    def spread(self, flat: Tensor) -> Tensor:
        """[R, L] from one number a token, 0 in the padding."""
        return torch.zeros_like(self.behaviour).masked_scatter(self.mask, flat.to(self.behaviour.dtype))


def collate(groups: Sequence[Group], device: torch.device | str = "cpu") -> TokenBatch:
    """One batch of all trajectories of `groups`, in order."""
    rows = [trajectory for group in groups for trajectory in group.trajectories]
    packed = pack(
        [group.context for group in groups],
        [[trajectory.tokens for trajectory in group.trajectories] for group in groups],
        want=("before",),
    )
    own = [torch.tensor(r.own) if r.own is not None else torch.ones(len(r.tokens), dtype=torch.bool) for r in rows]
    lengths = torch.tensor([len(row.logps) for row in rows])
    if any(int(chosen.sum()) != len(row.logps) for chosen, row in zip(own, rows, strict=True)):
        raise ValueError("a trajectory needs one log-probability for each of the policy's own tokens")
    mask = torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)
    behaviour = torch.zeros(mask.shape).masked_scatter(
        mask, torch.tensor([logp for row in rows for logp in row.logps], dtype=torch.float32)
    )
    chosen = torch.cat(own)
    rewards = final_rewards(torch.tensor([row.reward for row in rows]), lengths, mask.shape[1])
    for index, row in enumerate(rows):
        for place, reward in row.earlier:
            rewards[index, place] += reward
    return TokenBatch(
        packed=packed.to(device),
        places=packed.before[chosen].to(device),
        targets=packed.targets[chosen].to(device),
        mask=mask.to(device),
        behaviour=behaviour.to(device),
        rewards=rewards.to(device),
    )


def trajectory_of(episode: Episode, worth: float) -> Trajectory:
    """A whole episode as one trajectory after its prompt.

    `worth` is what the episode counts for in all, such as its score less a baseline. Its utterances keep their own
    rewards, and the last one gets what is missing.
    """
    ends = np.cumsum([end - start for start, end in episode.spans]) - 1
    earlier = [(int(place), paid) for place, paid in zip(ends[:-1], episode.rewards[:-1], strict=True) if paid]
    own = [False] * (len(episode.tokens) - episode.prompt)
    for start, end in episode.spans:
        own[start - episode.prompt : end - episode.prompt] = [True] * (end - start)
    last = episode.spans[-1][1]  # a reply that ended the episode is after the last action
    return Trajectory(
        tokens=episode.tokens[episode.prompt : last],
        logps=episode.logps,
        reward=worth - sum(paid for _, paid in earlier),
        own=own[: last - episode.prompt],
        earlier=earlier,
    )
