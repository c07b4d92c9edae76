"""The service kind `reward`: a reward model behind `POST /score`. Requests that come together are scored together.

    {"texts": ["…"]}                                     whole conversations, as `score_fn` gets them
    {"prompt": "…" or [messages], "completions": ["…"]}  answers to one prompt
    →  {"scores": [0.5, …]}

Run as `python -m engine.lm.reward_server HOST PORT OPTIONS`, the options being JSON.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeGuard

import torch

from engine.errors import DataError
from engine.lm.reference import Source, parse
from engine.lm.reward_model import RewardModel
from engine.runtime.json_server import Rejected, serve, texts_of

MOST_TEXTS = 4096


class Together:
    """Scores what several threads ask for, in one thread, all that has come meanwhile at once."""

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self._asked: queue.SimpleQueue[tuple[Sequence[list[int]], Future[list[float]]]] = queue.SimpleQueue()
        self.batches = 0
        threading.Thread(target=self._work, name="scoring", daemon=True).start()

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        """The reward of each. Raises what scoring raised."""
        future: Future[list[float]] = Future()
        self._asked.put((texts, future))
        return future.result()

    def _work(self) -> None:
        while True:
            asked = [self._asked.get()]
            while not self._asked.empty():
                asked.append(self._asked.get())
            self.batches += 1
            try:
                scores = self._model.score([ids for texts, _ in asked for ids in texts])
            except Exception as error:  # noqa: BLE001 - told to everybody who waits
                for _, future in asked:
                    future.set_exception(error)
                continue
            for texts, future in asked:
                future.set_result(scores[: len(texts)])
                scores = scores[len(texts) :]


def score(model: RewardModel, together: Together, request: Any) -> dict[str, list[float]]:
    """The answer to one request. Raises Rejected."""
    if isinstance(request, dict) and "completions" in request:
        completions = texts_of(request, "completions", most=MOST_TEXTS)
        prompt = request.get("prompt")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not _are_messages(messages):
            raise Rejected("completions answer a 'prompt': a text, or a list of messages with role and content")
        try:
            return {"scores": together.score([model.of_answer(messages, text) for text in completions])}
        except DataError as error:
            raise Rejected(str(error)) from error
    return {"scores": together.score([model.of_text(text) for text in texts_of(request, "texts", most=MOST_TEXTS)])}


def _are_messages(messages: Any) -> TypeGuard[list[dict[str, str]]]:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in messages)
    )


def main(host: str, port: int, options: Mapping[str, Any]) -> None:
    """Load, then serve until told to stop."""
    found = parse(options["model"])
    source = Source(found.name, found.label if found.kind == "hub" else None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RewardModel(source, max_tokens=options["max_tokens"], batch_tokens=options["batch_tokens"], device=device)
    together = Together(model)
    serve(host, port, {"/score": lambda request: score(model, together, request)})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
