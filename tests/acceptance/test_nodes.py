"""A stage over two workers as over one process: the same losses; it outlives a node that is killed, and none outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, select

from engine.runtime import trees
from engine.store.session import open_database
from engine.store.tables import Attempt, Lease, Metric, Run, Series, Stage
from tests.acceptance.rlx_command import ROOT, Rlx, eventually

STEPS, LONGER = 24, 100_000
"""Of a run, and of one that nobody waits for."""
OVERRIDES = (
    *("algorithm.schedule=constant", "algorithm.warmup=0.0", "algorithm.batch_size=6", "algorithm.batch_tokens=150"),
    *("algorithm.lr=5e-4", "algorithm.checkpoint_every=4", "algorithm.best_by=null", "evaluation={every: 100000}"),
    *("dataset.score_fn=null", "dataset.done_fn=null", "dataset.split_fn=null", "dataset.splits={}"),
)
TWO_NODES = ("hardware.launcher=torchrun", "hardware.processes=1", "hardware.nodes=2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Lab:
    """One installation, two workers, and looks into its store."""

    def __init__(self, home: Path) -> None:
        self.rlx, self._home = Rlx(home), home
        lines = (ROOT / "specs/datasets/dates_train.jsonl").read_text().splitlines()[:18]
        items = home.parent / "train.jsonl"
        items.write_text("".join(f"{line}\n" for line in lines))
        self._words = (*OVERRIDES, f"dataset.items={{file: {items}}}", "--no-wait")
        self.workers = {name: self.start(name) for name in ("one", "two")}

    def start(self, name: str) -> subprocess.Popen[str]:
        return self.rlx.start("worker", "--slots", "1", "--name", name)

    def submit(self, *hardware: str, steps: int = STEPS) -> str:
        """The handle of a run whose training is computed anew; its model is made once for all."""
        words = (f"algorithm.steps={steps}", f"notes={'+'.join(hardware)}")
        return self.rlx("submit", "specs/dates_sft.yaml", *self._words, *words, *hardware).strip()

    def query(self, statement: Select[Any]) -> list[Any]:
        database = open_database(f"sqlite:///{self._home / 'rlx.db'}")
        try:
            with database.read() as session:
                return list(session.execute(statement))
        finally:
            database.engine.dispose()

    def losses(self, handle: str) -> dict[int, float]:
        points = (
            select(Metric.step, Metric.value)
            .join(Series, Series.id == Metric.series_id)
            .join(Run, Run.id == Series.run_id)
            .where(Series.key == "train/loss", Run.handle == handle)
        )
        return dict(tuple(row) for row in self.query(points))

    def attempts(self, handle: str) -> list[dict[str, Any]]:
        (stage,) = [it for it in self.rlx.json("show", handle)["stages"] if it["name"] == "train"]
        found: list[dict[str, Any]] = stage["attempts"]
        return found

    def marked(self) -> dict[int, str]:
        """Every process of a stage of ours, with what it is marked as."""
        home = f"RLX_HOME={self._home}\0".encode()
        found = {}
        for pid in trees.table():
            try:
                ours = home in Path(f"/proc/{pid}/environ").read_bytes() or pid in found
            except OSError:
                continue
            if ours and b"workers.nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found[pid] = "nursery"
        nurseries = set(found)
        return {pid: "stage" for nursery in nurseries for pid in trees.below(nursery) if pid not in nurseries}
