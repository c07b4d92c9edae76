"""Removing artifacts' files, and finding files in the store that no row knows: a stage may put the same at any moment.

Locally one lock decides: an artifact that was put again since `before` is left alone, and one that is removed
steps aside in one rename first. Elsewhere there are no locks: who stores marks it before it looks, who removes
marks it before it looks, and so at least one of the two sees the other and gives way. Killed in between, what
is left is found and finished the next time.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from engine.errors import Refused
from engine.store.artifact_store import MANIFEST, REMOVING, STORING, disk_errors, filesystem_of, guarded, marked

_NAME = re.compile(r"(?P<sha>[0-9a-f]{64})(?P<copy>-[0-9a-f]{32})?")
_GONE = ".gone-"
_INCOMING = "incoming-"


@dataclass(frozen=True)
class StoredFiles:
    """Something that lies in an artifact store: an artifact whole or in part, or what a removal or a copy left."""

    uri: str
    whole: bool
    """False for what can never be an artifact again."""
    bytes: int
    modified: datetime

    @property
    def name(self) -> str:
        """The content's hash, perhaps with a suffix, where this is an artifact."""
        return self.uri.rpartition("/")[2]


def discard(uri: str, before: datetime) -> bool:
    """Remove the artifact at `uri`; False where it is wanted: it was put, or put again, at `before` or later.

    One that is not there is removed already. Raises Refused or DiskError where the store does not let us.
    """
    with disk_errors(f"removing {uri}"):
        if urlsplit(uri).scheme in ("", "file"):
            return _discard_local(Path(unquote(urlsplit(uri).path) if urlsplit(uri).scheme else uri), before)
        return _discard_remote(uri, before)


def contents(url: str) -> list[StoredFiles]:
    """All that lies in the artifact store at `url`."""
    with disk_errors(f"artifacts at {url}"):
        parts = urlsplit(url)
        if parts.scheme in ("", "file"):
            return list(_local(Path(unquote(parts.path) if parts.scheme else url).absolute()))
        return list(_remote(url.rstrip("/")))


def measure(path: Path) -> tuple[int, datetime]:
    """Bytes below a file or folder, and when any of it was last changed."""
    size, newest = 0, 0.0
    folders = [path]
    while folders:
        place = folders.pop()
        with suppress(FileNotFoundError):  # it may go while we look
            stat = place.lstat()
            newest = max(newest, stat.st_mtime)
            if place.is_dir() and not place.is_symlink():
                folders += [Path(entry.path) for entry in os.scandir(place)]
            else:
                size += stat.st_size
    return size, datetime.fromtimestamp(newest, UTC)


def remove(path: Path) -> None:
    """Remove a file or a folder; gone already is as good. Raises DiskError where we may not."""
    with disk_errors(f"removing {path}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink(missing_ok=True)


def _unless_gone(_function: object, _path: str, problem: Any) -> None:
    if not isinstance(problem[1], FileNotFoundError):
        raise problem[1]


def _discard_local(place: Path, before: datetime) -> bool:
    if not place.exists():
        return True
    if not _NAME.fullmatch(place.name) or place.parent.name != place.name[:2]:
        # What a removal left behind, or a copy that was never finished: nobody looks at these.
        if _GONE not in place.name and not place.name.startswith(_INCOMING):
            raise Refused(f"{place} is not where an artifact is kept: it is left alone")
        remove(place)
        return True
    aside = place.with_name(f".{place.name}{_GONE}{uuid4().hex}")
    with guarded(place.parent.parent, exclusive=True):
        try:
            if datetime.fromtimestamp(place.stat().st_mtime, UTC) >= before:
                return False
            place.rename(aside)
        except FileNotFoundError:
            return True
    remove(aside)
    return True


def _local(root: Path) -> Iterator[StoredFiles]:
    if not root.is_dir():
        return
    for shard in sorted(root.iterdir()):
        if shard.name.startswith(_INCOMING):
            yield StoredFiles(str(shard), False, *measure(shard))
        if not shard.is_dir() or len(shard.name) != 2:
            continue
        for place in sorted(shard.iterdir()):
            if _NAME.fullmatch(place.name):
                # The folder's own time: the files in it may be older than the moment it was put.
                stored = datetime.fromtimestamp(place.stat().st_mtime, UTC)
                yield StoredFiles(str(place), True, measure(place)[0], stored)
            elif _GONE in place.name:
                yield StoredFiles(str(place), False, measure(place)[0], datetime.fromtimestamp(0, UTC))


def _discard_remote(uri: str, before: datetime) -> bool:
    filesystem, place = filesystem_of(uri)
    if not _NAME.fullmatch(place.rpartition("/")[2]):
        raise Refused(f"{uri} is not where an artifact is kept: it is left alone")
    mark = f"{place}{REMOVING}{uuid4().hex}"
    filesystem.pipe_file(mark, b"")
    try:
        storing = [found for found in marked(filesystem, place, STORING) if _modified(filesystem, found) >= before]
        if storing or _modified(filesystem, place + MANIFEST) >= before:
            return False
        for path in (place + MANIFEST, *marked(filesystem, place, STORING)):
            with suppress(FileNotFoundError):
                filesystem.rm_file(path)
        with suppress(FileNotFoundError):
            filesystem.rm(place, recursive=True)
        for path in marked(filesystem, place, REMOVING):  # of those who died over it, too
            if path != mark and _modified(filesystem, path) < before:
                filesystem.rm_file(path)
    finally:
        filesystem.rm_file(mark)
    return True


def _remote(url: str) -> Iterator[StoredFiles]:
    filesystem, root = filesystem_of(url)
    filesystem.invalidate_cache()
    try:
        found = filesystem.find(root, detail=True)
    except FileNotFoundError:
        return
    artifacts: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for path, info in found.items():
        shard, _, rest = path[len(root) :].strip("/").partition("/")
        if (found_name := _NAME.match(rest)) and shard == rest[:2]:
            artifacts.setdefault((shard, found_name[0]), []).append((path, info["size"] or 0))
    for (shard, name), files in sorted(artifacts.items()):
        # The manifest is what is written anew where the same content is put again; without one, the newest file tells.
        manifests = [path for path, _ in files if path.endswith(name + MANIFEST)]
        times = [_modified(filesystem, path) for path in manifests or [path for path, _ in files]]
        yield StoredFiles(f"{url}/{shard}/{name}", True, sum(size for _, size in files), max(times))


def _modified(filesystem: Any, path: str) -> datetime:
    """When a remote file was last written; the beginning of time where there is none."""
    try:
        time = filesystem.modified(path)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, UTC)
    except NotImplementedError as error:
        raise Refused(
            f"{type(filesystem).__name__} does not tell when {path} was written: nothing is removed"
        ) from error
    assert isinstance(time, datetime)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
