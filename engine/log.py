"""Logging: events with fields, on stderr.

`log.info("stage finished", extra={"stage": ..., "seconds": 41.2})` prints the fields behind the message.
Curves and results go to the store, never here.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldFormatter(logging.Formatter):
    """`time level logger: message key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = " ".join(f"{k}={v}" for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_"))
        return f"{line} {fields}" if fields else line


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, below the root `rlx`."""
    return logging.getLogger(f"rlx.{name}")


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send rlx's events to `stream` (stderr); calling it again replaces the handler."""
    root = logging.getLogger("rlx")
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(FieldFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
