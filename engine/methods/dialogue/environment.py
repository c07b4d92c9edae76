"""A dataset as a game of utterances: episodes, what a said utterance does to them, and what they pay.

Rules as in recurve: an utterance is appended to the conversation; `done_fn`, the length or the number of turns
ends it; `score_fn` pays once, at the end. Where the dataset has a `turn_cost` every utterance is charged for, and
where it has a `reply_fn` the environment answers, as a user turn of the chat. Who proposes utterances, and which
is said, is left to the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from engine.errors import DataError
from engine.runtime.context import Functions
from engine.runtime.trace import SILENT, Trace
from engine.store.fingerprints import Layer

ACCEPTED_MARGIN = 4
"""A conversation this close to its limit is over: too little room is left to say anything."""
CANDIDATE_MARGIN = 1
"""A candidate stops this close to the limit."""


@dataclass(frozen=True)
class Item:
    """One dataset item: the user's message in full, and the gold answer."""

    prompt: str
    answer: Any


@dataclass(frozen=True)
class Utterance:
    """Something that may be said in a state, and how likely each of its tokens was when it was sampled."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    done: bool
    """Whether saying it ends the episode (by `done_fn`, or by an end of sequence where nobody replies)."""


@dataclass
class Episode:
    """One conversation in progress."""

    serial: int
    """Names the episode's sampling noise; never used twice under one seed."""
    item: int
    prompt: int
    """Tokens of the prompt."""
    tokens: list[int]
    text: str
    spans: list[list[int]] = field(default_factory=list)
    """[start, end) in `tokens` of every utterance said."""
    logps: list[float] = field(default_factory=list)
    """Of the utterances' tokens, at the time they were said."""
    rewards: list[float] = field(default_factory=list)
    """What each utterance earned: less than nothing where turns cost, and the last one what `score_fn` says."""
    score: float | None = None
    """The sum of the rewards. Set by the end of the episode, and only then."""

    @property
    def turns(self) -> int:
        """Utterances said so far; names the next decision."""
        return len(self.spans)

    @property
    def done(self) -> bool:
        return self.score is not None

    def state(self) -> dict[str, Any]:
        """The episode as JSON data."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Episode:
        """The episode that `state` describes."""
        return cls(**state)


class Chat(Protocol):
    """How a model's family writes conversations down; an `engine.lm.policy.Policy` is one."""

    def chat_ids(self, system: str, user: str) -> list[int]: ...

    def reply_ids(self, reply: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Game:
    """The rules of one dataset split, over any number of episodes at once."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        chat: Chat,
        functions: Functions,
        system: str,
        eos: Collection[int] = (),
        max_tokens: int,
        max_turns: int | None = None,
        turn_cost: float = 0.0,
        trace: Trace = SILENT,
    ) -> None:
        self.items, self.chat, self.functions, self.turn_cost = items, chat, functions, turn_cost
        self.trace = trace
        self.eos = tuple(sorted(eos))
        self.max_tokens, self.max_turns = max_tokens, max_turns
        self._prompts: list[tuple[str, list[int]]] = []
        for index, item in enumerate(items):
            tokens = chat.chat_ids(system, item.prompt)
            if len(tokens) >= max_tokens - ACCEPTED_MARGIN:
                raise DataError(
                    f"item {index}: its prompt has {len(tokens)} tokens, which leaves no room for an answer; "
                    f"raise algorithm.episodes.max_tokens (now {max_tokens}) above {len(tokens) + ACCEPTED_MARGIN}"
                )
            self._prompts.append((chat.decode(tokens), tokens))

    def start(self, serial: int, item: int) -> Episode:
        """A new episode of `item`."""
        self.trace.note(Layer.DATA, serial, item)
        text, tokens = self._prompts[item]
        return Episode(serial=serial, item=item, prompt=len(tokens), tokens=list(tokens), text=text)

    @property
    def longest(self) -> int:
        """The length at which a candidate must stop, its context included."""
        return self.max_tokens - CANDIDATE_MARGIN

    def say(self, episodes: Sequence[Episode], utterances: Sequence[Utterance]) -> None:
        """Append one utterance to each episode, let the environment answer, and score those that have ended."""
        over: list[Episode] = []
        going: list[tuple[Episode, Utterance]] = []
        for episode, utterance in zip(episodes, utterances, strict=True):
            start = len(episode.tokens)
            episode.tokens.extend(utterance.token_ids)
            episode.logps.extend(utterance.logps)
            episode.spans.append([start, len(episode.tokens)])
            episode.rewards.append(-self.turn_cost)
            episode.text += utterance.text
            if utterance.done or self._out_of_room(episode):
                over.append(episode)
            else:
                going.append((episode, utterance))
        if going and self.functions.has_reply:
            over += self._answer(going)
        if over:
            scores = self.functions.score([e.text for e in over], [self.items[e.item].answer for e in over])
            for episode, score in zip(over, scores, strict=True):
                episode.rewards[-1] += float(score)
                episode.score = sum(episode.rewards)

    def _answer(self, going: Sequence[tuple[Episode, Utterance]]) -> list[Episode]:
        """Append the environment's replies; returns the episodes that they, or their length, end."""
        texts = [episode.text for episode, _ in going]
        replies = self.functions.reply(texts, [self.items[episode.item].answer for episode, _ in going])
        for (episode, utterance), reply in zip(going, replies, strict=True):
            tokens = self.chat.reply_ids(reply)
            if utterance.token_ids[-1] in self.eos and tokens[0] == utterance.token_ids[-1]:
                tokens = tokens[1:]  # it closed its turn itself
            episode.tokens.extend(tokens)
            episode.text += self.chat.decode(tokens)
        over = self.functions.done([episode.text for episode, _ in going])
        return [episode for (episode, _), done in zip(going, over, strict=True) if done or self._out_of_room(episode)]

    def _out_of_room(self, episode: Episode) -> bool:
        turns = self.max_turns is not None and episode.turns >= self.max_turns
        return turns or len(episode.tokens) >= self.max_tokens - ACCEPTED_MARGIN
