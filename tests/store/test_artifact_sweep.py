"""Files of artifacts: what lies in a store, what may be removed from it, and who gives way to whom."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from engine.errors import Refused
from engine.store import artifact_store, artifact_sweep
from engine.store.artifact_store import ArtifactStore, StoredArtifact, hash_dir
from engine.store.artifact_sweep import contents, discard


@pytest.fixture(params=["local", "file-url", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    url = {
        "local": str(tmp_path / "artifacts"),
        "file-url": f"file://{tmp_path / 'artifacts'}",
        "remote": f"memory://rlx-{uuid.uuid4().hex}/artifacts",
    }[request.param]
    return ArtifactStore(url, cache=tmp_path / "cache")


@pytest.fixture
def remote(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"memory://rlx-{uuid.uuid4().hex}/artifacts", cache=tmp_path / "cache")


def put(store: ArtifactStore, tmp_path: Path, content: str = "x", **more: str) -> StoredArtifact:
    folder = tmp_path / f"out-{uuid.uuid4().hex}"
    folder.mkdir()
    for name, text in {"a": content, **more}.items():
        (folder / name).write_text(text)
    return store.put(folder, "k")


def later() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def earlier() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


def test_what_is_put_is_listed_with_its_size_and_time(store: ArtifactStore, tmp_path: Path) -> None:
    assert contents(store.url) == []
    before = datetime.now(UTC) - timedelta(seconds=5)
    one, two = put(store, tmp_path, "one"), put(store, tmp_path, "three", b="more")
    found = {found.name: found for found in contents(store.url)}
    assert set(found) == {one.sha256, two.sha256}
    assert all(each.whole and before < each.modified < later() for each in found.values())
    if "memory" not in store.url:  # a remote one's manifest counts, too
        assert {found[one.sha256].bytes, found[two.sha256].bytes} == {one.bytes, two.bytes}
        assert {each.uri for each in found.values()} == {one.uri, two.uri}


def test_what_is_old_is_removed_and_what_is_not_stays(store: ArtifactStore, tmp_path: Path) -> None:
    stored = put(store, tmp_path, b="more")
    assert not discard(stored.uri, earlier())
    assert store.contains(stored.uri)

    assert discard(stored.uri, later())
    assert not store.contains(stored.uri)
    assert contents(store.url) == []
    assert discard(stored.uri, later())  # gone already is as good
    again = put(store, tmp_path, b="more")
    assert hash_dir(store.fetch(again.uri, again.sha256)).sha256 == stored.sha256


def test_what_is_put_once_more_is_wanted_from_then_on(store: ArtifactStore, tmp_path: Path) -> None:
    stored = put(store, tmp_path)
    if "memory" not in store.url:
        os.utime(stored.uri, (1, 1))
    between = datetime.now(UTC)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and put(store, tmp_path).uri == stored.uri:
        if not discard(stored.uri, between):
            break
    assert store.contains(stored.uri)


def test_the_time_of_an_artifact_is_when_it_was_put(tmp_path: Path) -> None:
    store, folder = ArtifactStore(str(tmp_path / "artifacts")), tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("x")
    os.utime(folder, (1, 1))  # the stage wrote its output long before it ended
    store.put(folder, "k")
    assert contents(store.url)[0].modified > earlier()


def test_what_a_removal_or_a_copy_left_is_no_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    stored = Path(put(store, tmp_path).uri)
    gone = stored.rename(stored.with_name(f".{stored.name}.gone-{uuid.uuid4().hex}"))
    incoming = tmp_path / "artifacts" / f"incoming-{uuid.uuid4().hex}"
    (incoming / "sub").mkdir(parents=True)
    (incoming / "sub" / "a").write_text("half")
    found = {one.uri: one for one in contents(store.url)}
    assert set(found) == {str(gone), str(incoming)}
    assert not any(one.whole for one in found.values())
    assert found[str(incoming)].modified > earlier()
    for uri in found:
        assert discard(uri, later())
    assert contents(store.url) == []


def test_what_is_no_artifact_is_never_removed(store: ArtifactStore, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    put(store, tmp_path)
    for uri in (str(precious), f"{store.url}"):
        with pytest.raises(Refused, match="left alone"):
            discard(uri, later())
    assert precious.is_dir()


def test_where_there_are_no_locks_things_are_put_but_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    stored = put(store, tmp_path)
    assert put(store, tmp_path) == stored
    with pytest.raises(Refused, match="no locks"):
        discard(stored.uri, later())
    assert store.contains(stored.uri)


def test_a_local_put_and_a_removal_take_turns(tmp_path: Path) -> None:
    """Whichever is first: what a put returned is there until somebody removes what is older than that put."""
    store, over = ArtifactStore(str(tmp_path / "artifacts")), threading.Event()
    uri = put(store, tmp_path).uri
    removals: list[bool] = []
    limit = [datetime.now(UTC)]

    def sweep() -> None:
        while not over.is_set():
            removals.append(discard(uri, limit[0]) and not Path(uri).exists())

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for _ in range(150):
            put(store, tmp_path)
            assert (Path(uri) / "a").read_text() == "x"
            limit[0] = datetime.fromtimestamp(Path(uri).stat().st_mtime, UTC) + timedelta(microseconds=1)
    finally:
        over.set()
        thread.join()
    assert any(removals)


class Interrupted:
    """Stops a remote removal or a put at one of its calls, and lets the other act there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, where: str, act: Callable[[], object]) -> None:
        filesystem = type(fsspec.filesystem("memory"))
        original = getattr(filesystem, method)
        self.acted = False

        def instead(fs: Any, path: Any, *args: Any, **more: Any) -> Any:
            if not self.acted and where in str(path):
                self.acted = True
                act()
            return original(fs, path, *args, **more)

        monkeypatch.setattr(filesystem, method, instead)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("pipe_file", ".removing-"),
        ("ls", "/artifacts/"),
        ("modified", ".manifest.json"),
        ("rm_file", ".manifest.json"),
        ("rm", ""),
        ("rm_file", ".removing-"),
    ],
)
def test_a_put_in_the_middle_of_a_remote_removal_keeps_its_artifact(
    remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, where: str
) -> None:
    old = put(remote, tmp_path)
    limit = datetime.now(UTC)
    _pass(limit)
    stored: list[StoredArtifact] = []
    stop = Interrupted(monkeypatch, method, where, lambda: stored.append(put(remote, tmp_path)))
    discard(old.uri, limit)
    assert stop.acted
    (found,) = stored
    assert (remote.fetch(found.uri, found.sha256) / "a").read_text() == "x"
    assert remote.contains(found.uri)


@pytest.mark.parametrize(
    ("method", "where"), [("pipe_file", ".storing-"), ("ls", "/artifacts/"), ("exists", ".manifest")]
)
def test_a_remote_removal_in_the_middle_of_a_put_takes_nothing_of_it(
    remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, where: str
) -> None:
    old = put(remote, tmp_path)
    limit = datetime.now(UTC)
    _pass(limit)
    stop = Interrupted(monkeypatch, method, where, lambda: discard(old.uri, limit))
    found = put(remote, tmp_path)
    assert stop.acted
    assert remote.contains(found.uri)
    assert (remote.fetch(found.uri, found.sha256) / "a").read_text() == "x"


def _pass(moment: datetime) -> None:
    """Until the clock, which may be coarse, shows a later time."""
    while datetime.now(UTC) <= moment + timedelta(milliseconds=1):
        time.sleep(0.001)


def test_marks_of_the_dead_do_not_stay(remote: ArtifactStore, tmp_path: Path) -> None:
    stored = put(remote, tmp_path)
    filesystem, place = artifact_store.filesystem_of(stored.uri)
    filesystem.pipe_file(f"{place}.storing-{uuid.uuid4().hex}", b"")
    filesystem.pipe_file(f"{place}.removing-{uuid.uuid4().hex}", b"")
    copy = put(remote, tmp_path)
    assert copy.uri != stored.uri  # who removes the old one may not have seen us
    for one in contents(remote.url):
        assert discard(one.uri, later())
    assert filesystem.find(artifact_store.filesystem_of(remote.url)[1]) == []


def test_a_file_system_without_times_is_not_removed_from(
    remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = put(remote, tmp_path)

    def unknown(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "modified", unknown)
    with pytest.raises(Refused, match="does not tell when"):
        artifact_sweep.discard(stored.uri, later())
    monkeypatch.undo()
    assert remote.contains(stored.uri)
    assert not artifact_store.marked(*artifact_store.filesystem_of(stored.uri), artifact_store.REMOVING)
