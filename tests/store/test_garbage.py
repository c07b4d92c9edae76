"""Artifacts that nobody needs: which they are, and every race with a run that takes one at that moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select, update

from engine.settings import Settings
from engine.store import artifact_sweep, artifacts, garbage, removal, runs, stages
from engine.store.artifact_store import ArtifactStore, StoredArtifact
from engine.store.session import Database
from engine.store.stages import Outcome
from engine.store.tables import Artifact, CacheEntry, Run, Stage
from tests.store.walk import Clock, Queue, plan, until_it_waits

DAY = 86_400.0
WITHIN_S = 60.0


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifact_url)


@pytest.fixture
def queue(db: Database, clock: Clock) -> Queue:
    """Files tell the real time, so the clock begins with it here."""
    clock.time = datetime.now(UTC)  # type: ignore[attr-defined]
    return Queue(db, clock)


def put(store: ArtifactStore, tmp_path: Path, content: str) -> StoredArtifact:
    folder = tmp_path / f"out-{threading.get_ident()}-{time.monotonic_ns()}"
    folder.mkdir()
    (folder / "weights").write_text(content)
    return store.put(folder, "test")


def made(queue: Queue, store: ArtifactStore, tmp_path: Path, *, salt: str = "", content: str = "weights") -> Run:
    """A run of one stage that succeeded, with files."""
    run = queue.submit("a", salt=salt)
    queue.finish(queue.claim(run, "a"), Outcome.succeeded(put(store, tmp_path, content)))
    return run


def removed(queue: Queue, run: Run) -> None:
    with queue.db.read() as session:
        owned = removal.belongings(session, run.handle)
    removal.remove(queue.db, owned, clock=queue.clock)


def before(queue: Queue, grace_s: float = DAY) -> datetime:
    with queue.db.read() as session:
        return garbage.cutoff(session, now=queue.clock(), grace_s=grace_s)


def unneeded(queue: Queue, grace_s: float = DAY) -> list[garbage.Unneeded]:
    with queue.db.read() as session:
        return garbage.unneeded(session, before(queue, grace_s))


def collect(queue: Queue, limit: datetime | None = None) -> list[str]:
    """One gc of artifacts, as `sweep` does it; the content hashes that went."""
    when = limit or before(queue)
    return [one.sha256 for one in unneeded_at(queue, when) if _collected(queue.db, one, when)]


def _collected(db: Database, one: garbage.Unneeded, limit: datetime) -> bool:
    if not db.transact(lambda session: garbage.forget(session, [one.id], limit)):
        return False
    artifact_sweep.discard(one.uri, limit)
    return True


def rows(db: Database) -> int:
    with db.read() as session:
        return len(session.scalars(select(Artifact.id)).all())


def test_what_a_stage_of_a_stored_run_has_is_never_garbage(queue: Queue, store: ArtifactStore, tmp_path: Path) -> None:
    made(queue, store, tmp_path)
    queue.clock.advance(1000 * DAY)
    assert unneeded(queue) == []


def test_an_artifact_stays_for_the_grace_period_and_answers_meanwhile(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(DAY / 2)
    assert collect(queue) == []
    again = queue.submit("a")
    assert (queue.status(again), queue.stages(again)[0].cached) == ("succeeded", True)
    removed(queue, again)

    queue.clock.advance(DAY)
    (one,) = unneeded(queue)
    assert collect(queue) == [one.sha256]
    assert not Path(one.uri).exists()
    assert queue.status(queue.submit("a")) == "queued"


def test_a_cache_entry_younger_than_its_artifact_keeps_it(queue: Queue, store: ArtifactStore, tmp_path: Path) -> None:
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(2 * DAY)
    # The same content once more, from another stage: one artifact, two entries, one of them new.
    removed(queue, made(queue, store, tmp_path, salt="other"))
    assert unneeded(queue) == []


def test_what_a_stage_that_is_still_to_run_will_find_in_the_cache_stays(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    one, two = queue.submit("a"), queue.submit("a")
    queue.finish(queue.claim(one, "a"), Outcome.succeeded(put(store, tmp_path, "x")))
    removed(queue, one)
    queue.clock.advance(2 * DAY)
    assert unneeded(queue) == []
    assert queue.try_claim(queue.stage(two, "a")) is None  # the cache had it
    assert queue.status(two) == "succeeded"


def test_what_a_running_attempt_may_have_stored_is_not_old(queue: Queue, store: ArtifactStore, tmp_path: Path) -> None:
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(DAY / 2)
    running = queue.claim(queue.submit("b"), "b")
    queue.clock.advance(30 * DAY)
    assert unneeded(queue) == []  # the attempt may have put just this, long ago
    queue.finish(running, Outcome.stopped())
    assert len(unneeded(queue)) == 1


def test_an_artifact_that_was_found_again_by_a_put_keeps_its_files(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(2 * DAY)
    (one,) = unneeded(queue)
    os.utime(one.uri, (1, 1))
    limit = datetime.now(UTC)
    assert queue.db.transact(lambda session: garbage.forget(session, [one.id], before(queue))) == {one.id}
    put(store, tmp_path, "weights")  # a stage stores the same, before the files go
    assert not artifact_sweep.discard(one.uri, limit)
    assert (Path(one.uri) / "weights").read_text() == "weights"


def _background(work: Callable[[], object]) -> tuple[ThreadPoolExecutor, Future[object]]:
    pool = ThreadPoolExecutor(1)
    return pool, pool.submit(work)


def test_an_artifact_that_is_being_taken_is_left_alone(queue: Queue, store: ArtifactStore, tmp_path: Path) -> None:
    db = queue.db
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(2 * DAY)
    (one,) = unneeded(queue)
    with db.write() as session:
        taken = runs.submit(session, plan("a"), runs.Submission(source="v", resolved={}), now=queue.clock())
        pool, collecting = _background(lambda: collect(queue))
        if db.engine.dialect.name == "postgresql":
            assert collecting.result(WITHIN_S) == []  # it does not even wait
    with pool:
        assert collecting.result(WITHIN_S) == []
    assert queue.status(taken) == "succeeded"
    assert Path(one.uri).is_dir()


def test_an_artifact_that_is_being_removed_is_not_taken(queue: Queue, store: ArtifactStore, tmp_path: Path) -> None:
    db = queue.db
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(2 * DAY)
    (one,) = unneeded(queue)
    with db.write() as session:
        assert garbage.forget(session, [one.id], before(queue)) == {one.id}
        pool, submitting = _background(lambda: queue.submit("a"))
        until_it_waits(db, submitting)
    with pool:
        run = submitting.result(WITHIN_S)
    assert isinstance(run, Run)
    assert queue.statuses(run) == {"a": "ready"}  # nothing in the cache: it runs


def test_a_stage_that_ends_with_content_that_is_being_removed_has_it(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    db = queue.db
    removed(queue, made(queue, store, tmp_path))
    claimed = queue.claim(queue.submit("b"), "b")
    (old,) = unneeded_at(queue, datetime.now(UTC).replace(year=datetime.now(UTC).year + 1))
    with db.write() as session:
        assert garbage.forget(session, [old.id], queue.clock.advance(2 * DAY)) == {old.id}
        stored = put(store, tmp_path, "weights")  # finds the files, which are still there
        pool, finishing = _background(lambda: queue.finish(claimed, Outcome.succeeded(stored)))
        until_it_waits(db, finishing)
    with pool:
        assert finishing.result(WITHIN_S) == "succeeded"
    assert not artifact_sweep.discard(old.uri, claimed_start(queue, claimed))
    (row,) = _artifacts_of_stages(db)
    assert (row.sha256, Path(row.uri).is_dir()) == (stored.sha256, True)


def test_a_stage_that_ends_between_the_lock_and_the_removal_has_its_content(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    db = queue.db
    removed(queue, made(queue, store, tmp_path))
    claimed = queue.claim(queue.submit("b"), "b")
    limit = queue.clock.advance(2 * DAY)
    (old,) = unneeded_at(queue, limit)
    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            assert garbage._hold(session, [old.id]) == [old.id]
            stored = put(store, tmp_path, "weights")
            finishing = pool.submit(queue.finish, claimed, Outcome.succeeded(stored))
            until_it_waits(db, finishing)
            assert garbage.forget(session, [old.id], limit) == {old.id}
        assert finishing.result(WITHIN_S) == "succeeded"
    (row,) = _artifacts_of_stages(db)
    assert row.sha256 == stored.sha256


def unneeded_at(queue: Queue, limit: datetime) -> list[garbage.Unneeded]:
    with queue.db.read() as session:
        return garbage.unneeded(session, limit)


def claimed_start(queue: Queue, claimed: stages.Claimed) -> datetime:
    with queue.db.read() as session:
        (attempt,) = stages.attempts(session, claimed.stage_id)
    return attempt.started_at


def _artifacts_of_stages(db: Database) -> list[Artifact]:
    with db.read() as session:
        return list(session.scalars(select(Artifact).join(Stage, Stage.artifact_id == Artifact.id).distinct()))


def test_two_that_collect_at_once_remove_everything_once(queue: Queue, store: ArtifactStore, tmp_path: Path) -> None:
    for n in range(12):
        removed(queue, made(queue, store, tmp_path, salt=str(n), content=f"weights {n}"))
    queue.clock.advance(2 * DAY)
    start = threading.Barrier(2)

    def one() -> list[str]:
        start.wait()
        return collect(queue)

    with ThreadPoolExecutor(2) as pool:
        gone = [sha for future in [pool.submit(one), pool.submit(one)] for sha in future.result(WITHIN_S)]
    gone += collect(queue)  # what each left to the other
    assert len(gone) == len(set(gone)) == 12
    assert rows(queue.db) == 0
    assert not [path for path in Path(store.url).rglob("*") if path.is_file() and path.name != ".lock"]


def test_runs_that_come_and_go_while_two_collect_lose_nothing(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    """Every stage that succeeded has a row with its files, whatever the order was."""
    db, rounds, over = queue.db, 12, threading.Event()

    def age() -> None:
        """Rows and files become old at once, but not what a running attempt has touched since it began."""
        old = datetime(2020, 1, 1, tzinfo=UTC)
        with db.write() as session:
            session.execute(update(Artifact).values(created_at=old))
            session.execute(update(CacheEntry).values(created_at=old))

    def sweep() -> int:
        count = 0
        while not over.is_set():
            age()
            with db.read() as session:
                limit = garbage.cutoff(session, now=datetime.now(UTC), grace_s=0.05)
            count += len(collect(queue, limit))
        return count

    def work(name: str) -> list[Run]:
        kept = []
        for n in range(rounds):
            run = queue.submit("a", salt=str(n % 2), name=name)
            queue.clock.time = datetime.now(UTC)  # type: ignore[attr-defined]
            claimed = queue.try_claim(queue.stage(run, "a"))
            if claimed is not None:
                queue.finish(claimed, Outcome.succeeded(put(store, tmp_path, f"weights {n % 2}")))
            (stage,) = queue.stages(run)
            assert stage.status == "succeeded"
            (path,) = [Path(uri) for uri in _uris(db, run)]
            assert (path / "weights").read_text() == f"weights {n % 2}"
            if n % 3:
                removed(queue, run)
            else:
                kept.append(run)
        return kept

    with ThreadPoolExecutor(4) as pool:
        sweeping = [pool.submit(sweep), pool.submit(sweep)]
        working = [pool.submit(work, "one"), pool.submit(work, "two")]
        try:
            kept = [run for future in working for run in future.result(240)]
        finally:
            over.set()
        for future in sweeping:
            future.result(WITHIN_S)
    assert len(kept) == 2 * rounds / 3
    for run in kept:
        assert all((Path(uri) / "weights").is_file() for uri in _uris(db, run))


def _uris(db: Database, run: Run) -> list[str]:
    with db.read() as session:
        return [artifact.uri for artifact in artifacts.of_run(session, run.id).values()]


def test_killed_between_sql_and_files_it_leaves_files_that_the_next_finds(
    queue: Queue, store: ArtifactStore, tmp_path: Path
) -> None:
    removed(queue, made(queue, store, tmp_path))
    queue.clock.advance(2 * DAY)
    (one,) = unneeded(queue)
    pid = os.fork()
    if pid == 0:
        artifact_sweep.discard = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            collect(queue)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert (rows(queue.db), Path(one.uri).is_dir()) == (0, True)
    assert [found.uri for found in artifact_sweep.contents(store.url)] == [one.uri]
    with queue.db.read() as session:
        assert garbage.known(session, {one.sha256}) == set()
