"""Services that somebody else runs: asked at a stage's start, and every reason why they cannot be used told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Cause, RlxError, ServiceDown, SpecError
from engine.runtime import causes
from engine.runtime.context import Address, Stopped
from engine.runtime.services import Around, running
from engine.spec.services import Hosted
from tests.lm.scripted_endpoint import Reply, Served, serving
from tests.runtime.test_services import command

KEY = "sk-very-secret"


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(lambda number, body: Reply(body={})) as served:
        yield served


def beside(
    folder: Path, url: str, stop: threading.Event | None = None, *, key: str | None = KEY, **more: Any
) -> AbstractContextManager[Any]:
    """A block within which the service is there, with the key as a worker has filled it in."""
    block = Hosted(kind="endpoint", url=url, model="judge", **more).model_dump(mode="json")
    around = Around(lambda name: folder / f"{name}.log")
    return running({"judge": block | {"key": key}}, {}, around, stop or threading.Event())


def test_its_address_is_the_specs_and_nothing_is_started(served: Served, tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with beside(tmp_path, served.url) as addresses:
        assert addresses == {"judge": Address(served.url, KEY, "judge")}
        assert served.authorisations == [f"Bearer {KEY}"]
        assert "services" not in {thread.name for thread in threading.enumerate()} - before, "nobody watches"
    log = (tmp_path / "judge.log").read_text()
    assert "nothing is started" in log
    assert f"{served.url}/models answers" in log
    assert KEY not in log


@pytest.mark.parametrize(
    ("reply", "more", "error", "said"),
    [
        (Reply(401, body=f"wrong key {KEY}"), {}, SpecError, "does not take the key (HTTP 401): does the variable"),
        (Reply(403), {"key": None}, SpecError, "asks for a key (HTTP 403): write services.judge.key"),
        (Reply(404, body="no such path"), {}, SpecError, "services.judge.url is to be where its API begins"),
        (Reply(301), {}, SpecError, "Correct services.judge.url"),
        (Reply(body={"data": [{"id": "judge-2"}]}), {}, SpecError, "has no model 'judge'. Did you mean 'judge-2'?"),
        (Reply(body="<html>"), {}, SpecError, "lists no models"),
        (Reply(503, body=f"busy, {KEY}"), {"start_timeout": 0.1}, ServiceDown, "within 0.1 s (`start_timeout`): GET"),
    ],
)
def test_what_is_wrong_with_its_answer(
    served: Served, tmp_path: Path, reply: Reply, more: dict[str, Any], error: type[RlxError], said: str
) -> None:
    served.models = lambda: reply
    with pytest.raises(error) as caught, beside(tmp_path, served.url, **more):
        pytest.fail("the stage began")
    assert said in str(caught.value)
    assert "service judge" in str(caught.value) or "services.judge" in str(caught.value)
    assert served.url in str(caught.value)
    assert KEY not in str(caught.value) + (tmp_path / "judge.log").read_text()


def test_one_that_is_away_is_a_service_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        with pytest.raises(ServiceDown, match="ConnectError") as caught, beside(tmp_path, url, start_timeout=0.1):
            pytest.fail("the stage began")
    assert causes.of_exception(caught.value) == Cause.SERVICE_DOWN
    assert "Is it up, and can this host reach it?" in str(caught.value)


def test_it_is_waited_for_and_another_path_needs_no_list(served: Served, tmp_path: Path) -> None:
    answers = iter([Reply(503), Reply(429), Reply(body="fine")])
    served.models = lambda: next(answers)
    with beside(tmp_path, served.url, health="/up") as addresses:
        assert addresses["judge"].url == served.url
    assert served.paths == ["/v1/up"] * 3


def test_a_stage_that_is_told_to_stop_does_not_wait_for_silence(served: Served, tmp_path: Path) -> None:
    asked, stop, go_on = threading.Event(), threading.Event(), threading.Event()

    def silent() -> Reply:
        asked.set()
        stop.set()
        go_on.wait(30)
        return Reply(500)

    served.models = silent
    with pytest.raises(Stopped), beside(tmp_path, served.url, stop):
        pytest.fail("the stage began")
    assert asked.is_set()
    go_on.set()


def test_it_stands_beside_one_that_is_started(served: Served, tmp_path: Path) -> None:
    hosted = Hosted(kind="endpoint", url=served.url, model="judge").model_dump(mode="json")
    definitions = {"own": command(tmp_path / "own"), "judge": hosted}
    with running(definitions, {}, Around(lambda name: tmp_path / f"{name}.log"), threading.Event()) as addresses:
        assert list(addresses) == ["own", "judge"]
        assert addresses["judge"] == Address(served.url, "", "judge")
    assert served.authorisations == [None]
