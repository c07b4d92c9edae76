"""Requests to an endpoint: tried again where that can help and only there, within limits, every token accounted for."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError, Refused, RlxError, SpecError, Unreachable
from engine.lm.endpoint import Client, of_service
from engine.lm.openai import chat
from engine.lm.spending import Allowance, Ledger, Spent, Tokens
from engine.runtime.context import Address
from engine.runtime.local import LocalContext
from engine.spec.endpoint import Endpoint
from engine.spec.services import Hosted
from tests.lm.scripted_endpoint import Reply, Script, Served, serving

KEY = "sk-very-secret"
QUESTION = [{"role": "user", "content": "Is it so?"}]
YES = Reply(
    body={
        "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
)


class FakeTime:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


Opened = Callable[..., tuple[Client, Served, FakeTime]]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """`opened(script, **settings)`: a client of a server that answers so, whose waits take no time."""
    with ExitStack() as stack:

        def make(script: Script, **settings: Any) -> tuple[Client, Served, FakeTime]:
            served, time = stack.enter_context(serving(script)), FakeTime()
            endpoint = Endpoint(url=served.url, model="judge", key=KEY, **settings)
            client = Client(endpoint, now=time.now, sleep=time.sleep, uniform=lambda low, high: high)
            return stack.enter_context(client), served, time

        yield make


def after(*failures: Reply) -> Script:
    """These answers, one each, and yes from then on."""
    return lambda number, _: failures[number] if number < len(failures) else YES


def test_a_stage_asks_a_hosted_service_within_its_limits_and_a_started_one_as_it_pleases(tmp_path):
    hosted = Hosted(kind="endpoint", url="http://far/v1", model="judge", key="${env:KEY}", retries=2, concurrency=3)
    declared = {"hosted": hosted.model_dump(mode="json"), "started": {"kind": "vllm", "retries": 9}}
    near = Address("http://127.0.0.1:1/v1", "made-up", "org/name")
    ctx = LocalContext(
        {"services": declared}, 0, tmp_path, services={"hosted": Address(hosted.url, "real", "judge"), "started": near}
    )

    assert of_service(ctx, "hosted") == Endpoint(url=hosted.url, model="judge", key="real", retries=2, concurrency=3)
    assert of_service(ctx, "started") == Endpoint(url=near.url, model="org/name", key="made-up")


def test_a_question_and_its_answer(opened):
    client, served, time = opened(after())

    [answer] = chat(client, [QUESTION], max_tokens=5, stop=["\n"], seed=3)

    assert (answer.text, answer.finish, answer.tokens) == ("yes", "stop", Tokens(9, 2))
    assert served.paths == ["/v1/chat/completions"]
    assert served.authorisations == [f"Bearer {KEY}"]
    asked = {"model": "judge", "messages": QUESTION, "max_tokens": 5, "temperature": 0.0, "stop": ["\n"], "seed": 3}
    assert served.bodies == [asked]
    assert time.sleeps == []


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_may_pass_is_tried_again_after_ever_longer_pauses(opened, status):
    client, served, time = opened(after(*[Reply(status, body={"detail": "busy"})] * 3))

    [answer] = chat(client, [QUESTION], max_tokens=5)

    assert answer.text == "yes"
    assert len(served.bodies) == 4
    assert time.sleeps == [0.5, 1.0, 2.0]
    assert client.spent == Spent(4, 9, 2, 0.0)  # what failed took no tokens


def test_a_pause_is_as_long_as_the_server_asks(opened):
    replies = [
        Reply(429, {"Retry-After": "7"}, body={}),
        Reply(503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)}, body={}),
        Reply(503, {"Retry-After": "soon"}, body={}),
    ]
    client, _, time = opened(after(*replies))

    chat(client, [QUESTION], max_tokens=5)

    assert time.sleeps[0] == 7.0
    assert (
        time.sleeps[1] >= 1.0
    )  # http.server sends a date of its own first; which of the two counts is the client's choice
    assert time.sleeps[2] == 2.0


def test_jitter_spreads_the_pauses(opened):
    drawn = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    time = FakeTime()
    with serving(after(*[Reply(500, body={})] * 2)) as served:
        client = Client(Endpoint(url=served.url, model="m"), now=time.now, sleep=time.sleep, uniform=uniform)
        with client:
            chat(client, [QUESTION], max_tokens=5)

    assert drawn == [(0.5, 1.0)] * 2
    assert time.sleeps == [0.25, 0.5]


def test_an_endpoint_that_stays_broken_is_unreachable(opened):
    client, served, time = opened(lambda *_: Reply(503, body={"detail": "loading"}), retries=2)

    with pytest.raises(Unreachable, match=r"after 3 tries: HTTP 503: .*loading"):
        chat(client, [QUESTION], max_tokens=5)

    assert len(served.bodies) == 3
    assert len(time.sleeps) == 2


def test_one_that_asks_for_more_patience_than_there_is_is_unreachable_at_once(opened):
    client, served, _ = opened(lambda *_: Reply(429, {"Retry-After": "86400"}, body={}), timeout=60.0)

    with pytest.raises(Unreachable):
        chat(client, [QUESTION], max_tokens=5)

    assert len(served.bodies) == 1


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    time = FakeTime()
    client = Client(Endpoint(url=url, model="m", retries=1), now=time.now, sleep=time.sleep)
    with client, pytest.raises(Unreachable, match="after 2 tries: ConnectError"):
        chat(client, [QUESTION], max_tokens=5)


@pytest.mark.parametrize("limit", ["read_timeout", "timeout"])
def test_silence_is_ended_and_tried_again(opened, limit):
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        time = FakeTime()
        endpoint = Endpoint(url=url, model="m", retries=1, **{limit: 0.1})
        client = Client(endpoint, now=time.now, sleep=time.sleep)
        with client, pytest.raises(Unreachable, match=r"after 2 tries: (silence|no whole answer within 0.1 s)"):
            chat(client, [QUESTION], max_tokens=5)


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(401, body={"error": f"bad key {KEY}"}), SpecError, "does not take the key"),
        (Reply(403, body={}), SpecError, "does not take the key"),
        (Reply(404, body={"error": "no model"}), SpecError, "knows no 'judge'"),
        (Reply(400, body={"error": f"too long, {KEY}"}), SpecError, r"HTTP 400\).*too long, \*\*\*"),
        (Reply(307, {"Location": "https://elsewhere/"}, body={}), SpecError, "is elsewhere"),
        (Reply(429, body={"error": {"code": "insufficient_quota"}}), Refused, "account is used up"),
        (Reply(body="<html>"), DataError, "no JSON"),
        (Reply(body=[1]), DataError, "no object"),
        (Reply(body={"choices": []}), DataError, "without a choice"),
    ],
)
def test_what_another_try_cannot_cure_is_said_at_once_and_never_shows_the_key(opened, reply, error, words):
    client, served, time = opened(lambda *_: reply)

    with pytest.raises(error, match=words) as caught:
        chat(client, [QUESTION], max_tokens=5)

    assert len(served.bodies) == 1
    assert time.sleeps == []
    assert KEY not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {client.endpoint!r}"
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), RlxError)


def test_the_key_is_not_in_the_error_of_a_server_that_repeats_it_to_the_end(opened):
    client, _, _ = opened(lambda *_: Reply(500, body={"error": f"{KEY} {KEY}"}), retries=1)

    with pytest.raises(Unreachable) as caught:
        chat(client, [QUESTION], max_tokens=5)

    assert KEY not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_no_more_requests_at_once_than_allowed(opened):
    client, served, _ = opened(after(), concurrency=3)

    answers = chat(client, [QUESTION] * 20, max_tokens=5)

    assert len(answers) == 20
    assert served.most_at_once <= 3
    assert client.spent.requests == 20


def test_requests_and_tokens_keep_to_their_minutes(opened):
    client, _, time = opened(after(), requests_per_minute=60)
    chat(client, [QUESTION] * 180, max_tokens=5)
    assert time.time == pytest.approx(120.0, abs=0.1)  # a minute's worth at once, the rest one a second

    most = len(b"Is it so?") + 16 + 100
    client, _, time = opened(after(), tokens_per_minute=most, concurrency=1)
    chat(client, [QUESTION] * 4, max_tokens=100)
    # each puts `most` aside and gives back all but the 11 tokens that it took
    assert time.time == pytest.approx(3 * 11 * 60 / most, abs=0.1)


def test_a_request_larger_than_a_minute_is_refused_and_not_waited_for(opened):
    client, _, _ = opened(after(), tokens_per_minute=50)

    with pytest.raises(SpecError, match="tokens_per_minute"):
        chat(client, [QUESTION], max_tokens=100)


def test_a_budget_is_not_exceeded_by_a_cent(opened):
    prices = {"price_in": 100.0, "price_out": 1000.0}
    worst = (25 * 100 + 5 * 1000) / 1e6
    each = (9 * 100 + 2 * 1000) / 1e6
    client, served, _ = opened(after(), budget=worst + 3 * each, **prices)

    for _ in range(4):
        chat(client, [QUESTION], max_tokens=5)
    with pytest.raises(Refused, match="leaves no room"):
        chat(client, [QUESTION], max_tokens=5)

    assert len(served.bodies) == 4
    assert client.spent == Spent(4, 36, 8, pytest.approx(4 * each))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 100), st.booleans()), max_size=30))
def test_whatever_is_settled_was_within_the_budget(requests):
    ledger = Ledger(Endpoint(url="http://x", model="m", price_in=1e6, price_out=2e6, budget=200.0))
    under_way = []
    for prompt, completion, percent, late in requests:
        most = Tokens(prompt, completion)
        try:
            ledger.reserve(most)
        except Refused:
            continue
        took = Tokens(prompt, completion * percent // 100)
        under_way.append((most, took))
        if not late:
            ledger.settle(*under_way.pop())
    for most, took in under_way:
        ledger.settle(most, took)

    spent = ledger.spent
    assert spent.cost == pytest.approx(spent.prompt_tokens + 2 * spent.completion_tokens)
    assert spent.cost <= 200.0


@given(st.floats(0.5, 1e6), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_no_minute_sees_more_than_its_allowance_and_a_full_bucket(limit, shares):
    time = FakeTime()
    allowance = Allowance(limit, "x", now=time.now, sleep=time.sleep)
    taken: list[tuple[float, float]] = []

    async def take_all() -> None:
        for share in shares:
            await allowance.take(share * limit)
            taken.append((time.time, share * limit))

    asyncio.run(take_all())

    for start, _ in taken:
        within = sum(amount for at, amount in taken if start <= at <= start + 60.0)
        assert within <= 2 * limit * (1 + 1e-6) + 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "localhost:8000"}, "no endpoint"),
        ({"url": "https://me:pw@host/v1"}, "use `key`"),
        ({"url": "https://host/v1?key=x"}, "use `key`"),
        ({"budget": 5.0}, "needs prices"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Endpoint(**{"url": "http://host/v1", "model": "m", **changes})


def test_a_key_is_a_secret_like_any_other():
    endpoint = Endpoint.model_validate({"url": "http://host/v1/", "model": "m", "key": "${env:JUDGE_KEY}"})

    assert endpoint.url == "http://host/v1"
    assert "JUDGE" not in repr(endpoint)
