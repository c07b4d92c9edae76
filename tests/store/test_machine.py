"""Random interleavings of everything that can happen to runs, held against a small model of what should.

The model is written from the promises alone: it knows no SQL. Messages are delivered late, twice or never;
workers report after they were given up; leases run out between any two moves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from engine.errors import Cause, Refused, StaleAttempt
from engine.store import outbox, stages
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome, Signal
from engine.store.tables import Attempt, Lease, Outbox, Run, Stage, StageId
from tests.store.walk import Clock, Queue

LEASE_S = 15.0
ATTEMPTS = 2
PLAN = {"a": (), "b": ("a",), "c": ("a", "d"), "d": (), "e": ("b", "c")}
OVER = ("succeeded", "failed", "cancelled")
ENDS = {
    "succeed": Outcome.succeeded(Queue.artifact()),
    "crash": Outcome.failed(Cause.SERVICE_DOWN, "down"),
    "bad spec": Outcome.failed(Cause.SPEC_ERROR, "bad"),
    "stop": Outcome.stopped(),
}


@dataclass
class StageModel:
    """What one stage should look like."""

    id: StageId
    status: str = "waiting"
    attempt: int = 0
    failures: int = 0
    not_before: datetime | None = None
    lease_until: datetime | None = None


@dataclass
class RunModel:
    """What one run should look like."""

    run: Run
    stages: dict[str, StageModel] = field(default_factory=dict)
    status: str = "queued"
    stop: bool = False

    def follow(self) -> None:
        """What a change of one stage means for the others and for the run, said as plainly as possible."""
        changed = True
        while changed:
            changed = False
            for name, stage in self.stages.items():
                inputs = [self.stages[producer].status for producer in PLAN[name]]
                if stage.status != "waiting":
                    continue
                if self.stop or "failed" in inputs or "cancelled" in inputs:
                    stage.status, changed = "cancelled", True
                elif all(status == "succeeded" for status in inputs):
                    stage.status, changed = "ready", True
        ends = {stage.status for stage in self.stages.values()}
        if ends <= set(OVER) and self.status not in OVER:
            self.status = "succeeded" if ends == {"succeeded"} else "cancelled" if self.stop else "failed"

    def give_up(self, stage: StageModel, now: datetime, *, counts: bool, retry: bool, delay_s: float) -> None:
        """An attempt ended without success."""
        stage.lease_until = None
        before = stage.failures
        stage.failures += counts
        if self.stop:
            stage.status = "cancelled"
        elif retry and (not counts or stage.failures < ATTEMPTS):
            stage.status, stage.not_before = "ready", now + timedelta(seconds=delay_s * 2**before)
        else:
            stage.status = "failed"
        self.follow()


class Machine(RuleBasedStateMachine):
    """The store under test on one side, `RunModel`s on the other, the same rules applied to both."""

    runs = Bundle("runs")
    messages = Bundle("messages")
    claims = Bundle("claims")

    def __init__(self, db: Database, clock: Clock, counter: list[int]) -> None:
        super().__init__()
        self.db, self.clock, self.counter = db, clock, counter
        self.queue = Queue(db, clock)
        self.models: dict[object, RunModel] = {}
        self.device = 0

    @rule(target=runs)
    def submit(self) -> object:
        self.counter[0] += 1
        edges = [f"{name}<{','.join(reads)}" for name, reads in PLAN.items()]
        run = self.queue.submit(*edges, salt=str(self.counter[0]), max_attempts=ATTEMPTS)
        model = RunModel(run, {name: StageModel(self.queue.stage(run, name)) for name in PLAN})
        model.follow()
        self.models[run.id] = model
        return run.id

    @rule(target=messages, twice=st.booleans())
    def publish(self, twice: bool) -> object:
        sent = self.queue.announced()
        return multiple(*(sent + sent if twice else sent))

    @rule(target=messages)
    def announce_again(self) -> object:
        self.clock.advance(61)
        with self.db.write() as session:
            outbox.announce_again(session, self.clock())
        return multiple(*self.queue.announced())

    @rule(message=consumes(messages))
    def lose_a_message(self, message: StageId) -> None:
        """The broker forgot it."""

    @rule(target=claims, message=messages)
    def deliver(self, message: StageId) -> object:
        model, stage = self._of(message)
        due = stage.status == "ready" and (stage.not_before is None or stage.not_before <= self.clock())
        self.device += 1
        claimed = self.queue.try_claim(message, f"slot:{self.device}", lease_s=LEASE_S)
        assert (claimed is not None) == due
        if claimed is None:
            return multiple()
        stage.status, stage.attempt = "running", stage.attempt + 1
        stage.lease_until = self.clock() + timedelta(seconds=LEASE_S)
        if model.status == "queued":
            model.status = "running"
        assert claimed.number == stage.attempt
        return claimed

    @rule(claimed=claims)
    def heartbeat(self, claimed: Claimed) -> None:
        model, stage = self._of(claimed.stage_id)
        if self._current(claimed, stage):
            assert self.queue.heartbeat(claimed, LEASE_S) is (Signal.STOP if model.stop else Signal.KEEP)
            stage.lease_until = self.clock() + timedelta(seconds=LEASE_S)
        else:
            with pytest.raises(StaleAttempt):
                self.queue.heartbeat(claimed, LEASE_S)

    @rule(claimed=claims)
    def write(self, claimed: Claimed) -> None:
        _, stage = self._of(claimed.stage_id)
        if self._current(claimed, stage):
            self._progress(claimed)
        else:
            with pytest.raises(StaleAttempt):
                self._progress(claimed)

    @rule(claimed=claims, how=st.sampled_from(sorted(ENDS)))
    def finish(self, claimed: Claimed, how: str) -> None:
        model, stage = self._of(claimed.stage_id)
        if not self._current(claimed, stage):
            with pytest.raises(StaleAttempt):
                self.queue.finish(claimed, ENDS[how])
            return
        self.queue.finish(claimed, ENDS[how])
        now = self.clock()
        if how == "succeed":
            stage.status, stage.lease_until = "succeeded", None
            model.follow()
        elif how == "crash":
            model.give_up(stage, now, counts=True, retry=True, delay_s=10)
        elif how == "bad spec":
            model.give_up(stage, now, counts=True, retry=False, delay_s=0)
        else:
            model.give_up(stage, now, counts=False, retry=True, delay_s=0)

    @rule(seconds=st.sampled_from([1.0, 9.0, 15.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def expire(self) -> None:
        now = self.clock()
        lost = {expired.stage_id for expired in self.queue.expire()}
        expected = set()
        for model in self.models.values():
            for stage in model.stages.values():
                if stage.status == "running" and stage.lease_until is not None and stage.lease_until <= now:
                    expected.add(stage.id)
                    model.give_up(stage, now, counts=True, retry=True, delay_s=0)
        assert lost == expected

    @rule(run=runs)
    def stop(self, run: object) -> None:
        model = self.models[run]
        assert self.queue.stop(model.run) == (model.status not in OVER)
        if model.status in OVER:
            return
        model.stop, model.status = True, "stopping"
        for stage in model.stages.values():
            if stage.status in ("waiting", "ready"):
                stage.status = "cancelled"
        model.follow()

    @rule(run=runs)
    def resume(self, run: object) -> None:
        model, now = self.models[run], self.clock()
        trial = replace(model, stages={name: replace(stage) for name, stage in model.stages.items()})
        buried = False
        for stage in trial.stages.values():
            if stage.status == "running" and stage.lease_until is not None and stage.lease_until <= now:
                trial.give_up(stage, now, counts=True, retry=True, delay_s=0)
                buried = True
        if trial.status in ("succeeded", "stopping"):
            with pytest.raises(Refused):
                self.queue.resume(model.run)
            return  # and nothing has changed
        assert self.queue.resume(model.run) == (buried or trial.status in OVER)
        self.models[run] = trial
        if trial.status in OVER:
            trial.status, trial.stop = "queued", False
            for stage in trial.stages.values():
                if stage.status in ("failed", "cancelled"):
                    stage.status, stage.failures, stage.not_before = "waiting", 0, None
            trial.follow()

    @invariant()
    def store_and_model_agree(self) -> None:
        with self.db.read() as session:
            for run_id, model in self.models.items():
                rows = session.execute(
                    select(Stage.name, Stage.status, Stage.attempt, Stage.failures).where(Stage.run_id == run_id)
                ).all()
                assert {name: tuple(rest) for name, *rest in rows} == {
                    name: (stage.status, stage.attempt, stage.failures) for name, stage in model.stages.items()
                }
                assert session.scalar(select(Run.status).where(Run.id == run_id)) == model.status

    @invariant()
    def one_attempt_runs_where_the_stage_runs_and_holds_the_device(self) -> None:
        with self.db.read() as session:
            running = session.execute(
                select(Attempt.stage_id, Attempt.number, Attempt.id).where(Attempt.status == "running")
            ).all()
            current = session.execute(select(Stage.id, Stage.attempt).where(Stage.status == "running")).all()
            assert sorted(tuple(row[:2]) for row in running) == sorted(tuple(row) for row in current)
            assert sorted(session.scalars(select(Lease.attempt_id))) == sorted(row.id for row in running)

    @invariant()
    def what_is_ready_will_be_announced(self) -> None:
        with self.db.read() as session:
            forgotten = session.scalar(
                select(func.count())
                .select_from(Stage)
                .where(
                    Stage.status == "ready", Stage.announce_after.is_(None), Stage.id.not_in(select(Outbox.stage_id))
                )
            )
        assert forgotten == 0

    def teardown(self) -> None:
        """Left alone with a patient worker, every run comes to its end."""
        for _ in range(50):
            self.clock.advance(700)
            self.expire()
            with self.db.write() as session:
                outbox.announce_again(session, self.clock())
            sent = self.queue.announced()
            for stage_id in sent:
                if (claimed := self.queue.try_claim(stage_id)) is not None:
                    self.queue.finish(claimed, ENDS["succeed"])
            if not sent:
                break
        for model in self.models.values():
            assert self.queue.status(model.run) in OVER

    def _of(self, stage_id: StageId) -> tuple[RunModel, StageModel]:
        for model in self.models.values():
            for stage in model.stages.values():
                if stage.id == stage_id:
                    return model, stage
        raise AssertionError("every message is of a stage of this example")

    def _current(self, claimed: Claimed, stage: StageModel) -> bool:
        return stage.status == "running" and stage.attempt == claimed.number

    def _progress(self, claimed: Claimed) -> None:
        with self.db.write() as session:
            stages.progress(session, claimed.stage_id, claimed.number, done=1, total=2, note="", now=self.clock())


def test_no_interleaving_breaks_a_promise(db: Database, clock: Clock) -> None:
    counter = [0]
    postgres = db.engine.dialect.name == "postgresql"
    run_state_machine_as_test(
        lambda: Machine(db, clock, counter),
        settings=settings(
            max_examples=10 if postgres else 30,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
