"""Fresh stores for benchmarks: an SQLite file or a PostgreSQL database of their own, with stages that are claimed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from engine.errors import Unreachable
from engine.plan.stage import Plan, Stage
from engine.store import runs, schema, stages, workers
from engine.store.session import Database, open_database
from engine.store.stages import Claimed
from engine.store.tables import RunId, StageId

POSTGRES = os.environ.get("RLX_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")


@contextmanager
def fresh_store(kind: str, folder: Path, server: str = POSTGRES) -> Iterator[Database]:
    """An empty store; a PostgreSQL database is dropped at the end. Raises Unreachable where no server answers."""
    if kind == "SQLite":
        database = open_database(f"sqlite:///{folder / uuid.uuid4().hex}.db")
        yield database
        database.close()
        return
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import OperationalError

    name = f"rlx_bench_{uuid.uuid4().hex[:12]}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
    except OperationalError as error:
        raise Unreachable(f"no PostgreSQL answers at {server}") from error
    try:
        url = make_url(server).set(database=name).render_as_string(hide_password=False)
        schema.upgrade(url)
        database = open_database(url)
        yield database
        database.close()
    finally:
        with admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
        admin.dispose()


def size_of(database: Database) -> int:
    """Bytes of the whole store."""
    from sqlalchemy import text

    with database.read() as session:
        if database.engine.dialect.name == "postgresql":
            return int(session.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
        pages, each = (session.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("page_count", "page_size"))
        return int(pages * each)


def claimed_stages(database: Database, count: int) -> list[Claimed]:
    """That many running stages of one run."""
    now = datetime.now(UTC)
    nodes = tuple(Stage(f"stage{n}", "bench", "bench:stage", (), extra={"n": n}) for n in range(count))
    with database.write() as session:
        worker = workers.register(
            session, name="bench", host="bench", pid=1, pid_started=None, queues=["default"], slots=count, now=now
        )
        run = runs.submit(
            session, Plan("bench", 0, nodes), runs.Submission(source="", resolved={"salt": uuid.uuid4().hex}), now=now
        )
        found = [
            stages.claim(session, StageId(row.id), worker=worker, devices=(), now=now, lease_s=3600)
            for row in stages.for_run(session, RunId(run.id))
        ]
    return [claimed for claimed in found if claimed is not None]
