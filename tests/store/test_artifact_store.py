from __future__ import annotations

import errno
import hashlib
import os
import threading
import uuid
from pathlib import Path

import pytest

from engine.errors import DiskError, NotFound, Refused
from engine.store import artifact_store
from engine.store.artifact_store import ArtifactStore, hash_dir


def tree(folder: Path, **files: str) -> Path:
    """A folder with files; `a__b` is `a/b`."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.fixture(params=["local", "file-url", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    url = {
        "local": str(tmp_path / "artifacts"),
        "file-url": f"file://{tmp_path / 'artifacts'}",
        "remote": f"memory://rlx-{uuid.uuid4().hex}/artifacts",
    }[request.param]
    return ArtifactStore(url, cache=tmp_path / "cache")


def test_what_is_put_can_be_fetched(store: ArtifactStore, tmp_path: Path) -> None:
    stored = store.put(tree(tmp_path / "out", a="one", sub__b="three"), "lm.policy")
    path = store.fetch(stored.uri, stored.sha256)
    assert {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()} == {
        "a": "one",
        "sub/b": "three",
    }
    assert (stored.kind, stored.bytes, stored.files) == ("lm.policy", 8, 2)
    assert store.contains(stored.uri)
    assert not (tmp_path / "out").exists()
    assert store.fetch(stored.uri, stored.sha256) == path


def test_equal_content_is_stored_once(store: ArtifactStore, tmp_path: Path) -> None:
    one = store.put(tree(tmp_path / "one", a="x"), "k")
    two = store.put(tree(tmp_path / "two", a="x"), "k")
    assert (one.sha256, one.uri) == (two.sha256, two.uri)
    assert not (tmp_path / "two").exists()


def test_the_hash_is_of_names_and_contents_and_of_nothing_else(tmp_path: Path) -> None:
    base = hash_dir(tree(tmp_path / "1", a="x", b="y"))
    assert hash_dir(tree(tmp_path / "2", b="y", a="x")).sha256 == base.sha256
    touched = tree(tmp_path / "3", a="x", b="y")
    os.utime(touched / "a", (1, 1))
    (touched / "a").chmod(0o600)
    (touched / "empty").mkdir()
    assert hash_dir(touched).sha256 == base.sha256
    others = [{"a": "y", "b": "x"}, {"a": "xy"}, {"a": "x", "c": "y"}, {"a": "x", "b": "y", "c": ""}]
    hashes = {hash_dir(tree(tmp_path / f"o{n}", **files)).sha256 for n, files in enumerate(others)}
    assert len(hashes | {base.sha256}) == 5


def test_the_hash_is_known_in_advance(tmp_path: Path) -> None:
    # printf x | sha256sum
    x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    listing = hash_dir(tree(tmp_path / "1", a="x"))
    assert listing.files == (("a", x, 1),)
    assert listing.sha256 == hashlib.sha256(f'[["a","{x}",1]]'.encode()).hexdigest()


def test_a_link_is_no_content(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tree(tmp_path / "out", a="x")
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="link"):
        store.put(folder, "k")
    assert folder.exists()


def test_what_is_gone_is_not_found(store: ArtifactStore) -> None:
    uri = f"{store.url}/ab/{'ab' * 32}"
    assert not store.contains(uri)
    with pytest.raises(NotFound, match="--no-cache"):
        store.fetch(uri, "ab" * 32)


def test_files_in_the_store_are_read_only(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    stored = store.put(tree(tmp_path / "out", a="x"), "k")
    assert (Path(stored.uri) / "a").stat().st_mode & 0o222 == 0


def test_another_file_system_is_copied_from(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    store = ArtifactStore(str(tmp_path / "artifacts"))
    out = tree(memory / f"rlx-{uuid.uuid4().hex}", a="x", sub__b="y")
    stored = store.put(out, "k")
    assert (store.fetch(stored.uri, stored.sha256) / "sub/b").read_text() == "y"
    assert not out.exists()
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [stored.sha256[:2]]


def test_a_full_disk_is_a_disk_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    out = tree(tmp_path / "out", a="x")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact_store.os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        store.put(out, "k")
    monkeypatch.undo()
    assert not any(p.is_file() for p in (tmp_path / "artifacts").rglob("*"))
    assert store.put(out, "k").files == 1


def test_a_damaged_remote_artifact_is_not_handed_out(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://rlx-{uuid.uuid4().hex}", cache=tmp_path / "cache")
    stored = store.put(tree(tmp_path / "out", a="x"), "k")
    filesystem, place = artifact_store.filesystem_of(stored.uri)
    filesystem.pipe_file(f"{place}/a", b"y")
    with pytest.raises(DiskError, match="damaged"):
        store.fetch(stored.uri, stored.sha256)
    assert not any(p.is_file() for p in (tmp_path / "cache").rglob("*"))


def test_a_remote_artifact_without_its_manifest_is_not_there_yet(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://rlx-{uuid.uuid4().hex}", cache=tmp_path / "cache")
    stored = store.put(tree(tmp_path / "out", a="x"), "k")
    filesystem, place = artifact_store.filesystem_of(stored.uri)
    filesystem.rm_file(f"{place}.manifest.json")
    assert not store.contains(stored.uri)
    with pytest.raises(NotFound):
        store.fetch(stored.uri, stored.sha256)
    store.put(tree(tmp_path / "again", a="x"), "k")
    assert store.contains(stored.uri)


def test_many_put_the_same_at_once(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    folders = [tree(tmp_path / f"out{n}", a="x", b="y" * 10_000) for n in range(8)]
    start, stored = threading.Barrier(8), []

    def put(folder: Path) -> None:
        start.wait()
        stored.append(store.put(folder, "k"))

    threads = [threading.Thread(target=put, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(one.sha256, one.uri) for one in stored}) == 1
    assert len(stored) == 8
    assert hash_dir(Path(stored[0].uri)).sha256 == stored[0].sha256
    assert not any(folder.exists() for folder in folders)


def test_a_remote_store_needs_a_place_to_fetch_to() -> None:
    with pytest.raises(ValueError, match="local folder"):
        ArtifactStore("s3://bucket/artifacts")
