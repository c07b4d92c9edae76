"""Two runs that compute the same cache key at once, on two workers: both succeed, one artifact, no error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select

from engine.settings import Settings
from engine.store import stages
from engine.store.artifact_store import ArtifactStore, StoredArtifact
from engine.store.session import Database
from engine.store.stages import Outcome
from engine.store.tables import Artifact, CacheEntry
from tests.store.walk import Queue, until_it_waits

WITHIN_S = 60.0


def put(store: ArtifactStore, folder: Path, content: str) -> StoredArtifact:
    folder.mkdir()
    (folder / "weights").write_text(content)
    return store.put(folder, "test")


def stored(db: Database) -> tuple[list[Artifact], list[CacheEntry]]:
    with db.read() as session:
        return list(session.scalars(select(Artifact))), list(session.scalars(select(CacheEntry)))


def test_many_that_end_at_the_same_moment_share_one_artifact(queue: Queue, settings: Settings, tmp_path: Path) -> None:
    count = 6
    runs = [queue.submit("a", "b<a") for _ in range(count)]
    claims = [queue.claim(run, "a") for run in runs]
    store, start = ArtifactStore(settings.artifact_url), threading.Barrier(count)

    def work(n: int) -> str:
        start.wait()
        return queue.finish(claims[n], Outcome.succeeded(put(store, tmp_path / f"out{n}", "equal")))

    with ThreadPoolExecutor(count) as pool:
        ends = [pool.submit(work, n) for n in range(count)]
        assert {end.result(WITHIN_S) for end in ends} == {"succeeded"}
    ((artifact,), (entry,)) = stored(queue.db)
    assert entry.artifact_id == artifact.id
    assert (Path(artifact.uri) / "weights").read_text() == "equal"
    assert {queue.stages(run)[0].artifact_id for run in runs} == {artifact.id}
    assert all(queue.statuses(run) == {"a": "succeeded", "b": "ready"} for run in runs)
    assert queue.status(queue.submit("a")) == "succeeded"


@pytest.mark.parametrize("content", ["equal", "different"])
def test_one_ends_while_the_other_has_not_committed(queue: Queue, content: str) -> None:
    db = queue.db
    one, two = queue.submit("a"), queue.submit("a")
    first, second = queue.claim(one, "a"), queue.claim(two, "a")
    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            stages.finish(session, first, Outcome.succeeded(queue.artifact("equal")), now=queue.clock())
            ending = pool.submit(queue.finish, second, Outcome.succeeded(queue.artifact(content)))
            until_it_waits(db, ending)
        assert ending.result(WITHIN_S) == "succeeded"
    artifacts, (entry,) = stored(db)
    assert len(artifacts) == (1 if content == "equal" else 2)
    assert entry.artifact_id == queue.stages(one)[0].artifact_id  # the first answers
    assert queue.status(one) == queue.status(two) == "succeeded"
    by_id = {artifact.id: artifact.sha256 for artifact in artifacts}
    assert by_id[queue.stages(two)[0].artifact_id or 0] == queue.artifact(content).sha256


def test_one_fails_to_commit_and_the_other_has_it_all(queue: Queue) -> None:
    db = queue.db
    one, two = queue.submit("a"), queue.submit("a")
    first, second = queue.claim(one, "a"), queue.claim(two, "a")
    with ThreadPoolExecutor(1) as pool:
        with suppress(KeyboardInterrupt), db.write() as session:
            stages.finish(session, first, Outcome.succeeded(queue.artifact()), now=queue.clock())
            ending = pool.submit(queue.finish, second, Outcome.succeeded(queue.artifact()))
            until_it_waits(db, ending)
            raise KeyboardInterrupt
        assert ending.result(WITHIN_S) == "succeeded"
    assert queue.statuses(one) == {"a": "running"}
    assert queue.finish(first, Outcome.succeeded(queue.artifact())) == "succeeded"
    ((artifact,), (entry,)) = stored(db)
    assert entry.stage_id == second.stage_id
    assert queue.stages(one)[0].artifact_id == artifact.id
