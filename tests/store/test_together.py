"""Several writes in one message: all of them happen, and none takes another's values."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import bindparam, delete, event, select

from engine.store import events
from engine.store.columns import table_of
from engine.store.session import Database
from engine.store.tables import Event
from engine.store.together import Write, together
from tests.store.walk import Clock


def test_all_are_carried_out_and_where_messages_cost_in_one(db: Database, clock: Clock) -> None:
    with db.write() as session:
        events.add(session, "old", "goes", now=clock())
    statements: list[str] = []

    @event.listens_for(db.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    stage, table = uuid4(), table_of(Event)
    gone = Write(delete(table).where(table.c.kind == bindparam("unwanted")), {"unwanted": "old"})
    with db.write() as session:
        together(
            session,
            events.adding("first", "of a stage", now=clock(), stage_id=stage, attempt=1),
            gone,
            events.adding("second", "of nothing", now=clock(), data={"a": [1]}),
        )
    event.remove(db.engine, "before_cursor_execute", note)

    with db.read() as session:
        rows = session.execute(select(Event.kind, Event.message, Event.stage_id, Event.attempt, Event.data)).all()
    assert sorted(map(tuple, rows)) == [
        ("first", "of a stage", stage, 1, {}),
        ("second", "of nothing", None, None, {"a": [1]}),
    ]
    assert len(statements) == {"sqlite": 3, "postgresql": 1}[db.engine.dialect.name]
