"""One attempt's reports on the local disk while the database is away: appended, on the disk at once, in order.

    spool/<stage>-<attempt>/
      reports.jsonl        a report a line; a line that a crash tore is the last one, and is left out
      reports.delivered    how much of it is in the store
      <stage>.metrics      the attempt's metrics, see `engine.store.metric_spool`

Whoever reads or writes here holds the folder's lock, which the kernel takes from a process that dies: the
attempt's own process while it lives, and after it one that delivers what was left. What is delivered is struck
off afterwards, so that a crash in between delivers twice at most, and every report bears that.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from engine.errors import DiskError
from engine.runtime.reports import Checkpointed, Report, dump, load
from engine.store.tables import StageId

_NAME = re.compile(r"([0-9a-f]{32})-([0-9]+)")
_READ_BYTES = 4 << 20
_LOOK_S = 0.02
_LOOKED_AT_S, _TRIES = 2.0, 5


class DamagedSpool(DiskError):
    """A line in the middle of a spool is not what was written there."""


@dataclass(frozen=True)
class Batch:
    """Reports from the beginning of what is left, and where the rest begins."""

    reports: tuple[Report, ...]
    end: int


class Spool:
    """The folder of one attempt, with its lock held. One thread may read while another appends; nothing else."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock: int | None = lock
        self._file = folder / "reports.jsonl"
        self._mark = folder / "reports.delivered"

    @classmethod
    def open(cls, root: Path, stage_id: UUID, number: int) -> Spool:
        """The folder of an attempt, made where it is not there. Raises DiskError where it cannot be had."""
        folder = folder_of(root, stage_id, number)
        try:
            for _ in range(_TRIES):  # housekeeping may look into a folder, and remove an empty one
                folder.mkdir(parents=True, exist_ok=True)
                if (spool := cls.take(folder, within_s=_LOOKED_AT_S)) is not None:
                    return spool
        except OSError as error:
            raise _refused(folder, error) from error
        raise DiskError(f"another process holds {folder}: two processes cannot be the same attempt")

    @classmethod
    def take(cls, folder: Path, *, within_s: float = 0.0) -> Spool | None:
        """The folder at `folder`, None where it is not there or another process holds it for longer than `within_s`."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                return None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(folder).st_ino == os.fstat(lock).st_ino:
                    return cls(folder, lock)
            except (BlockingIOError, FileNotFoundError):
                pass  # another holds it, or has just removed it
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_S)

    @property
    def waiting(self) -> bool:
        """Whether any report is left to deliver."""
        return self._file.exists()

    def append(self, reports: Sequence[Report]) -> int:
        """Keep reports; they are on the disk when this returns. Where the file ends now.

        Raises DiskError where the disk refuses them; none of them is there then.
        """
        lines = b"".join(dump(report).encode() + b"\n" for report in reports)
        try:
            begun = not self._file.exists()
            with self._file.open("ab", buffering=0) as file:
                before = _after_whole_lines(self._file)
                file.truncate(before)
                try:
                    _write(file.fileno(), lines)
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(before)
                    raise
            if begun:
                os.fsync(self._held())
        except OSError as error:
            raise _refused(self._file, error) from error
        return before + len(lines)

    def first(self, most: int) -> Batch:
        """The oldest reports that are left, about `most` samples' worth; a checkpoint ends a batch.

        Raises DamagedSpool: what follows a lost line cannot be told in order.
        """
        reports: list[Report] = []
        size, begin = 0, self._delivered()
        end = begin
        with self._file.open("rb") as file:
            file.seek(begin)
            while size < most and end - begin < _READ_BYTES:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break  # torn by a crash, or the end
                try:
                    reports.append(load(line))
                except ValueError as error:
                    raise DamagedSpool(
                        f"{self._file} is damaged at byte {end}: what was reported there is lost, "
                        "and the stage goes back to its last recorded checkpoint"
                    ) from error
                end += len(line)
                size += reports[-1].size
                if isinstance(reports[-1], Checkpointed):
                    break
        return Batch(tuple(reports), end)

    def strike_off(self, end: int) -> None:
        """What stands before `end` is in the store."""
        if end >= _after_whole_lines(self._file):
            self._mark.unlink(missing_ok=True)  # first: a mark without its file would hide the next file's beginning
            self._file.unlink()
        else:
            draft = self._mark.with_suffix(".draft")
            draft.write_text(str(end))
            os.replace(draft, self._mark)

    def discard(self) -> None:
        """Remove the folder with all that is in it, and let go of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def set_aside(self) -> Path:
        """Put the folder out of every deliverer's way, for a person to look at, and let go of it."""
        aside = self.folder.with_name(f"{self.folder.name}.refused")
        with suppress(OSError):
            self.folder.rename(aside)
        self.close()
        return aside

    def close(self) -> None:
        """Let go of the folder; it stays where anything is in it."""
        if self._lock is None:
            return
        with suppress(OSError):
            self.folder.rmdir()
        os.close(self._lock)
        self._lock = None

    def _held(self) -> int:
        assert self._lock is not None, "the spool was let go of"
        return self._lock

    def _delivered(self) -> int:
        try:
            return int(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0


def folder_of(root: Path, stage_id: UUID, number: int) -> Path:
    """Where attempt `number` at a stage spools."""
    return root / f"{stage_id.hex}-{number}"


def left(root: Path) -> Iterator[tuple[Path, StageId, int]]:
    """The folders of all attempts under `root`, of the living and the dead: where, which stage, which attempt."""
    if not root.is_dir():
        return
    for name in sorted(os.listdir(root)):
        if found := _NAME.fullmatch(name):
            yield root / name, StageId(UUID(found[1])), int(found[2])


def _after_whole_lines(file: Path) -> int:
    """Where the last whole line ends."""
    with file.open("rb") as opened:
        end = opened.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - (64 << 10))
            opened.seek(begin)
            found = opened.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _refused(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"what is reported cannot be kept in {path} while the database is away: {error.strerror or error}. "
        "Free some space there, or bring the database back, then `rlx resume`"
    )
