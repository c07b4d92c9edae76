"""Requests to an OpenAI-compatible endpoint: with patience, within limits, and with an account of what they took.

What is asked, and what is made of the answers, is `openai`'s business. Clock, sleep and randomness are arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar

import httpx2

from engine.errors import DataError, Refused, SpecError, Unreachable
from engine.lm.spending import Allowance, Ledger, Spent, Tokens
from engine.runtime.context import StageContext
from engine.spec.endpoint import Endpoint

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_SHOWN = 300


def of_service(ctx: StageContext, name: str) -> Endpoint:
    """How a stage asks its service `name`: a started one as it pleases, an endpoint within the limits of its block."""
    declared, address = ctx.config["services"][name], ctx.services[name]
    limits = {key: declared[key] for key in Endpoint.model_fields if declared["kind"] == "endpoint"}
    return Endpoint(**{**limits, "url": address.url, "model": address.model, "key": address.key or None})


class _Trouble(Exception):
    """Something that another try may cure; `after_s` is how long the server asks to be left alone."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Client:
    """One endpoint, and all that is asked of it from here. Not for two threads at once."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.endpoint = endpoint
        self._sleep, self._uniform = sleep, uniform
        self._ledger = Ledger(endpoint)
        self._requests = Allowance(endpoint.requests_per_minute, "requests_per_minute", now=now, sleep=sleep)
        self._tokens = Allowance(endpoint.tokens_per_minute, "tokens_per_minute", now=now, sleep=sleep)
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._runner = asyncio.Runner()
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            timeout=httpx2.Timeout(endpoint.read_timeout, connect=endpoint.connect_timeout, pool=None),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
            follow_redirects=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry out what asks this endpoint, from code that is not asynchronous."""
        return self._runner.run(work)

    def close(self) -> None:
        """Close its connections."""
        self._runner.run(self._http.aclose())
        self._runner.close()

    @property
    def spent(self) -> Spent:
        """What was asked of the endpoint so far."""
        return self._ledger.spent

    async def ask(self, path: str, body: Mapping[str, Any], most: Tokens) -> dict[str, Any]:
        """The answer to one request, as JSON; see `events`."""
        async with contextlib.aclosing(self.events(path, lambda: (body, most))) as events:
            async for event in events:
                return event
        raise DataError(f"{self._place} gave an empty answer to {path}: does it speak OpenAI's protocol?")

    async def events(
        self, path: str, asked: Callable[[], tuple[Mapping[str, Any], Tokens] | None]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What comes of a request, streamed or in one piece; closing the generator cancels the request.

        `asked` gives the body and the most tokens that it may take, anew before every try, so that a stream that broke
        can go on from what had arrived; None where nothing is missing. Raises Unreachable once all tries have failed,
        SpecError for what the endpoint does not accept (and no other try can cure), Refused where the budget is at its
        end, DataError for nonsense.
        """
        failures = 0
        while (wanted := asked()) is not None:
            body, most = wanted
            try:
                async with self._request(path, body, most) as (response, took):
                    async for event in self._read(response):
                        took.add(event)
                        failures = 0
                        yield event
                return
            except _Trouble as trouble:
                failures += 1
                if failures > self.endpoint.retries or (trouble.after_s or 0.0) > self.endpoint.timeout:
                    tries = f"{failures} tries" if failures > 1 else "one try"
                    raise Unreachable(
                        f"{self._place} does not answer after {tries}: {trouble}. Is it up, and is its load bearable?"
                    ) from trouble
                await self._sleep(self._pause_s(failures, trouble.after_s))

    @contextlib.asynccontextmanager
    async def _request(
        self, path: str, body: Mapping[str, Any], most: Tokens
    ) -> AsyncIterator[tuple[httpx2.Response, _Took]]:
        """One try, within all limits; what it took is settled however it ends."""
        async with self._places:
            await self._requests.take(1)
            await self._tokens.take(most.total)
            took, used = _Took(most.prompt), Tokens(0)
            try:
                self._ledger.reserve(most)
                try:
                    with self._translated():
                        async with (
                            asyncio.timeout(self.endpoint.timeout),
                            self._http.stream("POST", f"{self.endpoint.url}{path}", json=dict(body)) as response,
                        ):
                            await self._accepted(response)
                            try:
                                yield response, took
                            finally:
                                used = took.tokens
                finally:
                    self._ledger.settle(most, used)
            finally:
                self._tokens.give_back(most.total - used.total)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise _Trouble(f"no whole answer within {self.endpoint.timeout:g} s") from error
        except httpx2.TimeoutException as error:
            raise _Trouble(f"silence ({type(error).__name__})") from error
        except httpx2.TransportError as error:
            raise _Trouble(f"{type(error).__name__}: {self._clean(str(error))}") from error

    async def _accepted(self, response: httpx2.Response) -> None:
        """Raises for every status but success: _Trouble where another try can help."""
        status = response.status_code
        if status < 300:
            return
        said = self._clean((await response.aread()).decode("utf-8", "replace"))
        if status == 429 and "insufficient_quota" in said:
            raise Refused(f"{self._place} says that the account is used up: {said}")
        if status == 429 or status >= 500:
            raise _Trouble(f"HTTP {status}: {said}", _retry_after_s(response.headers))
        if status in (401, 403):
            raise SpecError(
                f"{self._place} does not take the key (HTTP {status}): does the variable that `key` names hold the key "
                "of this endpoint?"
            )
        if status == 404:
            raise SpecError(f"{self._place} knows no {self.endpoint.model!r}, or its API is not there: {said}")
        if status < 400:
            raise SpecError(f"{self._place} is elsewhere (HTTP {status}): write the url that it leads to")
        raise SpecError(f"{self._place} does not accept the request (HTTP {status}): {said}")

    async def _read(self, response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
        """The JSON of every event, or of the whole answer."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            yield self._parsed((await response.aread()).decode("utf-8", "replace"))
            return
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                return
            yield self._parsed(data)
        raise _Trouble("the stream ended before its end")

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise DataError(f"{self._place} answers with what is no JSON: {self._clean(text)}") from error
        if not isinstance(answer, dict):
            raise DataError(f"{self._place} answers with what is no object: {self._clean(text)}")
        fault = answer.get("error")
        if fault:
            code = fault.get("code") if isinstance(fault, dict) else None
            if isinstance(code, int) and 400 <= code < 500 and code != 429:
                raise SpecError(f"{self._place} breaks off: {self._clean(str(fault))}")
            raise _Trouble(self._clean(str(fault)))
        return answer

    def _pause_s(self, failures: int, after_s: float | None) -> float:
        """Twice as long each time, with jitter so that many clients do not come back at once; at least as asked."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures - 1)) * self._uniform(0.5, 1.0)
        return max(pause, after_s or 0.0)

    @property
    def _place(self) -> str:
        return f"the endpoint {self.endpoint.url}"

    def _clean(self, text: str) -> str:
        """The beginning of what a server said, on one line, without the key, which some of them repeat."""
        if self.endpoint.key:
            text = text.replace(self.endpoint.key, "***")
        return " ".join(text.split())[:_SHOWN]


class _Took:
    """What a request took: what the server says, and until it does, what has arrived."""

    def __init__(self, prompt: int) -> None:
        self.tokens = Tokens(prompt)

    def add(self, event: Mapping[str, Any]) -> None:
        """Hear one event, or the whole answer."""
        usage = event.get("usage")
        if usage:
            self.tokens = Tokens(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            return
        for choice in event.get("choices") or ():
            ids = choice.get("token_ids")
            self.tokens += Tokens(0, len(ids) if ids is not None else 1)


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """What Retry-After asks for: seconds, or a time, which is counted from the answer's own."""
    asked = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(asked))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(asked) - parsedate_to_datetime(headers["date"])).total_seconds())
    return None
