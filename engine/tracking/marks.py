"""How far each mirror has come, on disk beside what it wrote: one small file a run, bridge and destination."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.log import get_logger
from engine.tracking.bridge import Left
from engine.tracking.reading import Span

log = get_logger(__name__)


@dataclass
class Marks:
    """Where a mirror stands. Without a `file` nothing is remembered."""

    file: Path | None = None
    spans: dict[str, Span] = field(default_factory=dict)
    states: dict[str, list[Any]] = field(default_factory=dict)
    """Of the stages, when what stands before the marks was last looked through."""
    described: str = ""
    """Hash of what was said of the run."""
    left: Left | None = None
    """The bridge's own."""

    def save(self) -> None:
        """Replace the file."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".part")
        spans = {name: [span.step, span.time, span.count] for name, span in self.spans.items()}
        told = {"spans": spans, "states": self.states, "described": self.described, "left": self.left}
        draft.write_text(json.dumps(told), encoding="utf-8")
        os.replace(draft, self.file)

    def forget(self) -> None:
        """Begin anew."""
        self.spans, self.states, self.described, self.left = {}, {}, "", None


def marks_file(folder: Path, handle: str, bridge: str, destination: Mapping[str, Any]) -> Path:
    """Where the marks stand of a run's way to this destination."""
    place = hashlib.sha256(json.dumps(destination, sort_keys=True).encode()).hexdigest()[:12]
    return folder / "marks" / f"{handle}.{bridge}.{place}.json"


def read_marks(file: Path) -> Marks:
    """Those that stand in a file; none where there is none, or one that is damaged."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        spans = {name: Span(*span) for name, span in told["spans"].items()}
        return Marks(file, spans, told["states"], told["described"], told["left"])
    except FileNotFoundError:
        return Marks(file)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("a mirror's marks are damaged: it begins anew", extra={"file": str(file), "error": str(error)})
        return Marks(file)
