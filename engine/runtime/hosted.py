"""A service that somebody else runs, as its stage's process sees it: nothing is started, and it is asked once.

Whether it answers is asked in a thread, so that a stage can stop while an address is silent. Once it has answered it is
not watched: its clients are patient (`lm.endpoint`), and say what is wrong with an answer.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import RlxError, ServiceDown, SpecError
from engine.runtime.context import Address

LISTING = "/models"
"""The path whose answer names the models that there are."""
_PAUSE_S = 0.5
_SHOWN = 300


class Hosted:
    """See the module. `start`, then `look` until `healthy`; `over` ends its asking."""

    def __init__(self, name: str, definition: Mapping[str, Any], log: Path, over: threading.Event) -> None:
        self.name = name
        self.healthy = False
        self._definition, self._log, self._over = definition, log, over
        self._failure: RlxError | None = None
        self._answered = threading.Event()

    @property
    def address(self) -> Address:
        """As the spec gives it."""
        return Address(self._definition["url"], self._definition["key"] or "", self._definition["model"])

    def start(self) -> None:
        """Begin to ask whether it answers."""
        self._note(f"{self._place} is somebody else's: nothing is started. Requests ask for {self.address.model!r}")
        # A daemon: looking up a name cannot be interrupted.
        threading.Thread(target=self._ask, name=f"endpoint {self.name}", daemon=True).start()

    def look(self, timeout_s: float = 0.0) -> None:
        """Whether it has answered. Raises ServiceDown where it is away, SpecError where asking again is no use."""
        self._answered.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        self.healthy = self._answered.is_set()

    def _ask(self) -> None:
        try:
            self._wait_for_answer()
            self._note(f"{self._path} answers")
        except RlxError as error:
            self._note(str(error))
            self._failure = error
        except Exception as error:  # noqa: BLE001 - raised in the stage's own thread
            self._failure = ServiceDown(f"{self._place} cannot be asked: {type(error).__name__}: {self._clean(error)}")
        self._answered.set()

    def _wait_for_answer(self) -> None:
        """Ask until it answers 200. Raises ServiceDown once that takes too long, SpecError for what stays as it is."""
        import httpx2  # as its clients do, so that proxies and certificates are the same; light stages need it seldom

        key, patience_s = self._definition["key"], self._definition["start_timeout"]
        connect_s, read_s = self._definition["connect_timeout"], self._definition["read_timeout"]
        deadline = time.monotonic() + patience_s
        with httpx2.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, follow_redirects=False) as client:
            while not self._over.is_set():
                left = max(_PAUSE_S, deadline - time.monotonic())
                patience = httpx2.Timeout(min(read_s, left), connect=min(connect_s, left))
                try:
                    response = client.get(self._path, timeout=patience)
                    said = self._refused(response.status_code, response.text)
                    if said is None:
                        self._has_model(response)
                        return
                except httpx2.TransportError as error:
                    said = f"{type(error).__name__}: {self._clean(error)}"
                if time.monotonic() + _PAUSE_S > deadline:
                    raise ServiceDown(
                        f"{self._place} did not answer within {patience_s:g} s (`start_timeout`): {said}. "
                        "Is it up, and can this host reach it?"
                    )
                self._over.wait(_PAUSE_S)

    def _refused(self, status: int, text: str) -> str | None:
        """Why this is no answer yet, None where it is one. Raises SpecError for what asking again does not change."""
        said = f"GET {self._path} gives HTTP {status}: {self._clean(text)}"
        if status == 200:
            return None
        if status == 429 or status >= 500:
            return said
        where = f"services.{self.name}"
        if status in (401, 403) and self._definition["key"] is None:
            raise SpecError(f"{self._place} asks for a key (HTTP {status}): write {where}.key: ${{env:NAME}}")
        if status in (401, 403):
            raise SpecError(
                f"{self._place} does not take the key (HTTP {status}): does the variable that {where}.key names hold, "
                "on this worker, the key of this endpoint?"
            )
        if status == 404:
            raise SpecError(
                f"{said}. {where}.url is to be where its API begins (it often ends in /v1); for a server without "
                f"{LISTING} set {where}.health to a path that it has"
            )
        raise SpecError(f"{said}. Correct {where}.url or {where}.health")

    def _has_model(self, response: Any) -> None:
        """Raises SpecError where it lists its models, and this one is not among them."""
        if self._definition["health"] != LISTING:
            return
        model, where = self._definition["model"], f"services.{self.name}"
        try:
            names = [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise SpecError(
                f"{self._path} lists no models, but answers: {self._clean(response.text)}. Is {where}.url where an "
                f"OpenAI-compatible API begins? If its list is of another form, set {where}.health to another path"
            ) from None
        if model not in names:
            close = difflib.get_close_matches(model, names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(names[:5]) or 'none'}."
            raise SpecError(
                f"{self._place} has no model {model!r}. {hint} Correct {where}.model; if its list is not complete, set "
                f"{where}.health to another path"
            )

    @property
    def _path(self) -> str:
        return f"{self._definition['url']}{self._definition['health']}"

    @property
    def _place(self) -> str:
        return f"service {self.name}: the endpoint {self._definition['url']}"

    def _clean(self, said: object) -> str:
        """The beginning of what it said, on one line, without the key, which some of them repeat."""
        text = str(said)
        if self._definition["key"]:
            text = text.replace(self._definition["key"], "***")
        return " ".join(text.split())[:_SHOWN]

    def _note(self, line: str) -> None:
        """A line in the log that `rlx logs --service` shows."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
