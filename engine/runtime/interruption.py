"""Where `rlx verify-resume` has a stage's process die: at a fingerprint, in the middle of a save, before a save counts.

The verifier starts its private worker with `RLX_INTERRUPT=FOLDER` in the environment; no spec can reach it. In the
folder, for a run and one of its stages:

    RUN.json                       the chosen moments, [[stage, kind, place], …]; without it nobody dies
    RUN.STAGE.passed               the saves that the stage came past, a line `KIND PLACE` each
    RUN.STAGE.KIND.PLACE.killed    left just before the process killed itself there: never twice at one place
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, get_args

ENVIRONMENT = "RLX_INTERRUPT"

Kind = Literal["note", "draft", "renamed"]
"""Before an entry of the stream; a checkpoint half written; a checkpoint written, but not recorded in the store."""


class Moment(NamedTuple):
    """A place in a stage's life: `place` entries of its stream have been made."""

    stage: str
    kind: Kind
    place: int


@dataclass(frozen=True)
class Interruption:
    """The moments at which this process dies."""

    folder: Path
    run: str
    stage: str
    chosen: Collection[Moment]

    @classmethod
    def of(cls, environ: Mapping[str, str], run: str, stage: str) -> Interruption | None:
        """What the environment asks of this stage's process; None where it asks nothing."""
        if not environ.get(ENVIRONMENT):
            return None
        folder = Path(environ[ENVIRONMENT])
        return cls(folder, run, stage, frozenset(m for m in read_moments(folder, run) if m.stage == stage))

    def reached(self, kind: Kind, place: int) -> None:
        """Die here, if this is a chosen moment at which the stage has not died yet."""
        if kind != "note":
            with (self.folder / f"{self.run}.{self.stage}.passed").open("a", encoding="utf-8") as file:
                file.write(f"{kind} {place}\n")
        if Moment(self.stage, kind, place) not in self.chosen:
            return
        marker = self.folder / f"{self.run}.{self.stage}.{kind}.{place}.killed"
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL is not survived")


def write_moments(folder: Path, run: str, moments: Collection[Moment]) -> None:
    """Choose the moments of a run. Stage processes that start later heed them."""
    draft = folder / f".{run}.json"
    draft.write_text(json.dumps(sorted(moments)), encoding="utf-8")
    draft.replace(folder / f"{run}.json")


def read_moments(folder: Path, run: str) -> list[Moment]:
    """The chosen moments of a run."""
    try:
        return [Moment(*entry) for entry in json.loads((folder / f"{run}.json").read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []


def killed(folder: Path, run: str) -> list[Moment]:
    """The moments at which stages of the run have died."""
    return [
        moment
        for moment in read_moments(folder, run)
        if (folder / f"{run}.{moment.stage}.{moment.kind}.{moment.place}.killed").exists()
    ]


def saves(folder: Path, run: str, stage: str) -> list[Moment]:
    """The saves that a stage came past, in order."""
    try:
        lines = (folder / f"{run}.{stage}.passed").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    known = {kind: kind for kind in get_args(Kind)}
    return [Moment(stage, known[kind], int(place)) for kind, place in map(str.split, lines)]
