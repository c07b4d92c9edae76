"""Artifacts as files: immutable directories named by the hash of what is in them.

A local directory by default, any fsspec URL otherwise. An artifact appears whole or not at all: by one
rename locally, and elsewhere by a manifest that is written last. Content that is put once more is not stored
again, but its time is set anew, so that `artifact_sweep` sees that it is wanted. Rows about artifacts are
`artifacts`'s.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from engine.errors import DiskError, NotFound, Refused

_BLOCK = 1 << 20
LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
MANIFEST, STORING, REMOVING = ".manifest.json", ".storing-", ".removing-"
"""What follows an artifact's name in a remote store: of its manifest, and of marks that something is being done."""


@dataclass(frozen=True)
class StoredArtifact:
    """A directory in the store: its content hash, where it is, and how much it holds."""

    sha256: str
    uri: str
    kind: str
    bytes: int
    files: int


@dataclass(frozen=True)
class Listing:
    """The files of a directory: `(path, sha256, size)` each, sorted by path, and the hash over all of them."""

    files: tuple[tuple[str, str, int], ...]
    sha256: str

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.files)


def hash_dir(path: Path) -> Listing:
    """Hash every file below `path`; equal trees have equal hashes whatever their times, modes and order.

    Empty folders do not count. Raises Refused for a link or a device: an artifact is files and nothing else.
    """
    files = []
    for file in sorted(_files(path), key=lambda file: file.relative_to(path).as_posix()):
        files.append((file.relative_to(path).as_posix(), _hash_file(file), file.stat().st_size))
    text = json.dumps(files, ensure_ascii=True, separators=(",", ":"))
    return Listing(tuple(files), hashlib.sha256(text.encode()).hexdigest())


def _files(path: Path) -> Iterator[Path]:
    for entry in os.scandir(path):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise Refused(f"{entry.path} is a link or a special file: an artifact holds plain files only")
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class ArtifactStore:
    """The artifacts under one URL. `cache` is where remote ones are fetched to."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self._local: Path | None = None
        if parts.scheme in ("", "file"):
            self._local = Path(unquote(parts.path) if parts.scheme else url).absolute()
        elif cache is None:
            raise ValueError(f"artifacts at {url} are remote: a local folder to fetch them to is needed")
        self._cache = cache

    def put(self, path: Path, kind: str) -> StoredArtifact:
        """Move the directory `path` into the store; it is gone from its old place afterwards.

        Content that is already there is not stored twice. Raises DiskError where the store refuses the write.
        """
        with disk_errors(f"artifacts at {self.url}"):
            listing = hash_dir(path)
            uri = self._put_local(path, listing) if self._local is not None else self._put_remote(path, listing)
        return StoredArtifact(listing.sha256, uri, kind, listing.bytes, len(listing.files))

    def fetch(self, uri: str, sha256: str) -> Path:
        """A local, read-only directory with the artifact at `uri`. Raises NotFound where it is gone."""
        if urlsplit(uri).scheme in ("", "file"):
            path = Path(uri)
            if not path.is_dir():
                raise NotFound(
                    f"the artifact {sha256[:12]} is gone from {uri}: resubmit with --no-cache to make it anew"
                )
            return path
        with disk_errors(f"fetching {uri}"):
            return self._fetch_remote(uri, sha256)

    def contains(self, uri: str) -> bool:
        """Whether the artifact at `uri` is there, whole."""
        if urlsplit(uri).scheme in ("", "file"):
            return Path(uri).is_dir()
        filesystem, place = filesystem_of(uri)
        return bool(filesystem.exists(_manifest(place)))

    def _put_local(self, path: Path, listing: Listing) -> str:
        assert self._local is not None
        target = self._local / listing.sha256[:2] / listing.sha256
        if self._wanted_again(target):
            shutil.rmtree(path)
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        source = path
        if os.stat(path).st_dev != os.stat(target.parent).st_dev:
            source = self._local / f"incoming-{uuid4().hex}"
            shutil.copytree(path, source)
        for name, _, _ in listing.files:
            _seal(source / name)
        os.utime(source)
        while True:
            try:
                source.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not self._wanted_again(target):
                    continue  # it has just been removed
                shutil.rmtree(source)  # another stored the same content meanwhile
            break
        _sync_folder(target.parent)
        if source is not path:
            shutil.rmtree(path)
        return str(target)

    def _wanted_again(self, target: Path) -> bool:
        """Whether the content is there, and set the time from which it is kept to now."""
        assert self._local is not None
        if not target.is_dir():
            return False
        with guarded(self._local, exclusive=False):
            try:
                os.utime(target)
            except FileNotFoundError:
                return False
        return True

    def _put_remote(self, path: Path, listing: Listing) -> str:
        uri = f"{self.url}/{listing.sha256[:2]}/{listing.sha256}"
        filesystem, place = filesystem_of(uri)
        mark = f"{place}{STORING}{uuid4().hex}"
        filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(mark, b"")
        try:
            if marked(filesystem, place, REMOVING):
                # Whoever removes it may not have seen our mark: what is there is not to be relied on.
                suffix = f"-{uuid4().hex}"
                uri, place = uri + suffix, place + suffix
            manifest = json.dumps(listing.files).encode()
            if not filesystem.exists(_manifest(place)):
                for name, _, _ in listing.files:
                    filesystem.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
                    filesystem.put_file(str(path / name), f"{place}/{name}")
            filesystem.pipe_file(_manifest(place), manifest)
        finally:
            filesystem.rm_file(mark)
        shutil.rmtree(path)
        return uri

    def _fetch_remote(self, uri: str, sha256: str) -> Path:
        assert self._cache is not None, "only a store without a cache folder is purely local"
        target = self._cache / sha256[:2] / sha256
        if target.is_dir():
            return target
        filesystem, place = filesystem_of(uri)
        if not filesystem.exists(_manifest(place)):
            raise NotFound(f"the artifact {sha256[:12]} is gone from {uri}: resubmit with --no-cache to make it anew")
        incoming = self._cache / f"incoming-{uuid4().hex}"
        incoming.mkdir(parents=True)
        try:
            for name, _, _ in json.loads(filesystem.cat_file(_manifest(place))):
                (incoming / name).parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(f"{place}/{name}", str(incoming / name))
            if (found := hash_dir(incoming).sha256) != sha256:
                raise DiskError(f"{uri} was damaged on the way or at rest: its hash is {found}, not {sha256}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                incoming.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return target


@contextmanager
def guarded(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the lock of a local store: many that say an artifact is wanted again, or one that removes some.

    Raises Refused for an exclusive lock where the file system has none; to say that something is wanted, it is
    not needed there, for nothing is ever removed.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if exclusive:
                raise Refused(
                    f"the file system of {root} has no locks ({error.strerror}): artifacts cannot be removed from it "
                    "while a stage may be storing the same"
                ) from error
        yield


def marked(filesystem: Any, place: str, mark: str) -> list[str]:
    """Marks of one sort beside a remote artifact."""
    filesystem.invalidate_cache()
    folder, _, name = place.rpartition("/")
    try:
        found = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    return [path for path in found if path.rpartition("/")[2].startswith(name + mark)]


def _manifest(place: str) -> str:
    return place + MANIFEST


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it."""
    import fsspec

    filesystem, place = fsspec.core.url_to_fs(uri)
    return filesystem, place


def _seal(path: Path) -> None:
    """Onto the disk, and read-only from now on."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o444)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what the file system refuses into DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{what}: {error.strerror or error}") from error
