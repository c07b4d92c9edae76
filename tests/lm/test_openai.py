"""The sampler on an endpoint: what it asks, where it hangs up, and how it goes on after a break."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest

from engine.errors import DataError, FunctionError, SpecError
from engine.lm.endpoint import Client
from engine.lm.hf import HFSampler
from engine.lm.noise import NoiseKey, seeds
from engine.lm.openai import OpenAISampler
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from engine.lm.spending import Spent
from engine.spec.endpoint import Endpoint
from tests.lm.families import ScriptedStops
from tests.lm.scripted_endpoint import Reply, serving, speaking, text_event, token_event, usage_event
from tests.lm.speaking import assert_same, prompts_of, speaking_policy

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def policy(tokenizer: Any) -> Policy:
    return speaking_policy(tokenizer)


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


def client_of(url: str, **settings: Any) -> Client:
    return Client(Endpoint(url=url, model="m", **settings), sleep=at_once)


def test_what_is_asked_of_the_endpoint(policy):
    params = SamplingParams(max_new_tokens=4, temperature=0.7, top_k=5, top_p=0.9)
    stream = [token_event([5], [-1.0]), token_event([6, 7], [-2.0, -3.0]), token_event([8], [-4.0]), usage_event(2, 4)]
    with serving(lambda *_: Reply(events=stream)) as served, client_of(served.url) as client:
        sampler = OpenAISampler(client, policy.tokenizer)

        [group] = sampler.generate([[3, 4]], 2, params, None, [NoiseKey(1)])

    assert [completion.token_ids for completion in group] == [[5, 6, 7, 8]] * 2
    assert [completion.logps for completion in group] == [[-1.0, -2.0, -3.0, -4.0]] * 2
    assert sorted(body.pop("seed") for body in served.bodies) == sorted(seeds([NoiseKey(1)], 2))
    assert served.bodies[0] == {
        "model": "m",
        "prompt": [3, 4],
        "max_tokens": 4,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_request_is_cancelled_at_a_stop_and_nothing_beyond_it_is_kept(policy):
    (full_stop,) = policy.encode(".")
    word = policy.encode("x")[0]

    def endless() -> Iterator[dict[str, Any]]:
        yield token_event([word, word, full_stop, word], [-1.0] * 4)  # more than one token at once, too many
        yield from repeat(token_event([word], [-1.0]))

    params = SamplingParams(max_new_tokens=1_000_000, temperature=0.0)
    with serving(lambda *_: Reply(events=endless())) as served, client_of(served.url) as client:
        [[said]] = OpenAISampler(client, policy.tokenizer).generate([[3]], 1, params, ScriptedStops(split="\x00"))

        assert served.hung_up.wait(20)  # the server cannot write any more
        assert (said.token_ids, said.finish, said.done) == ([word, word, full_stop], "done", True)
        assert client.spent.requests == 1
        assert client.spent.completion_tokens >= 4


def test_a_broken_stream_goes_on_from_where_it_broke(policy):
    whole = speaking(policy)
    asked_tokens = []

    def script(number: int, body: Any) -> Reply:
        asked_tokens.append((len(body["prompt"]), body["max_tokens"]))
        reply = whole(number, body)
        events = list(reply.events or ())
        return Reply(events=events[:5], broken=True) if number < 2 else reply

    prompt = prompts_of(policy)[0]
    stops = ScriptedStops(split="\x00", done="\x00")
    with serving(script) as served, client_of(served.url) as client:
        said = OpenAISampler(client, policy.tokenizer).generate([prompt], 1, GREEDY, stops)

    assert_same(said, HFSampler(policy).generate([prompt], 1, GREEDY))
    assert stops.calls == 12  # each token was judged once
    assert asked_tokens == [(len(prompt), 12), (len(prompt) + 5, 7), (len(prompt) + 10, 2)]


def test_tokens_and_cost_of_what_was_streamed(policy):
    stream = [token_event([5], [-1.0]), token_event([6], [-1.0]), usage_event(2, 2)]
    settings = {"price_in": 1.0, "price_out": 10.0}
    params = SamplingParams(max_new_tokens=2, temperature=0.0)
    with serving(lambda *_: Reply(events=stream)) as served, client_of(served.url, **settings) as client:
        OpenAISampler(client, policy.tokenizer).generate([[3, 4]], 3, params)

        assert client.spent == Spent(3, 6, 6, pytest.approx(66e-6))


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([text_event("a"), text_event("b", "length")], "token_ids: false"),
        ([{"choices": [{"index": 0, "token_ids": [5], "text": "x"}]}], "no log-probability for every token"),
        ([token_event([5], [-1.0])], "ended a completion after 1 of 12 tokens"),
    ],
)
def test_an_endpoint_that_does_not_keep_to_token_ids_is_told_from_one_that_does(policy, stream, words):
    with (
        serving(lambda *_: Reply(events=stream)) as served,
        client_of(served.url) as client,
        pytest.raises(DataError, match=words),
    ):
        OpenAISampler(client, policy.tokenizer).generate([[3]], 1, GREEDY)


def test_what_fails_after_a_row_has_ended_does_not_matter_and_before_it_does(policy):
    (full_stop,) = policy.encode(".")
    fault = {"error": {"code": 400, "message": "gone"}}

    def run(ids: list[int]) -> Any:
        stream = [token_event(ids, [-1.0] * len(ids)), fault]
        with serving(lambda *_: Reply(events=stream)) as served, client_of(served.url) as client:
            return OpenAISampler(client, policy.tokenizer).generate([[3]], 1, GREEDY, ScriptedStops())

    [[said]] = run([full_stop])
    assert said.finish == "done"
    with pytest.raises(SpecError, match="gone"):
        run(policy.encode("x"))


def test_a_failing_user_function_hangs_up_and_closes_its_rows(policy):
    class Failing(ScriptedStops):
        def extend(self, rows, pieces):
            raise FunctionError("done_fn", "broke")

    stops = Failing()
    stream = repeat(token_event(policy.encode("x")[:1], [-1.0]))
    params = SamplingParams(max_new_tokens=1_000_000, temperature=0.0)
    with serving(lambda *_: Reply(events=stream)) as served, client_of(served.url) as client:
        with pytest.raises(FunctionError):
            OpenAISampler(client, policy.tokenizer).generate([[3]], 2, params, stops)

        assert served.hung_up.wait(20)
        assert stops.closed == {0, 1}


@pytest.mark.parametrize(
    ("pieces", "text", "finish", "done"),
    [
        ([("One ", None), ("two", None), ("", "stop")], "One two", "eos", False),
        ([("One ", None), ("two", "length")], "One two", "length", False),
        ([("One.", None), (" And more", None), ("", "stop")], "One.", "done", True),
        ([("One\n", None), (" And more", "stop")], "One\n", "split", False),
        ([("One.", "stop")], "One.", "done", True),  # the functions go before the endpoint's own end
    ],
)
def test_an_endpoint_that_knows_only_text(policy, pieces, text, finish, done):
    stream = [*(text_event(*piece) for piece in pieces), usage_event(3, 3)]
    stops = ScriptedStops()
    with serving(lambda *_: Reply(events=stream)) as served, client_of(served.url, token_ids=False) as client:
        prompt = policy.encode("You are")
        [[said]] = OpenAISampler(client, policy.tokenizer).generate([prompt], 1, GREEDY, stops)

    assert (said.text, said.finish, said.done) == (text, finish, done)
    assert said.token_ids == policy.encode(text)
    assert said.logps == []
    assert stops.texts == {0: text}
    assert served.bodies[0]["prompt"] == "You are"
    assert not {"return_token_ids", "ignore_eos", "logprobs", "top_k"} & set(served.bodies[0])


def test_nothing_asked_nothing_said(policy):
    with client_of("http://127.0.0.1:9/v1") as client:
        assert OpenAISampler(client, policy.tokenizer).generate([], 3, GREEDY) == []
