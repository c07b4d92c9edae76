"""`rlx export`: a run's model with its card, or what it reported, as files that other tools read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import Handle
from engine.cli.output import answer, path, talk
from engine.cli.quick import QuickCommand
from engine.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from engine.store.session import Database
    from engine.store.tables import Run

_ROWS = 10_000
"""Rows of a Parquet file that are written at once."""
Row = dict[str, Any]


class Format(StrEnum):
    """What a run can be exported to."""

    HF = "hf"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    TENSORBOARD = "tensorboard"


def register(root: typer.Typer) -> None:
    """Add `export` to `rlx`."""
    root.command("export", cls=QuickCommand)(export)


def export(
    handle: Handle,
    to: Annotated[Format, typer.Option("--to", help="hf: the model; the others: what was reported.")],
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder that is not there yet; by default HANDLE-FORMAT.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Of hf: best, latest, or step-N.")] = "best",
) -> None:
    """Write a run's model, or what it reported, into a folder.

    hf is a Hugging Face directory with a model card: spec, data, evaluations, and the command that makes it again.
    tensorboard is a folder of event files; csv, json and parquet hold metrics, evaluations and samples.
    Prints the folder.
    """
    from engine.cli.places import required_store
    from engine.store import runs

    db = required_store()
    with db.read() as session:
        run = runs.find(session, handle)
        place = folder or Path(f"{run.handle}-{to}")
        with _new_folder(place) as draft:
            if to is Format.TENSORBOARD:
                _event_files(db, run, draft)
            elif to is Format.HF:
                _model(session, run, checkpoint, draft)
            else:
                _reports(session, run, to, draft)
    answer(path(place))


@contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name once it is whole. Raises Refused where there is something."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise Refused(f"{place} is there already: name another folder with --output, or remove it")
    draft = place.with_name(f".{place.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        if place.exists():
            place.rmdir()
        draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _model(session: Session, run: Run, label: str, draft: Path) -> None:
    from engine.cli.model_card import model_card
    from engine.cli.models import checkpoint, model_folder
    from engine.cli.rows import evaluation_rows
    from engine.store import runs

    found = checkpoint(session, run, label)
    shutil.copytree(model_folder(found.path), draft, dirs_exist_ok=True)
    told = [row for row in evaluation_rows(session, run) if row["step"] in (0, found.step)]
    card = model_card(
        handle=run.handle,
        checkpoint=f"step-{found.step}",
        resolved=run.resolved,
        source=runs.spec_of(session, run).source,
        evaluations=told,
        code=run.code,
        packages=run.packages,
        overrides=run.overrides,
    )
    (draft / "README.md").write_text(card, encoding="utf-8")


def _event_files(db: Database, run: Run, draft: Path) -> None:
    from engine.store.tables import RunId
    from engine.tracking.marks import Marks
    from engine.tracking.mirror import Mirror
    from engine.tracking.tensorboard_files import TensorBoardFiles

    mirror = Mirror(db, RunId(run.id), lambda: TensorBoardFiles(draft), Marks())
    talk(f"{mirror.catch_up():,} points")
    mirror.close()


def _reports(session: Session, run: Run, to: Format, draft: Path) -> None:
    from engine.store import export
    from engine.store.tables import RunId

    for name in ("metrics", "evaluations", "samples"):
        rows = getattr(export, name)(session, RunId(run.id))
        with _WRITERS[to](draft / f"{name}.{_SUFFIXES[to]}", _COLUMNS[name]) as write:
            count = 0
            while some := list(islice(rows, _ROWS)):
                write(some)
                count += len(some)
        talk(f"{name}: {count:,} rows")


_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "metrics": ("stage", "key", "step", "value", "time"),
    "evaluations": ("stage", "step", "metric", "split", "functions_hash", "item", "run", "score"),
    "samples": ("stage", "step", "split", "item", "kind", "score", "text", "data"),
}
_TYPES: Mapping[str, str] = {
    "step": "int64",
    "item": "int64",
    "run": "int64",
    "value": "float64",
    "score": "float64",
    "time": "timestamp",
}
"""Of Parquet's columns; any other one is text."""
_SUFFIXES: Mapping[Format, str] = {Format.CSV: "csv", Format.JSON: "jsonl", Format.PARQUET: "parquet"}
Write = Callable[[list[Row]], None]


@contextmanager
def _csv(file: Path, columns: tuple[str, ...]) -> Iterator[Write]:
    import csv

    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()

        def write(rows: list[Row]) -> None:
            writer.writerows({name: _flat(value) for name, value in row.items()} for row in rows)

        yield write


@contextmanager
def _json(file: Path, columns: tuple[str, ...]) -> Iterator[Write]:
    import json

    from engine.cli.output import plain

    with file.open("w", encoding="utf-8") as out:

        def write(rows: list[Row]) -> None:
            out.writelines(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)

        yield write


@contextmanager
def _parquet(file: Path, columns: tuple[str, ...]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"int64": pa.int64(), "float64": pa.float64(), "timestamp": pa.timestamp("us", tz="UTC")}
    schema = pa.schema([(name, kinds.get(_TYPES.get(name, ""), pa.string())) for name in columns])
    with pq.ParquetWriter(file, schema) as writer:

        def write(rows: list[Row]) -> None:
            table = {name: [_unnested(row[name]) for row in rows] for name in columns}
            writer.write_table(pa.table(table, schema=schema))

        yield write


_WRITERS: Mapping[Format, Callable[[Path, tuple[str, ...]], AbstractContextManager[Write]]] = {
    Format.CSV: _csv,
    Format.JSON: _json,
    Format.PARQUET: _parquet,
}


def _unnested(value: Any) -> Any:
    """JSON in place of what has parts."""
    import json

    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _flat(value: Any) -> Any:
    """The same, and times as ISO 8601."""
    return value.isoformat() if hasattr(value, "isoformat") else _unnested(value)
