"""Completions and chat from an OpenAI-compatible endpoint, as a sampler and as a plain question.

What a request needs in patience, limits and accounts is `endpoint`'s business; when a completion has ended is
decided here, token by token, and not by the endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import DataError
from engine.lm import chat as chats
from engine.lm.detokenise import Detokeniser
from engine.lm.endpoint import Client
from engine.lm.growing import Growth
from engine.lm.noise import NoiseKey, seeds
from engine.lm.sampler import Completion, Finish, SamplingParams
from engine.lm.spending import Tokens
from engine.runtime.context import Stops
from engine.runtime.stopwatch import spends
from engine.runtime.trace import SILENT, Trace
from engine.store.fingerprints import Layer

_MASK = (1 << 63) - 1
_PER_MESSAGE = 16
"""Tokens that a chat template may add around a message."""


@dataclass(frozen=True)
class _Arrival:
    """What came for a row: a token with its log-probability, a piece of text, or the end."""

    token: int | None = None
    logp: float = 0.0
    text: str = ""
    end: Finish | None = None


_Queue = asyncio.Queue[tuple[int, Sequence[_Arrival | Exception]]]


class OpenAISampler:
    """Samples through an endpoint; see `engine.lm.sampler.Sampler`.

    Where the endpoint takes token ids (`Endpoint.token_ids`), a completion is what `vllm` in process makes of the same
    weights: every token goes by the user's functions, the request is cancelled at a stop, and what the server had
    written beyond it is dropped. The noise key seeds the request; whether that makes it repeatable, the server knows.
    A stream that breaks is taken up where it broke, with another seed.

    Where it takes text, a completion is the text that came: its token ids are our tokenizer's, there are no
    log-probabilities, the user's functions are asked once for each piece that arrives, and an end of sequence always
    ends it. Not something to learn from, then, but to read and to compare with.
    """

    def __init__(self, client: Client, tokenizer: Any, *, trace: Trace = SILENT) -> None:
        self._client, self._tokenizer, self._trace = client, tokenizer, trace
        self._detokeniser = Detokeniser(tokenizer)

    def refresh(self) -> None:
        """Nothing: the endpoint's weights are its own, and so is what it keeps of earlier contexts."""

    @spends("generation")
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        stops: Stops | None = None,
        noise: Sequence[NoiseKey] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions of each prompt; see the protocol."""
        if not prompts or n < 1:
            return [[] for _ in prompts]
        growth = Growth(
            prompts,
            n,
            params,
            detokeniser=self._detokeniser,
            decode=lambda ids: chats.decode(self._tokenizer, ids),
            stops=stops,
            noise=noise,
        )
        drawing = noise is not None and params.temperature > 0
        row_seeds = seeds(noise, n) if noise is not None and drawing else [None] * len(growth.rows)
        asked = [
            _Asked(self._client.endpoint.model, list(prompts[row // n]), params, state.budget, seed)
            for row, (state, seed) in enumerate(zip(growth.rows, row_seeds, strict=True))
        ]
        with growth:
            self._client.run(self._grow(growth, asked))
        if not self._client.endpoint.token_ids:
            for state in growth.rows:
                state.ids = chats.encode(self._tokenizer, "".join(state.pieces))
        self._trace.note(Layer.SAMPLING, [row.ids for row in growth.rows], [row.logps for row in growth.rows])
        return growth.groups()

    async def _grow(self, growth: Growth, asked: Sequence[_Asked]) -> None:
        """All rows at once. What arrives together is judged together, one token of each row in a call."""
        arrived: _Queue = asyncio.Queue()
        tasks = [asyncio.create_task(self._row(row, one, arrived)) for row, one in enumerate(asked)]
        waiting: list[deque[_Arrival | Exception]] = [deque() for _ in asked]
        going = set(range(len(asked)))
        try:
            while going:
                await _collect(arrived, waiting)
                while turn := [(row, waiting[row].popleft()) for row in sorted(going) if waiting[row]]:
                    _judge(growth, turn)
                    ended = {row for row, _ in turn if growth.rows[row].finish is not None}
                    for row in ended:
                        tasks[row].cancel()
                    going -= ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, row: int, asked: _Asked, arrived: _Queue) -> None:
        """Stream one completion into the queue, to its end or until cancelled."""
        with_ids, read = self._client.endpoint.token_ids, _tokens if self._client.endpoint.token_ids else _text

        def body() -> tuple[dict[str, Any], Tokens] | None:
            if asked.ended:
                return None
            return asked.with_ids() if with_ids else asked.with_text(self._tokenizer)

        try:
            async with contextlib.aclosing(self._client.events("/completions", body)) as events:
                async for event in events:
                    found = read(event)
                    asked.received(found)
                    arrived.put_nowait((row, found))
            if not asked.ended:
                raise DataError(asked.shortfall(self._client.endpoint.url))
        except Exception as error:  # noqa: BLE001  # raised where the rows are joined, if the row gets so far
            arrived.put_nowait((row, [error]))


class _Asked:
    """One row's request, and what has come of it so far, so that it can be made again from there."""

    def __init__(self, model: str, prompt: list[int], params: SamplingParams, budget: int, seed: int | None) -> None:
        self._prompt, self._seed, self._budget = prompt, seed, budget
        self._ids: list[int] = []
        self._text, self._pieces, self._said = "", 0, False
        self._common: dict[str, Any] = {
            "model": model,
            "temperature": params.temperature,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if params.top_k is not None:
            self._common["top_k"] = params.top_k

    def received(self, arrivals: Sequence[_Arrival]) -> None:
        """Hear what has arrived."""
        self._ids += [one.token for one in arrivals if one.token is not None]
        self._text += "".join(one.text for one in arrivals)
        self._pieces += sum(bool(one.text) for one in arrivals)
        self._said = self._said or any(one.end is not None for one in arrivals)

    @property
    def ended(self) -> bool:
        """Whether all has come that was asked for, or the endpoint has said that this is the end."""
        return self._said or len(self._ids) >= self._budget

    def shortfall(self, url: str) -> str:
        """What is wrong with a stream that is over too early."""
        if self._text or self._ids:
            return f"{url} ended a completion after {len(self._ids) or self._pieces} of {self._budget} tokens"
        return f"{url} streams no token ids: write token_ids: false for an endpoint that knows only text"

    def with_ids(self) -> tuple[dict[str, Any], Tokens]:
        """As vLLM's server takes it: ids both ways, no defaults of the model's own, no end but ours."""
        most = Tokens(len(self._prompt) + len(self._ids), self._budget - len(self._ids))
        return {
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            **self._rest(len(self._ids), most),
            "prompt": [*self._prompt, *self._ids],
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,
        }, most

    def with_text(self, tokenizer: Any) -> tuple[dict[str, Any], Tokens]:
        """As every server takes it; a piece counts as one token, and bytes as the most that a text can have."""
        text = chats.decode(tokenizer, self._prompt) + self._text
        most = Tokens(len(text.encode()), max(1, self._budget - self._pieces))
        return {**self._rest(self._pieces, most), "prompt": text}, most

    def _rest(self, done: int, most: Tokens) -> dict[str, Any]:
        seed = {} if self._seed is None else {"seed": (self._seed + done * 0x9E3779B97F4A7C15) & _MASK}
        return {**self._common, **seed, "max_tokens": most.completion}


@dataclass(frozen=True)
class Answer:
    """What an endpoint said to a conversation."""

    text: str
    finish: str
    """The server's word: `stop`, `length`, …"""
    tokens: Tokens


def chat(
    client: Client,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> list[Answer]:
    """What the endpoint's model says to each conversation, as many at a time as it allows.

    A message is `{"role": …, "content": …}`. The first that fails takes the others with it.
    """
    more: dict[str, Any] = {"stop": list(stop)} if stop else {}
    if seed is not None:
        more["seed"] = seed

    async def one(messages: Sequence[Mapping[str, str]]) -> Answer:
        body = {
            "model": client.endpoint.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            **more,
        }
        most = Tokens(sum(len(message["content"].encode()) + _PER_MESSAGE for message in messages), max_tokens)
        answer = await client.ask("/chat/completions", body, most)
        try:
            (choice, *_), usage = answer["choices"], answer.get("usage") or {}
            text, finish = choice["message"]["content"] or "", choice.get("finish_reason") or ""
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{client.endpoint.url} gave an answer without a choice: {str(answer)[:200]}") from error
        return Answer(text, finish, Tokens(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)))

    async def everyone() -> list[Answer]:
        tasks = [asyncio.create_task(one(messages)) for messages in conversations]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return client.run(everyone())


async def _collect(arrived: _Queue, waiting: Sequence[deque[_Arrival | Exception]]) -> None:
    """Wait for something, and take whatever has come with it."""
    row, what = await arrived.get()
    waiting[row].extend(what)
    while not arrived.empty():
        row, what = arrived.get_nowait()
        waiting[row].extend(what)


def _judge(growth: Growth, turn: Sequence[tuple[int, _Arrival | Exception]]) -> None:
    """Give every row of this turn what came for it. Raises what a row failed with that had not ended by then."""
    arrivals: list[tuple[int, _Arrival]] = []
    for row, what in turn:
        if isinstance(what, Exception):
            raise what
        arrivals.append((row, what))
    spoken = [(row, one) for row, one in arrivals if one.token is not None]
    if spoken:
        growth.append(
            [row for row, _ in spoken], [one.token or 0 for _, one in spoken], [one.logp for _, one in spoken]
        )
    written = [(row, one) for row, one in arrivals if one.token is None]
    if written:
        growth.hear([row for row, _ in written], [one.text for _, one in written], [one.end for _, one in written])


def _tokens(event: Mapping[str, Any]) -> list[_Arrival]:
    """The tokens of an event with ids."""
    found: list[_Arrival] = []
    for choice in event.get("choices") or ():
        ids, logps = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not ids:
            continue
        if logps is None or len(logps) != len(ids):
            raise DataError("the endpoint gives no log-probability for every token: write token_ids: false for it")
        found += [_Arrival(token=token, logp=logp) for token, logp in zip(ids, logps, strict=True)]
    return found


def _text(event: Mapping[str, Any]) -> list[_Arrival]:
    """The piece of text of an event, and whether it was the last."""
    found = []
    for choice in event.get("choices") or ():
        reason = choice.get("finish_reason")
        end: Finish | None = None if reason is None else "length" if reason == "length" else "eos"
        if choice.get("text") or end:
            found.append(_Arrival(text=choice.get("text") or "", end=end))
    return found
