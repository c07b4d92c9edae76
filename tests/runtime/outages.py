"""A store at the end of a line that a test cuts, and a stage's process that a test kills."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from engine.errors import Unreachable
from engine.runtime.engine_context import EngineContext
from engine.store.session import Database


class Crashed(BaseException):
    """The process is no more."""


class Line(Database):
    """A store that answers, or does not. The next transactions meet `fates`, and those after them `cut`."""

    def __init__(self, url: str, fates: Iterable[str] = ()) -> None:
        super().__init__(url)
        self.cut, self.dead, self.tries = False, False, 0
        self.fates = list(fates)
        self.hold: threading.Event | None = None
        """Until it is set, the store neither answers nor refuses."""

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.tries += 1
        if self.hold is not None:
            assert self.hold.wait(60)
        if self.dead:
            raise Crashed
        if self.cut:
            raise Unreachable("cut")
        fate = self.fates.pop(0) if self.fates else "fine"
        if fate == "refused":
            raise Unreachable("refused")
        with super().write() as session:
            yield session
            if fate == "rolled back":
                raise Unreachable("went away before the commit")
        if fate == "unheard":
            raise Unreachable("committed, and nobody heard of it")

    @contextmanager
    def read(self) -> Iterator[Session]:
        if self.dead:
            raise Crashed
        if self.cut:
            raise Unreachable("cut")
        with super().read() as session:
            yield session


def kill(ctx: EngineContext, line: Line, *, torn: bool = False) -> None:
    """End a stage's process as SIGKILL does: what is in memory is gone, the kernel takes the lock."""
    line.dead = True
    ctx._delivery.close(30)
    if "_metrics" in vars(ctx):
        ctx._metrics._closing = True
        ctx._metrics._wake.set()
        ctx._metrics._thread.join(30)
    reports = ctx._spool.folder / "reports.jsonl"
    if torn and reports.exists():
        with reports.open("ab") as file:
            file.write(b'["samples",{"first":')
    assert ctx._spool._lock is not None
    os.close(ctx._spool._lock)
    ctx._spool._lock = None
    line.close()  # the kernel takes its connections too
