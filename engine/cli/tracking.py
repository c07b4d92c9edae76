"""`rlx track`: mirror a run into TensorBoard, Weights & Biases or MLflow, for once or while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.arguments import Handle
from engine.cli.output import answer, talk
from engine.cli.quick import QuickCommand
from engine.errors import ExitCode, Refused, SpecError

if TYPE_CHECKING:
    from engine.tracking.bridges import Way


class To(StrEnum):
    """What a run can be mirrored into."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


def register(root: typer.Typer) -> None:
    """Add `track` to `rlx`."""
    root.command("track", cls=QuickCommand)(track)


def track(
    handle: Handle,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="With --to: settings over the spec's, such as project=mine.", metavar="[KEY=VALUE]..."),
    ] = None,
    to: Annotated[To | None, typer.Option("--to", help="By default all that the spec's `tracking` names.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is over.")] = False,
    beside: Annotated[int | None, typer.Option(hidden=True, help="Leave once this is no longer our parent.")] = None,
) -> None:
    """Mirror a run into TensorBoard, W&B or MLflow.

    Its metrics, evaluations, spec and status: what is new since the last time. Prints where it can be looked at.
    Workers do this by themselves for runs whose spec has a `tracking` block.
    """
    from engine.cli.places import required_store, the_settings
    from engine.store import runs
    from engine.store.processes import host_name
    from engine.store.tables import RunId
    from engine.tracking.bridges import ways
    from engine.tracking.following import Turn, once

    if settings and to is None:
        raise typer.BadParameter("say with --to which bridge these settings are for", param_hint="KEY=VALUE")
    db, home = required_store(), the_settings().home
    with db.read() as session:
        run = runs.find(session, handle)
        asked = ways(run.resolved.get("tracking") or {})
        run_id, handle = RunId(run.id), run.handle
    if to is not None:
        asked = [_way(to, settings or [], asked)]
    if not asked:
        raise SpecError(f"the spec of {handle} names no bridge in `tracking`: choose one with --to")
    turn = Turn(db, run_id, f"{host_name()}:{os.getpid()}")
    if not turn.take():
        if beside is not None:
            return
        raise Refused(f"{handle} is being mirrored just now, by a worker or by another `rlx track`: it is up to date")
    if follow:
        _follow(home, run_id, handle, asked, turn, beside)
        return
    try:
        for way in asked:
            written, where = once(db, home, run_id, handle, way, turn)
            talk(f"{way.name}: nothing new" if where is None else f"{way.name}: {written:,} points")
            if where is not None:
                answer(where)
    finally:
        turn.leave()


def _follow(home: Any, run_id: Any, handle: str, asked: list[Way], turn: Any, beside: int | None) -> None:
    from engine.cli.places import required_store
    from engine.log import configure
    from engine.tracking.following import follow

    configure()
    if beside is not None:
        os.nice(10)  # whoever trains comes first
    failed = follow(required_store(), home, run_id, handle, asked, turn, wait=_waiting(beside))
    for bridge, error in failed.items():
        talk(f"{bridge}: {error or 'up to date'}")
    if any(failed.values()):
        raise typer.Exit(ExitCode.UNREACHABLE)


def _waiting(beside: int | None) -> Callable[[float], bool]:
    """Waits; true once whoever we work beside is gone, or somebody wants us to leave."""
    import signal
    import threading

    leave = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave.set())

    def wait(seconds: float) -> bool:
        return leave.wait(seconds) or (beside is not None and os.getppid() != beside)

    return wait


def _way(to: To, settings: list[str], asked: list[Way]) -> Way:
    """The bridge, as the spec has it where it does, with these settings over that. Raises SpecError."""
    from pydantic import ValidationError

    from engine.tracking.bridges import BLOCKS, Way

    block = BLOCKS[to]
    said = next((way.block.model_dump(mode="json") for way in asked if way.name == to), {})
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise SpecError(f"{text!r} is no setting: write KEY=VALUE, as in project=mine")
        said[key] = os.path.abspath(os.path.expanduser(value)) if key == "folder" else value
    try:
        return Way(to, block.model_validate(said))
    except ValidationError as error:
        known = ", ".join(block.model_fields)
        first = error.errors()[0]
        raise SpecError(f"{to}: {first['loc'][0]}: {first['msg']}. Its settings are {known}") from None
