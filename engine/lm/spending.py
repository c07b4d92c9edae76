"""What requests to an endpoint may take and have taken: tokens and money, and requests and tokens in a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.errors import Refused, SpecError
from engine.spec.endpoint import Endpoint

MILLION = 1_000_000
_NOTHING = 1e-9
"""A share of an allowance that is not waited for: the wait could round to no time at all, for ever."""


@dataclass(frozen=True)
class Tokens:
    """Of a prompt and its completion."""

    prompt: int
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


@dataclass(frozen=True)
class Spent:
    """What was asked of an endpoint so far."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


class Ledger:
    """Keeps the account of one endpoint. A request is reserved at its worst case, and settled at what it took."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._requests, self._settled, self._reserved = 0, Tokens(0), Tokens(0)

    @property
    def spent(self) -> Spent:
        """What is settled."""
        return Spent(self._requests, self._settled.prompt, self._settled.completion, self.cost(self._settled))

    def cost(self, tokens: Tokens) -> float:
        """What so many tokens cost."""
        return (tokens.prompt * self._endpoint.price_in + tokens.completion * self._endpoint.price_out) / MILLION

    def reserve(self, most: Tokens) -> None:
        """Put this much aside. Raises Refused where all that is under way could then exceed the budget."""
        budget, bound = self._endpoint.budget, self._settled + self._reserved
        if budget is not None and self.cost(bound + most) > budget:
            raise Refused(
                f"the budget of {budget:g} for {self._endpoint.model} leaves no room: {self.cost(self._settled):g} is "
                f"spent, {self.cost(self._reserved):g} under way, and the next request may cost {self.cost(most):g}. "
                "Raise `budget`, or ask for less"
            )
        self._reserved += most

    def settle(self, most: Tokens, took: Tokens) -> None:
        """A request that had reserved `most` took this much."""
        self._requests += 1
        self._reserved -= most
        self._settled += took


class Allowance:
    """So much a minute: a bucket that holds one minute's worth and fills steadily; whoever finds it short waits."""

    def __init__(
        self,
        per_minute: float | None,
        name: str,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._limit, self._name, self._now, self._sleep = per_minute, name, now, sleep
        self._level, self._at = per_minute or 0.0, now()
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> None:
        """Wait, in order of asking, until this much is there, and take it. Raises SpecError where it never will be."""
        if self._limit is None:
            return
        if amount > self._limit:
            raise SpecError(
                f"one request needs {amount:g} of the {self._limit:g} that {self._name} allows: "
                "raise it, or ask for shorter completions"
            )
        async with self._turn:
            while (short := amount - self._filled()) > _NOTHING * self._limit:
                await self._sleep(short * 60.0 / self._limit)
            self._level -= amount

    def give_back(self, amount: float) -> None:
        """Some of what was taken was not used."""
        if self._limit is not None:
            self._level = min(self._limit, self._filled() + amount)

    def _filled(self) -> float:
        assert self._limit is not None
        now = self._now()
        self._level = min(self._limit, self._level + (now - self._at) * self._limit / 60.0)
        self._at = now
        return self._level
