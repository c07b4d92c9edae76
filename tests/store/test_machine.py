"""Random interleavings of everything that can happen to runs, held against a small model of what should.

The model is written from the promises alone: it knows no SQL. Messages are delivered late, twice or never;
workers report after they were given up; leases run out between any two moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from engine.errors import Cause, Refused, StaleAttempt
from engine.store import outbox, stages
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome, Signal
from engine.store.tables import METADATA, Attempt, Lease, Outbox, Run, Stage, StageId
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
    surely_from: datetime | None = None
    """Back-off: not before the one, surely from the other on; in between it depends on the attempt."""
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
            wait = timedelta(seconds=delay_s * 2**before)
            stage.status, stage.not_before, stage.surely_from = "ready", now + wait, now + 1.25 * wait
        else:
            stage.status = "failed"
        self.follow()


PICK = st.integers(0, 7)
"""Which of the newest messages, claims or runs a rule takes."""


class Machine(RuleBasedStateMachine):
    """The store under test on one side, `RunModel`s on the other, the same rules applied to both."""

    def __init__(self, db: Database, clock: Clock, counter: list[int]) -> None:
        super().__init__()
        self.db, self.clock, self.counter = db, clock, counter
        with db.write() as session:  # an example that failed must not make the next one fail: shrinking needs that
            for table in reversed(METADATA.sorted_tables):
                session.execute(table.delete())
        self.queue = Queue(db, clock)
        self.models: dict[object, RunModel] = {}
        self.messages: list[StageId] = []
        self.claims: list[Claimed] = []
        self.device = 0

    @initialize()
    def first(self) -> None:
        self.submit()

    @rule()
    def submit(self) -> None:
        self.counter[0] += 1
        edges = [f"{name}<{','.join(reads)}" for name, reads in PLAN.items()]
        run = self.queue.submit(*edges, salt=str(self.counter[0]), max_attempts=ATTEMPTS)
        model = RunModel(run, {name: StageModel(self.queue.stage(run, name)) for name in PLAN})
        model.follow()
        self.models[run.id] = model

    @rule(pick=PICK)
    def lose_a_message(self, pick: int) -> None:
        """The broker forgets; only `announce_again` can cure that."""
        self.messages += self._heard()
        if self.messages:
            self.messages.pop(_newest(self.messages, pick))
        self.clock.advance(61)
        with self.db.write() as session:
            outbox.announce_again(session, self.clock())

    @rule(pick=PICK, again=st.booleans())
    def deliver(self, pick: int, again: bool) -> None:
        self.messages += self._heard()
        if not self.messages:
            return
        place = _newest(self.messages, pick)
        message = self.messages[place] if again else self.messages.pop(place)
        model, stage = self._of(message)
        now = self.clock()
        possible = stage.status == "ready" and (stage.not_before is None or stage.not_before <= now)
        certain = possible and (stage.surely_from is None or stage.surely_from <= now)
        self.device += 1
        claimed = self.queue.try_claim(message, f"slot:{self.device}", lease_s=LEASE_S)
        assert certain <= (claimed is not None) <= possible
        if claimed is None:
            return
        stage.status, stage.attempt = "running", stage.attempt + 1
        stage.lease_until = self.clock() + timedelta(seconds=LEASE_S)
        if model.status == "queued":
            model.status = "running"
        assert claimed.number == stage.attempt
        self.claims.append(claimed)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def heartbeat(self, pick: int) -> None:
        claimed = self.claims[_newest(self.claims, pick)]
        model, stage = self._of(claimed.stage_id)
        if self._current(claimed, stage):
            assert self.queue.heartbeat(claimed, LEASE_S) is (Signal.STOP if model.stop else Signal.KEEP)
            stage.lease_until = self.clock() + timedelta(seconds=LEASE_S)
            self._progress(claimed)
        else:
            for write in (self.queue.heartbeat, self._progress):
                with pytest.raises(StaleAttempt):
                    write(claimed)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, how=st.sampled_from(sorted(ENDS)))
    def finish(self, pick: int, how: str) -> None:
        claimed = self.claims[_newest(self.claims, pick)]
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

    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        model = self._run(pick)
        assert self.queue.stop(model.run) == (model.status not in OVER)
        if model.status in OVER:
            return
        model.stop, model.status = True, "stopping"
        for stage in model.stages.values():
            if stage.status in ("waiting", "ready"):
                stage.status = "cancelled"
        model.follow()

    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        model, now = self._run(pick), self.clock()
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
        self.models[model.run.id] = trial
        if trial.status in OVER:
            trial.status, trial.stop = "queued", False
            for stage in trial.stages.values():
                if stage.status in ("failed", "cancelled"):
                    stage.status, stage.failures, stage.not_before = "waiting", 0, None
                    stage.surely_from = None
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

    def _heard(self) -> list[StageId]:
        """What is announced, in the order of the model: ids are random, and an example must replay as it ran."""
        sent = self.queue.announced()
        places = [stage.id for model in self.models.values() for stage in model.stages.values()]
        return sorted(sent, key=places.index)

    def _of(self, stage_id: StageId) -> tuple[RunModel, StageModel]:
        for model in self.models.values():
            for stage in model.stages.values():
                if stage.id == stage_id:
                    return model, stage
        raise AssertionError("every message is of a stage of this example")

    def _run(self, pick: int) -> RunModel:
        models = list(self.models.values())
        return models[_newest(models, pick)]

    def _current(self, claimed: Claimed, stage: StageModel) -> bool:
        return stage.status == "running" and stage.attempt == claimed.number

    def _progress(self, claimed: Claimed) -> None:
        with self.db.write() as session:
            stages.progress(session, claimed.stage_id, claimed.number, done=1, total=2, note="", now=self.clock())


def _newest(items: Sequence[object], pick: int) -> int:
    """A place in `items`, which is not empty: 0 is the last one."""
    return len(items) - 1 - pick % len(items)


def test_no_interleaving_breaks_a_promise(db: Database, clock: Clock) -> None:
    counter = [0]
    postgres = db.engine.dialect.name == "postgresql"
    run_state_machine_as_test(
        lambda: Machine(db, clock, counter),
        settings=settings(
            max_examples=5 if postgres else 30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
