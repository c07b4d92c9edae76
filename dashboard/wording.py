"""How values read on a page: numbers, times, statuses, advice, as text. Knows nothing of Streamlit or the store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

BadgeColour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray"]

NOTHING = "–"
"""Stands where there is no value."""


@dataclass(frozen=True)
class Look:
    """How one status is shown: never by its colour alone."""

    symbol: str
    icon: str
    badge: BadgeColour
    colour: str
    """For charts; reads on light and on dark."""


_QUIET = Look("○", ":material/hourglass_empty:", "gray", "#8b94a0")
LOOKS = {
    "queued": _QUIET,
    "waiting": _QUIET,
    "ready": Look("◔", ":material/schedule:", "blue", "#56b4e9"),
    "running": Look("●", ":material/play_circle:", "blue", "#2f8fd0"),
    "succeeded": Look("✓", ":material/check_circle:", "green", "#009e73"),
    "failed": Look("✗", ":material/error:", "red", "#d55e00"),
    "lost": Look("✗", ":material/link_off:", "red", "#d55e00"),
    "stopping": Look("◐", ":material/stop_circle:", "orange", "#e69f00"),
    "cancelled": Look("■", ":material/cancel:", "orange", "#e69f00"),
}
STATUSES = ("running", "queued", "stopping", "succeeded", "failed", "cancelled")
"""Of runs, in the order in which a filter offers them."""
ACTIVE = frozenset({"queued", "running", "stopping"})
"""Statuses of a run that will still change by itself."""

ADVICE = {
    "oom": "Lower the batch size or the candidates, or ask for more memory in `hardware`, then resume.",
    "hang": "The log below has the stacks of all its processes. Resume once what they wait for is back; "
    "`hardware.stall_timeout` says how long a stage may stand still.",
    "reward_error": "Mend the function that the message names, try it with `rlx validate`, and submit again.",
    "data_error": "Mend the row that the message names and submit again.",
    "spec_error": "Mend the spec; `rlx validate` reports every problem at once.",
    "service_down": "Start the service that the message names, then resume.",
    "disk": "Make room on the disk, then resume.",
    "lost": "The worker went away. Resume continues from the last checkpoint.",
    "preempted": "The worker was taken away. Resume continues from the last checkpoint.",
    "import": "Install what is missing where the worker runs; `rlx doctor` lists it.",
    "internal": "Look at the end of the log; resume continues from the last checkpoint.",
}
"""What to do about each cause code."""
MENDED_BY_RESUME = frozenset({"oom", "hang", "service_down", "disk", "lost", "preempted", "import", "internal"})
"""Causes after which `rlx resume` makes sense: the others need another spec."""

AXES = {
    "step": "step",
    "scored_episodes": "scored episodes",
    "generated_tokens": "generated tokens",
    "trained_tokens": "trained tokens",
    "gold_labels": "gold labels",
    "seconds": "seconds",
}
"""What a learning curve may be drawn over."""


def axis(name: str) -> str:
    """How an axis is called on a page."""
    return AXES.get(name, name.replace("_", " "))


def look(status: str) -> Look:
    """How `status` is shown; an unknown one quietly."""
    return LOOKS.get(status, _QUIET)


def status(name: str) -> str:
    """A status as a word with its symbol, for tables."""
    return f"{look(name).symbol} {name}"


def number(value: float | None, digits: int = 4) -> str:
    """A measured number with `digits` significant digits, grouped where it is large."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}g}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:f}"


def score(value: float | None) -> str:
    """A score with three decimals, so that scores line up."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.3f}"


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """`0.940 [0.880, 0.980]`."""
    return NOTHING if mean is None else f"{score(mean)} [{score(low)}, {score(high)}]"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """`p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def count(value: float | None) -> str:
    """A count that may be large: `812`, `12.4 k`, `3.15 M`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}"
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share of one as whole per cent."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """`41 s`, `3 m 05 s`, `2 h 10 m`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def times(spent: Mapping[str, float]) -> str:
    """Where time went, the most first: `training 41 s (62 %)`; nothing where nothing is known."""
    whole = sum(spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return joined(
        f"{_SPENT.get(name, name.replace('_', ' '))} {duration(seconds)} ({percent(seconds / whole)})"
        for name, seconds in ordered
        if seconds >= 0.005 * whole > 0
    )


_SPENT = {"start_up": "start-up", "functions": "your functions", "waiting": "waiting for services", "lost": "lost"}


def ago(time: datetime | None, now: datetime) -> str:
    """How long ago, in one unit."""
    if time is None:
        return NOTHING
    elapsed = (now - time).total_seconds()
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if elapsed >= seconds:
            return f"{int(elapsed // seconds)} {unit} ago"
    return "just now"


def stamp(time: datetime | None) -> str:
    """A time of the store, in the time zone of this machine."""
    return NOTHING if time is None else f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def size(bytes_: float | None) -> str:
    """Bytes in binary units."""
    if bytes_ is None:
        return NOTHING
    value = float(bytes_)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def one_line(text: str, limit: int = 160) -> str:
    """The text on one line, cut with an ellipsis; control characters become spaces."""
    flat = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def ending(text: str, limit: int = 38) -> str:
    """The end of the text on one line: of a conversation that is what was said last."""
    flat = one_line(text[-4 * limit :], limit=4 * limit)
    return flat if len(flat) <= limit and len(text) <= 4 * limit else "…" + flat[-limit:].lstrip()


_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&^=])")


def plain(text: str) -> str:
    """`text` such that Markdown shows it as it stands: no emphasis, link, icon, formula or HTML in it is heard."""
    return _MARKDOWN.sub(r"\\\1", one_line(text, limit=400))


def value(item: Any) -> str:
    """A spec's value on one line, as YAML would have it."""
    if item is None:
        return "null"
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, float):
        return f"{item:g}"
    if isinstance(item, list | tuple):
        return one_line("[" + ", ".join(value(each) for each in item) + "]")
    if isinstance(item, dict):
        return one_line("{" + ", ".join(f"{key}: {value(each)}" for key, each in item.items()) + "}")
    return one_line(str(item))


def joined(parts: Iterable[str | None]) -> str:
    """Parts that say something, with dots between."""
    return "  ·  ".join(part for part in parts if part)
