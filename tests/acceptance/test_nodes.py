"""A stage over two workers: the same losses as in one process, also when a node is killed; cancelled, none is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, select

from engine.runtime import trees
from engine.settings import Settings
from engine.store.session import open_database
from engine.store.tables import Lease, Metric, Run, Series
from tests.acceptance.rlx_command import ROOT, Rlx, eventually
from tests.faults.fleet import Fleet
from tests.faults.network import Network
from tests.faults.servers import Postgres

STEPS, LONGER = 120, 100_000
"""Of a run, and of one that nobody waits for."""
OVERRIDES = (
    *("algorithm.schedule=constant", "algorithm.warmup=0.0", "algorithm.batch_size=6", "algorithm.batch_tokens=150"),
    *("algorithm.lr=5e-4", "algorithm.checkpoint_every=4", "algorithm.best_by=null", "evaluation={every: 100000}"),
    *("dataset.score_fn=null", "dataset.done_fn=null", "dataset.split_fn=null", "hardware.timeout=null"),
)
TWO_NODES = ("hardware.launcher=torchrun", "hardware.processes=1", "hardware.nodes=2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Lab:
    """One installation, its workers, and looks into its store."""

    def __init__(self, rlx: Rlx, database: str | None = None) -> None:
        self.rlx, home = rlx, rlx.home
        self._database = database or f"sqlite:///{home / 'rlx.db'}"
        self.workers: dict[str, subprocess.Popen[str]] = {}
        lines = (ROOT / "specs/datasets/dates_train.jsonl").read_text().splitlines()
        for name, some in (("train", slice(0, 18)), ("heldout", slice(18, 20))):
            (home.parent / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines[some]))
        self._words = (
            *OVERRIDES,
            f"dataset.items={{file: {home.parent}/train.jsonl}}",
            f"dataset.splits={{heldout: {{file: {home.parent}/heldout.jsonl}}}}",
        )

    def start_worker(self, name: str) -> None:
        self.workers[name] = self.rlx.start("worker", "--slots", "1", "--name", name)

    def submit(self, *hardware: str, steps: int = STEPS) -> str:
        """The handle of a run that computes everything anew."""
        words = (*self._words, f"algorithm.steps={steps}", *hardware, "--no-cache", "--no-wait")
        return self.rlx("submit", "specs/dates_sft.yaml", *words).strip()

    def query(self, statement: Select[Any]) -> list[Any]:
        database = open_database(self._database)
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

    def past(self, handle: str, step: int) -> None:
        """Wait until the run is past that step."""
        eventually(lambda: len(self.losses(handle)) >= step or None, f"{step} steps of {handle}")

    def below_workers(self) -> set[int]:
        return {pid for worker in self.workers.values() for pid in trees.below(worker.pid)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(Rlx(tmp_path_factory.mktemp("home")))
    for name in ("one", "two"):
        lab.start_worker(name)
    eventually(lambda: len(lab.rlx.json("worker", "ls")) == 2 or None, "two workers")
    yield lab
    for worker in lab.workers.values():
        worker.terminate()
    for worker in lab.workers.values():
        worker.communicate(timeout=60)


@pytest.fixture(scope="module")
def alone(lab: Lab) -> dict[int, float]:
    """The losses of the run in one process."""
    handle = lab.submit()
    lab.rlx("watch", handle)
    return lab.losses(handle)


def test_two_nodes_compute_what_one_process_does_and_survive_the_loss_of_one(lab: Lab, alone: dict[int, float]) -> None:
    handle = lab.submit(*TWO_NODES)
    lab.past(handle, 8)
    (attempt,) = lab.attempts(handle)
    holders = {node["worker"] for node in attempt["nodes"]}
    assert holders == {"one", "two"}
    running = {row["name"]: row["running"][0] for row in lab.rlx.json("worker", "ls")}
    assert {name: running[name]["node"] for name in running} == {it["worker"]: it["node"] for it in attempt["nodes"]}

    victim = attempt["nodes"][1]["worker"]
    killed = lab.workers.pop(victim)
    its_own = trees.below(killed.pid)
    lab.start_worker("three")
    killed.kill()
    killed.communicate(timeout=60)

    eventually(lambda: not (its_own & trees.table().keys()) or None, "the end of all that the killed worker had")
    lab.rlx("watch", handle)
    first, second = lab.attempts(handle)
    assert (first["status"], first["cause"]) == ("failed", "lost")
    assert f"node 1 ({victim} on " in first["error"]
    assert (second["status"], {node["worker"] for node in second["nodes"]}) == (
        "succeeded",
        {"three", *holders} - {victim},
    )
    assert lab.losses(handle) == {step: pytest.approx(alone[step], rel=1e-3) for step in range(1, STEPS + 1)}


def test_cancelled_nodes_leave_a_checkpoint_and_nobody(lab: Lab, alone: dict[int, float]) -> None:
    idle = lab.below_workers()
    handle = lab.submit(*TWO_NODES, steps=LONGER)
    lab.past(handle, 5)
    assert len(lab.below_workers() - idle) >= 2

    lab.rlx("cancel", handle, "--grace", "60s")

    lab.rlx("watch", handle, code=1)
    eventually(lambda: lab.below_workers() <= idle or None, "the end of every node's processes")
    assert lab.query(select(Lease.device)) == []
    (attempt,) = lab.attempts(handle)
    assert attempt["status"] == "cancelled"
    assert lab.rlx.json("show", handle)["checkpoints"]


def test_a_stage_that_finds_too_few_workers_says_so(lab: Lab) -> None:
    handle = lab.submit("hardware.launcher=torchrun", "hardware.processes=1", "hardware.nodes=4")

    (waiting,) = eventually(lambda: [it for it in lab.rlx.json("queue") if it["stage"] == "train"] or None, "the wait")

    assert waiting["why"] == "needs 4 workers with 1 slot each; 2 workers lend that"
    lab.rlx("cancel", handle)


@dataclass(frozen=True)
class Served(Rlx):
    """The command on servers of a test's own."""

    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.settings.environment()}


@pytest.mark.netns
def test_two_hosts_find_each_other_and_one_that_is_cut_off_is_named(alone: dict[int, float], tmp_path: Path) -> None:
    if reason := Postgres.absent():
        pytest.skip(reason)
    with ExitStack() as stack:
        network = stack.enter_context(Network(["left", "right"]))
        network.connect()
        database = stack.enter_context(Postgres(host="0.0.0.0", inside=network.hub.inside))
        fleet = stack.enter_context(Fleet(tmp_path / "shared", database_url=database.socket_url, lease_s=4))

        lab = Lab(Served(fleet.settings.home, fleet.settings), database.socket_url)
        for name, host in network.hosts.items():
            there = replace(fleet.settings, database_url=database.url_at(network.address(name)))
            preload = "torch,engine.lm.hf,engine.methods.sft.stages,engine.methods.dialogue.prepare"
            fleet.start_worker(settings=there, inside=host.inside, preload=preload)
        eventually(lambda: len(lab.rlx.json("worker", "ls")) == 2 or None, "two workers")
        handle = lab.submit(*TWO_NODES)
        lab.past(handle, 8)
        (attempt,) = lab.attempts(handle)
        assert {node["host"] for node in attempt["nodes"]} == set(network.hosts)
        cut = attempt["nodes"][1]

        network.cut(cut["host"])
        lost = eventually(
            lambda: next((it for it in lab.attempts(handle) if it["error"]), None), "the end of the attempt"
        )
        network.mend(cut["host"])

        assert lost["status"] == "lost"
        assert f"node 1 ({cut['worker']} on {cut['host']}) fell silent" in lost["error"]
        lab.rlx("watch", handle)
        assert [it["status"] for it in lab.attempts(handle)] == ["lost", "succeeded"]
        assert lab.losses(handle) == {step: pytest.approx(alone[step], rel=1e-3) for step in range(1, STEPS + 1)}


def test_submit_refuses_what_its_one_worker_could_never_do(tmp_path: Path) -> None:
    alone = Rlx(tmp_path / "home")

    said = alone.error("submit", "specs/dates_sft.yaml", *TWO_NODES, code=5)

    assert "stage 'train' needs 2 workers at once" in said


def test_a_drained_node_has_the_stage_leave_at_a_checkpoint_and_go_back_to_the_queue(lab: Lab) -> None:
    handle = lab.submit(*TWO_NODES, steps=LONGER)
    lab.past(handle, 5)
    (attempt,) = lab.attempts(handle)
    drained = attempt["nodes"][1]["worker"]

    lab.rlx("worker", "drain", drained, "--wait")

    lab.workers.pop(drained).communicate(timeout=60)
    attempt = eventually(lambda: next((it for it in lab.attempts(handle) if it["finished_at"]), None), "its end")
    assert (attempt["status"], attempt["cause"]) == ("cancelled", "preempted")
    assert lab.rlx.json("show", handle)["checkpoints"]
    (waiting,) = [it for it in lab.rlx.json("queue") if it["run"] == handle]
    assert waiting["why"] == "needs 2 workers with 1 slot each; 1 worker lends that"
    lab.rlx("cancel", handle)
