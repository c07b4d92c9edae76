"""Scores from a service: what is asked, what is believed, and how long one waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

from engine.errors import Cause, FunctionError, ServiceDown
from engine.functions.served import ServedScores, open_scored
from engine.functions.sources import Sources, is_scored, reward_hash
from engine.runtime.context import Address
from engine.runtime.json_server import JsonServer, Rejected

DONE = "def done_fn(text):\n    return text.endswith('.')"
JUDGE = {"kind": "command", "argv": ["serve"], "start_timeout": 30.0, "gpus": 0, "version": "1"}


def spec(**dataset: Any) -> dict[str, Any]:
    return {"dataset": {"score_by": "judge", "done_fn": DONE, **dataset}, "services": {"judge": dict(JUDGE)}}


@pytest.fixture
def served() -> Iterator[Callable[..., ServedScores]]:
    """`served(answer)` asks a service that answers so."""
    opened: list[Any] = []

    def make(answer: Callable[[Any], Any], patience_s: float = 30.0) -> ServedScores:
        server = JsonServer("127.0.0.1", 0, {"/score": answer}, "secret")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = spec()
        config["services"]["judge"]["start_timeout"] = patience_s
        functions = open_scored(config, {"judge": Address(f"http://127.0.0.1:{server.server_port}", "secret")})
        assert isinstance(functions, ServedScores)
        opened.append((functions, server))
        return functions

    yield make
    for functions, server in opened:
        functions.close()
        server.shutdown()
        server.server_close()


def test_texts_and_answers_go_there_and_scores_come_back(served: Callable[..., ServedScores]) -> None:
    asked: list[int] = []

    def answer(request: Any) -> Any:
        asked.append(len(request["texts"]))
        pairs = zip(request["texts"], request["answers"], strict=True)
        return {"scores": [len(text) + gold for text, gold in pairs]}

    functions = served(answer)

    assert functions.score(["a", "bb", "ü\n"], [10, 20, 30]) == [11.0, 22.0, 32.0]
    assert functions.score(["x"] * 600, [0] * 600) == [1.0] * 600
    assert asked == [3, 256, 256, 88]
    assert functions.score([], []) == []
    assert functions.done(["a.", "b"]) == [True, False], "the rest is the user's functions'"
    assert not functions.has_reply


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"scores": [1.0]}, "a number a text"),
        ({"scores": "ab"}, "a number a text"),
        ([1, 2], "a number a text"),
        ({"scores": [1.0, None]}, "gives None"),
        ({"scores": [True, 1.0]}, "gives True"),
        ({"scores": [1.0, float("inf")]}, "gives inf"),
    ],
)
def test_what_is_no_score_is_the_services_fault(served: Callable[..., ServedScores], said: Any, message: str) -> None:
    with pytest.raises(FunctionError, match=message) as caught:
        served(lambda request: said).score(["a", "b"], [None, None])
    assert caught.value.cause is Cause.REWARD_ERROR
    assert "the service judge" in str(caught.value)


def test_a_request_that_is_refused_is_not_sent_again(served: Callable[..., ServedScores]) -> None:
    asked: list[Any] = []

    def refuse(request: Any) -> Any:
        asked.append(request)
        raise Rejected("too long")

    with pytest.raises(FunctionError, match=r"answers 400.*too long"):
        served(refuse).score(["a"], [None])
    assert len(asked) == 1


def test_one_that_is_away_is_asked_again(served: Callable[..., ServedScores]) -> None:
    states = iter([True, True, False])

    def answer(request: Any) -> Any:
        if next(states):
            raise Rejected("starting", HTTPStatus.SERVICE_UNAVAILABLE)
        return {"scores": [0.5]}

    assert served(answer).score(["a"], [None]) == [0.5]


def test_not_for_ever() -> None:
    address = Address("http://127.0.0.1:9", "secret")  # nobody listens there
    config = spec()
    config["services"]["judge"]["start_timeout"] = 0.3
    functions = open_scored(config, {"judge": address})
    try:
        with pytest.raises(ServiceDown, match=r"did not score within 0\.3 s: ConnectionRefusedError"):
            functions.score(["a"], [None])
    finally:
        functions.close()


def test_the_version_of_the_reward_covers_what_the_service_serves() -> None:
    def changed(**service: Any) -> str:
        other = spec()
        other["services"]["judge"] |= service
        return reward_hash(other)

    assert changed(version="2") != changed()
    assert changed(gpus=1, start_timeout=5.0) == changed()
    assert reward_hash(spec(done_fn=None)) != changed()
    plain = {"dataset": {"score_fn": "def score_fn(text, answer): return 1"}}
    assert reward_hash(plain) == Sources.of(plain["dataset"]).hash, "as before there were services"
    assert [is_scored(block) for block in ({}, spec()["dataset"], plain["dataset"])] == [False, True, True]
