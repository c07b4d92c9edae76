"""The pages in a real Chromium: they draw without an error, ask only this machine, and keep model output harmless."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.dashboard.serving import chromium, dashboard

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(300)]


class Watch:
    """What a page did that it must not: errors, failed loads, requests to elsewhere."""

    def __init__(self, page: Any, url: str) -> None:
        self.faults: list[str] = []
        origin = urlsplit(url).netloc
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("console", lambda message: self._console(message))
        page.on("response", lambda response: self._response(response))
        page.on("request", lambda request: self._request(request, origin))

    def _console(self, message: Any) -> None:
        # Failed loads are judged by their address, in _response.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")

    def _response(self, response: Any) -> None:
        # Streamlit looks for its own base path by asking below the page's path first.
        if response.status >= 400 and "/_stcore/" not in response.url:
            self.faults.append(f"{response.status}: {response.url}")

    def _request(self, request: Any, origin: str) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != origin:
            self.faults.append(f"asked elsewhere: {request.url}")


@pytest.fixture(scope="module")
def url(seeded: Path) -> Iterator[str]:
    with dashboard(seeded) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """A fresh window; at the end nothing may have gone wrong in it."""
    window = browser.new_page(viewport={"width": 1400, "height": 900})
    window.set_default_timeout(60_000)
    watch = Watch(window, url)
    yield window
    window.close()
    assert watch.faults == []


def query(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def settled(page: Any) -> None:
    """Wait until the script has run and what it draws is loaded."""
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton], [data-test-script-state=running]')")


def test_a_deep_link_into_a_fresh_server_opens_its_page_in_the_frame(page: Any, url: str) -> None:
    page.goto(f"{url}/run?run=best-lang-5&tab=Samples&text=pwned")

    page.get_by_role("heading", name="best-lang-5").wait_for()
    for name in ("Runs", "Run", "Compare"):
        page.get_by_role("link", name=name, exact=True).first.wait_for()
    page.get_by_text("<script>window.pwned = true</script>").first.wait_for()
    settled(page)

    assert page.evaluate("window.pwned") is None, "the sample's script must not run"
    assert page.locator("img[src='x']").count() == 0
    assert page.locator(".katex").count() == 0, "no formula is typeset"
    assert page.get_by_text("[link](javascript:alert(1))").count() > 0
    assert page.get_by_role("link", name="link", exact=True).count() == 0
    assert page.get_by_role("heading", name="Heading").count() == 0


def test_from_the_list_to_a_run(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_role("heading", name="Runs").wait_for()
    page.get_by_text(re.compile(r"^12 runs: 1 running")).wait_for()

    page.get_by_role("searchbox").fill("reinforce")
    page.get_by_text(re.compile(r"^1 of 12 runs")).wait_for()
    assert query(page) == {"name": ["reinforce"]}

    table = page.get_by_test_id("stDataFrame")
    settled(page)
    table.click(position={"x": 110, "y": 55})  # the handle in the first row
    page.get_by_role("heading", name="best-lang-reinforce-1").wait_for()
    assert query(page)["run"] == ["best-lang-reinforce-1"]
    page.get_by_text("policy/entropy").wait_for()
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()


def test_two_ticked_runs_are_compared_on_a_chosen_axis(page: Any, url: str) -> None:
    page.goto(f"{url}/?name=twenty&status=succeeded")
    page.get_by_text(re.compile(r"^2 of 12 runs")).wait_for()
    settled(page)
    table = page.get_by_test_id("stDataFrame")
    for row in (0, 1):
        table.click(position={"x": 17, "y": 55 + 38 * row})
    page.get_by_role("link", name="Compare twenty-questions-1 with twenty-questions-2").click()

    page.get_by_text("twenty-questions-2 is better than twenty-questions-1.").wait_for()
    page.get_by_text("scored episodes", exact=True).first.click()
    page.wait_for_url(re.compile("axis=scored"))
    settled(page)

    assert query(page) == {"a": ["twenty-questions-1"], "b": ["twenty-questions-2"], "axis": ["scored episodes"]}


@pytest.mark.parametrize("where", ["", "run?run=twenty-questions-3", "compare?a=best-lang-1&b=best-lang-5"])
def test_a_narrow_window_does_not_scroll_sideways(page: Any, url: str, where: str) -> None:
    page.set_viewport_size({"width": 900, "height": 900})
    page.goto(f"{url}/{where}")
    page.get_by_role("heading").first.wait_for()
    settled(page)

    assert page.evaluate("document.documentElement.scrollWidth") <= 900


def test_dark_and_light_follow_the_reader(browser: Any, url: str) -> None:
    def brightness(scheme: str) -> int:
        window = browser.new_page(color_scheme=scheme)
        window.goto(url)
        window.get_by_role("heading", name="Runs").wait_for()
        colour = window.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        window.close()
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    assert brightness("light") > 700
    assert brightness("dark") < 100


def test_nobody_else_on_the_network_is_answered(url: str) -> None:
    port = int(urlsplit(url).port or 0)
    sockets = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]

    listening = [fields[1] for fields in sockets if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")]

    assert listening == [f"0100007F:{port:04X}"]  # 127.0.0.1, byte by byte from the right
