"""A run in a store, to which attempts report as a stage's would, and its curves as SQL has them."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pytest

from engine.store import export
from engine.store.metrics import MetricWriter
from engine.store.stages import Claimed, Outcome
from engine.store.tables import RunId
from tests.cli import conftest as cli
from tests.tracking_readers import Curves

home, lab, rlx = cli.home, cli.lab, cli.rlx


class Training:
    """A run whose stage `train` reports; each attempt's clock goes on from the one before."""

    def __init__(self, lab: cli.Lab, folder: Path, **more: object) -> None:
        self.lab, self.run = lab, lab.submit(**more)  # type: ignore[arg-type]
        self._folder, self._time = folder, 1_000.0
        self.claimed: Claimed = lab.training(self.run)
        self._writer = self._open()

    @property
    def id(self) -> RunId:
        return RunId(self.run.id)

    def _open(self) -> MetricWriter:
        claimed = self.claimed
        return MetricWriter(self.lab.db, claimed.run_id, claimed.stage_id, claimed.number, self._folder / "spool")

    def log(self, steps: range, plus: float = 0.0) -> None:
        """Two metrics a step, durable when this returns; one of them is not finite at multiples of five."""
        for step in steps:
            self._time += 1
            kl = math.nan if step % 5 == 0 else step / 8 + plus
            self._writer.log(step, {"loss": step / 4 + plus, "kl": kl}, time=self._time)
        self._writer.flush()

    def resume(self, keep: int) -> None:
        """The attempt is lost, and another goes on from its checkpoint at step `keep`."""
        self._writer.close()
        self.lab.checkpoint(self.claimed, keep, "latest")
        self.lab.finish(self.claimed, Outcome.stopped())
        self.claimed = self.lab.claim(self.run, "train")
        self._writer = self._open()

    def end(self) -> None:
        """The run succeeds."""
        self._writer.close()
        self.lab.finish(self.claimed)

    def curves(self) -> Curves:
        """What SQL holds, evaluations too."""
        found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        with self.lab.db.read() as session:
            for row in export.metrics(session, self.id):
                value = math.nan if row["value"] is None else row["value"]
                found[row["stage"], row["key"]].append((row["step"], value))
            for row in export.evaluations(session, self.id):
                found[row["stage"], f"evaluation/{row['metric']}/{row['split']}"].append((row["step"], row["score"]))
        return dict(found)


@pytest.fixture
def training(lab: cli.Lab, tmp_path: Path) -> Training:
    return Training(lab, tmp_path)
