"""The mirror: one pass brings a bridge up to what SQL holds now, a batch at a time, and remembers how far it has come.

No transaction is open while a bridge writes. A pass that fails leaves its marks where the last flush put them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from engine.store.session import Database
from engine.store.tables import RunId
from engine.tracking import reading
from engine.tracking.bridge import Bridge, Point
from engine.tracking.marks import Marks
from engine.tracking.reading import Span

BATCH = 5_000


class Mirror:
    """One run's way into one tool. `beat` is called between batches."""

    def __init__(
        self,
        db: Database,
        run_id: RunId,
        make: Callable[[], Bridge],
        marks: Marks,
        *,
        batch: int = BATCH,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._db, self._run_id, self._make, self._marks = db, run_id, make, marks
        self._batch, self._beat = batch, beat
        self._bridge: Bridge | None = None

    def catch_up(self) -> int:
        """One pass; how many points were written. Opens the bridge only where there is something to say."""
        with self._db.read() as session:
            about = reading.about(session, self._run_id)
            states = reading.states(session, self._run_id)
            spans = self._marks.spans
            changed = reading.changed(session, self._run_id, spans) if states != self._marks.states else []
            some = reading.news(session, self._run_id, spans, 1)
        described = hashlib.sha256(json.dumps(asdict(about), sort_keys=True).encode()).hexdigest()
        if not (changed or some or described != self._marks.described):
            self._marks.states = states
            return 0
        bridge = self._opened()
        written = 0
        if changed and self._marks.spans:
            written += self._amend(bridge, [track.name for track, _ in changed])
            bridge = self._opened()
        written += self._write(bridge)
        if described != self._marks.described:
            bridge.describe(about)
            self._marks.described = described
        self._marks.states = states
        self._remember(bridge)
        return written

    def close(self) -> str | None:
        """End for now; where the run can be looked at, or None if nothing was to be said."""
        bridge, self._bridge = self._bridge, None
        if bridge is None:
            return None
        where = bridge.where
        self._marks.left = bridge.close()
        self._marks.save()
        return where

    def drop(self) -> None:
        """Let go after a failure: what was written since the last flush counts as not written."""
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            with suppress(Exception):  # it has failed already, and what that was is told
                bridge.close()

    def _opened(self) -> Bridge:
        if self._bridge is None:
            with self._db.read() as session:
                about = reading.about(session, self._run_id)
            bridge = self._make()
            if not bridge.open(about, self._marks.left):
                self._marks.forget()
            self._bridge = bridge
        return self._bridge

    def _amend(self, bridge: Bridge, names: list[str]) -> int:
        """Replace what has changed before the marks; how many points that took."""
        with self._db.read() as session:
            wanted = {name: self._marks.spans[name] for name in names}
            found = [
                (track, now, reading.points(session, self._run_id, track, until=wanted[track.name].step))
                for track, now in reading.changed(session, self._run_id, wanted)
            ]
        written = 0
        for track, now, points in found:
            if not bridge.amend(points, wanted[track.name].time):
                bridge.close()
                self._bridge = None
                self._marks.forget()
                return 0
            written += len(points)
            if now is None:
                del self._marks.spans[track.name]
            else:
                self._marks.spans[track.name] = now
            self._remember(bridge)
        return written

    def _write(self, bridge: Bridge) -> int:
        written = 0
        while True:
            with self._db.read() as session:
                points = reading.news(session, self._run_id, self._marks.spans, self._batch)
            if not points:
                return written
            bridge.write(points)
            for point in points:
                self._advance(point)
            written += len(points)
            self._remember(bridge)

    def _advance(self, point: Point) -> None:
        name = f"{point.stage}\t{point.key}"
        span = self._marks.spans.get(name, Span(point.step, point.time, 0))
        self._marks.spans[name] = Span(point.step, max(span.time, point.time), span.count + 1)

    def _remember(self, bridge: Bridge) -> None:
        left = bridge.flush()
        if left is not None:
            self._marks.left = left
            self._marks.save()
        self._beat()
