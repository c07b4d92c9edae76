"""Every change of a status, noted by triggers in the database itself, whatever code or statement made it.

A move inside a transaction is seen too, and so is a write to a row that had ended.
"""

from __future__ import annotations

from sqlalchemy import text

from engine.store.session import Database
from engine.store.tables import Attempt, Run, Stage
from engine.store.transitions import ALLOWED, ENDED

TABLES = {"runs": Run, "stages": Stage, "attempts": Attempt}
_FUNCTION = """
CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO moves VALUES (TG_TABLE_NAME, OLD.status, NEW.status); RETURN NEW; END $$
"""
_ENDED = "('succeeded', 'failed', 'cancelled', 'lost')"
_NOTED = f"OLD.status <> NEW.status OR OLD.status IN {_ENDED}"


def watch(db: Database) -> None:
    """Begin to note what happens in `db`."""
    with db.write() as session:
        session.execute(text("CREATE TABLE moves (kind VARCHAR(16), was VARCHAR(16), became VARCHAR(16))"))
        if db.engine.dialect.name == "postgresql":
            session.execute(text(_FUNCTION))
        for table in TABLES:
            head = f"CREATE TRIGGER note_{table} AFTER UPDATE ON {table} FOR EACH ROW WHEN"
            if db.engine.dialect.name == "postgresql":
                session.execute(text(f"{head} ({_NOTED}) EXECUTE FUNCTION note_move()"))
            else:
                note = f"INSERT INTO moves VALUES ('{table}', OLD.status, NEW.status)"
                session.execute(text(f"{head} {_NOTED} BEGIN {note}; END"))


def forget(db: Database) -> None:
    """Begin anew."""
    with db.write() as session:
        session.execute(text("DELETE FROM moves"))


def breaches(db: Database) -> list[str]:
    """Moves that `ALLOWED` does not have, and writes to what had ended."""
    with db.read() as session:
        rows = session.execute(text("SELECT DISTINCT kind, was, became FROM moves ORDER BY kind, was, became")).all()
    found = []
    for table, was, became in rows:
        allowed, ended = ALLOWED[TABLES[table]], ENDED[TABLES[table]]
        if was == became:
            if was in ended:
                found.append(f"{table}: a row that had {was} was written again")
        elif became not in {str(status) for status in allowed[_status(table, was)]}:
            found.append(f"{table}: {was} became {became}")
    return found


def _status(table: str, name: str) -> object:
    return next(status for status in ALLOWED[TABLES[table]] if str(status) == name)
