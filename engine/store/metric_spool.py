"""Metric points on the local disk while the database is away: one append-only file a stage, delivered in order.

Lines of JSON, each a batch of points; a line torn by a crash is the last one, and is left out. What has been
delivered is struck off by an offset beside the file, so that a crash in between delivers twice at most, which
an upsert does not mind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from engine.errors import DiskError

Point = tuple[float | None, float]
"""(value, time); None for a value that is not finite."""


@dataclass(frozen=True)
class SpooledBatch:
    """Points from the beginning of the spool, and where the spool goes on after them."""

    points: dict[str, dict[int, Point]]
    end: int


class MetricSpool:
    """The spool of one stage. A later attempt on the same host finds what an earlier one left."""

    def __init__(self, folder: Path, stage_id: UUID) -> None:
        self._file = folder / f"{stage_id}.metrics"
        self._mark = folder / f"{stage_id}.metrics.delivered"

    @property
    def waiting(self) -> bool:
        """Whether anything is left to deliver."""
        return self._file.exists()

    def append(self, points: Mapping[str, Mapping[int, Point]]) -> None:
        """Keep a batch; on the disk when this returns. Raises DiskError where the disk refuses it."""
        line = json.dumps({key: [[step, *point] for step, point in steps.items()] for key, steps in points.items()})
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a+b") as file:
                size = file.seek(0, os.SEEK_END)
                if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # close a line that a crash tore, so that this one stays whole
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskError(f"metrics cannot be spooled to {self._file}: {error.strerror}") from error

    def first(self) -> SpooledBatch | None:
        """The oldest batch that is left, or None where nothing is. A torn one is empty."""
        if not self.waiting:
            return None
        with self._file.open("rb") as file:
            file.seek(self._delivered())
            points = {
                key: {step: (value, time) for step, value, time in rows}
                for key, rows in _parsed(file.readline()).items()
            }
            return SpooledBatch(points, file.tell())

    def strike_off(self, batch: SpooledBatch) -> None:
        """`batch` has been delivered."""
        if batch.end >= self._file.stat().st_size:
            self._mark.unlink(missing_ok=True)  # first: a mark without its file would hide the next file's beginning
            self._file.unlink()
        else:
            self._mark.write_text(str(batch.end))

    def _delivered(self) -> int:
        try:
            return int(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0


def _parsed(line: bytes) -> dict[str, list[tuple[int, float | None, float]]]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
