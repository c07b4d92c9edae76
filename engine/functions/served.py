"""Scores from a service in place of a `score_fn`; everything else from the user's functions.

The service answers `POST /score`: {"texts": […], "answers": […]} → {"scores": […]}, a finite number a text. While it is
away it is asked again: the engine starts it once more, and fails the stage where it stays away.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from engine.errors import FunctionError, ServiceDown
from engine.functions.client import FunctionHost, Streams, open_functions
from engine.functions.sources import Sources, reward_hash
from engine.log import get_logger
from engine.runtime.context import Address
from engine.runtime.stopwatch import spends

log = get_logger(__name__)

_BATCH_TEXTS = 256
_ANSWER_S = 600.0
"""For one request: a large model scores many long texts."""
_AGAIN_S = 0.2
_WHO = "score_by"


def open_scored(config: Mapping[str, Any], services: Mapping[str, Address]) -> FunctionHost | ServedScores:
    """The functions of the dataset block in `config`, scored by the service that it names, if it names one."""
    dataset = config["dataset"]
    sources, name = Sources.of(dataset), dataset.get("score_by")
    if name is None:
        return open_functions(sources)
    patience_s = config["services"][name]["start_timeout"]
    return ServedScores(open_functions(sources), name, services[name], reward_hash(config), patience_s)


class ServedScores:
    """See the module, and `runtime.context.Functions`."""

    def __init__(self, host: FunctionHost, name: str, address: Address, digest: str, patience_s: float) -> None:
        self._host, self._name, self._address, self._hash = host, name, address, digest
        self._patience_s = patience_s
        self._connection = HTTPConnection(urlsplit(address.url).netloc, timeout=_ANSWER_S)

    @property
    def hash(self) -> str:
        """SHA-256 over the functions' sources and what the service serves: the version of the reward."""
        return self._hash

    @property
    def has_reply(self) -> bool:
        """Whether there is a `reply_fn`."""
        return self._host.has_reply

    def score(self, texts: Sequence[str], answers: Sequence[Any]) -> list[float]:
        """What the service gives each text. Raises FunctionError where that is no score, ServiceDown."""
        scores: list[float] = []
        for start in range(0, len(texts), _BATCH_TEXTS):
            part = slice(start, start + _BATCH_TEXTS)
            scores += self._scores(texts[part], answers[part])
        return scores

    def done(self, texts: Sequence[str]) -> list[bool]:
        """`done_fn` of each whole conversation."""
        return self._host.done(texts)

    def split(self, outputs: Sequence[str]) -> list[bool]:
        """`split_fn` of each utterance's text."""
        return self._host.split(outputs)

    def reply(self, texts: Sequence[str], answers: Sequence[Any]) -> list[str]:
        """`reply_fn(text, answer)` of each pair."""
        return self._host.reply(texts, answers)

    def stops(self) -> Streams:
        """The done and split functions over growing texts."""
        return self._host.stops()

    def close(self) -> None:
        """End the functions' host; the service is the engine's."""
        self._connection.close()
        self._host.close()

    @spends("functions")
    def _scores(self, texts: Sequence[str], answers: Sequence[Any]) -> list[float]:
        body = json.dumps({"texts": list(texts), "answers": list(answers)})
        status, answer = self._ask(body)
        if status != 200:
            raise FunctionError(_WHO, f"the service {self._name} answers {status}: {answer[:500]}", None, texts[0])
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError):
            scores = None
        if not isinstance(scores, list) or len(scores) != len(texts):
            message = f"the service {self._name} must answer {{'scores': [a number a text]}}, not {answer[:200]}"
            raise FunctionError(_WHO, message, None, texts[0])
        for text, score in zip(texts, scores, strict=True):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise FunctionError(_WHO, f"the service {self._name} gives {score!r}, no finite number", None, text)
        return [float(score) for score in scores]

    def _ask(self, body: str) -> tuple[int, str]:
        """Status and text of its answer, as soon as it gives one. Raises ServiceDown."""
        deadline, waiting = time.monotonic() + self._patience_s, threading.Event()
        headers = {"Authorization": f"Bearer {self._address.key}", "Content-Type": "application/json"}
        while True:
            try:
                self._connection.request("POST", f"{urlsplit(self._address.url).path}/score", body, headers)
                response = self._connection.getresponse()
                status, answer = response.status, response.read().decode("utf-8", "replace")
                if status < 500:
                    return status, answer
                error = f"it answers {status}: {answer[:500]}"
            except (OSError, HTTPException) as failure:
                error = f"{type(failure).__name__}: {failure}"
            self._connection.close()  # opened anew by the next request
            if time.monotonic() > deadline:
                raise ServiceDown(f"service {self._name} did not score within {self._patience_s:g} s: {error}")
            log.warning("the service does not score, asking again", extra={"service": self._name, "error": error})
            waiting.wait(_AGAIN_S)
