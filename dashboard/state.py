"""What the reader of a page chose, kept in the URL, so that a link shows the same page to somebody else.

Widgets are bound to query parameters by Streamlit itself (`bind`); their keys are the parameters' names, listed here.
What no widget holds (which run a link leads to, which sample is open) goes through the functions below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import streamlit as st

BOUND: Final = "query-params"
"""`bind=` of every widget whose choice belongs in the URL."""

RUNS_PAGE: Final = "views/runs.py"
RUN_PAGE: Final = "views/run.py"
COMPARE_PAGE: Final = "views/compare.py"

RUN: Final = "run"
SAMPLE: Final = "sample"
A: Final = "a"
B: Final = "b"

LIVE_S: Final = 2.0
"""Seconds between looks at what is running."""
IDLE_S: Final = 10.0
"""Seconds between looks for new runs."""


@dataclass(frozen=True)
class Filters:
    """Which runs to list; empty fields let everything through."""

    name: str = ""
    statuses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.name or self.statuses or self.tags)


def parameter(name: str) -> str | None:
    """A query parameter that no widget holds; None where it is absent or empty."""
    return st.query_params.get(name) or None


def number_parameter(name: str) -> int | None:
    """The same as a number; None where it is none."""
    text = parameter(name)
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def keep(name: str, value: object | None) -> None:
    """Write a query parameter, or remove it; the page does not run again for it."""
    if value is None:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(value)


def run_link(handle: str, **more: str) -> dict[str, str]:
    """The query parameters of a run's page."""
    return {RUN: handle, **more}


def compare_link(a: str, b: str) -> dict[str, str]:
    """The query parameters of the page that puts two runs side by side."""
    return {A: a, B: b}


def theme() -> Literal["light", "dark"]:
    """Which of the two themes the reader's browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"
