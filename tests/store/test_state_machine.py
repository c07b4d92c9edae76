"""Random interleavings of everything that can happen to runs, held against a small model of what should.

Messages are delivered late, twice or never; the broker fails in the middle of a publication; workers report after
they were given up; leases run out between any two moves. The model is `queue_model`'s, and `move_log` hears of
every change of a status from the database itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from engine.errors import Cause, Refused, StaleAttempt
from engine.store import outbox, queue, samples
from engine.store.outbox import OutboxMessage
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome, Signal
from engine.store.tables import METADATA, StageId
from tests.store import move_log, promises
from tests.store.queue_model import ATTEMPTS, OVER, PLAN, RunModel, StageModel, running
from tests.store.reports import reports, text_of
from tests.store.walk import Clock, Queue

LEASE_S = 15.0
WORKERS = 2
DEVICES = [(worker, f"slot:{slot}") for worker in range(WORKERS) for slot in range(2)]
ENDS = {
    "succeed": Outcome.succeeded(Queue.artifact()),
    "crash": Outcome.failed(Cause.SERVICE_DOWN, "down"),
    "bad spec": Outcome.failed(Cause.SPEC_ERROR, "bad"),
    "stop": Outcome.stopped(),
}
ACTS = st.lists(st.sampled_from(["heartbeat", "report", "report", "save", "save"]), max_size=4)
END = st.sampled_from([None, None, *sorted(ENDS), "succeed", "crash", "stop"])
PICK = st.integers(0, 7)
"""Which of the newest messages, claims or runs a rule takes."""
SELDOM = st.sampled_from([False, False, False, True])
HOW = st.sampled_from(["found", "heard", "heard again"])
TRIES = st.lists(st.tuples(PICK, HOW, PICK, SELDOM), min_size=1, max_size=4)


class Machine(RuleBasedStateMachine):
    """The store under test on one side, `RunModel`s on the other, the same rules applied to both."""

    def __init__(self, db: Database, clock: Clock, counter: list[int], spool: Path) -> None:
        super().__init__()
        self.db, self.clock, self.counter, self.spool = db, clock, counter, spool
        with db.write() as session:  # an example that failed must not make the next one fail: shrinking needs that
            for table in reversed(METADATA.sorted_tables):
                session.execute(table.delete())
        move_log.forget(db)
        self.queue = Queue(db, clock)
        self.workers = [self.queue.new_worker(f"w{number}") for number in range(WORKERS)]
        self.models: dict[object, RunModel] = {}
        self.messages: list[StageId] = []
        self.claims: list[Claimed] = []

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

    @rule(after=st.integers(0, 3), heard=st.booleans())
    def the_broker_breaks_down(self, after: int, heard: bool) -> None:
        """In the middle of a publication; of the message on its way nobody knows whether it came through."""
        sent: list[StageId] = []

        def send(message: OutboxMessage) -> None:
            if len(sent) >= after:
                if heard:
                    sent.append(message.stage_id)
                raise ConnectionError("the broker is gone")
            sent.append(message.stage_id)

        with suppress(ConnectionError):
            outbox.publish(self.db, send, now=self.clock())
        self.messages += self._sent(sent)

    @rule(pick=PICK)
    def lose_a_message(self, pick: int) -> None:
        """The broker forgets; only `announce_again` can cure that."""
        self.messages += self._heard()
        if self.messages:
            self.messages.pop(_newest(self.messages, pick))
        self.clock.advance(61)
        with self.db.write() as session:
            outbox.announce_again(session, self.clock())

    def _claims(self, tries: list[tuple[int, str, int, bool]]) -> None:
        """Workers claim stages that they heard of, or found by themselves, on a device that may be lent already."""
        for pick, how, place, busy in tries:
            if how == "found":
                candidates = self._in_order(self._listed())
            else:
                self.messages += self._heard()
                candidates = self.messages
            devices = [device for device in DEVICES if (device in self._lent()) is busy]
            if candidates and devices:
                at = _newest(candidates, pick)
                stage_id = candidates.pop(at) if how == "heard" else candidates[at]
                self._claim(stage_id, *devices[_newest(devices, place)])

    def _lent(self) -> set[tuple[int, str]]:
        """Devices, with their workers, that an attempt holds: also one whose worker is silent."""
        return {
            (stage.worker, device)
            for _, stage in running(self.models)
            for device in stage.devices
            if stage.worker is not None
        }

    def _claim(self, stage_id: StageId, worker: int, device: str) -> None:
        model, stage = self._of(stage_id)

        def claim() -> Claimed | None:
            return self.queue.try_claim(stage_id, device, lease_s=LEASE_S, worker=self.workers[worker])

        if not stage.due(self.clock()):
            assert claim() is None
            return
        certain = stage.surely_due(self.clock())
        if (worker, device) in self._lent():
            with pytest.raises(Refused) if certain else suppress(Refused):
                assert claim() is None
            return
        claimed = claim()
        if claimed is None:
            assert not certain
            return
        stage.begin(worker, device, self.clock() + timedelta(seconds=LEASE_S))
        if model.status == "queued":
            model.status = "running"
        saved = stage.saved
        assert claimed.number == stage.attempt
        assert (claimed.resume and claimed.resume.step) == (saved and saved.step)
        if claimed.number > 1:
            attempt, sampled = (saved.attempt, saved.sampled) if saved else (0, 0)
            with self.db.write() as session:
                samples.rewind(session, stage_id=stage_id, number=claimed.number, attempt=attempt, sampled=sampled)
        self.claims.append(claimed)

    def _goes_on(self, pick: int, stale: bool, acts: list[str], end: str | None) -> None:
        """A worker goes on with what it claimed, whether that is still its own or not, and perhaps ends it."""
        found = [one for one in self.claims if stale is not self._current(one, self._of(one.stage_id)[1])]
        if not found:
            return
        claimed = found[_newest(found, pick)]
        for act in acts:
            getattr(self, f"_{act}")(claimed)
        if end is not None:
            self._finish(claimed, end)

    # Two and three of a kind: half of all moves should be somebody's work.
    claim, claim_more = rule(tries=TRIES)(_claims), rule(tries=TRIES)(_claims)
    go_on = rule(pick=PICK, stale=SELDOM, acts=ACTS, end=END)(_goes_on)
    go_on_more = rule(pick=PICK, stale=SELDOM, acts=ACTS, end=END)(_goes_on)
    go_on_further = rule(pick=PICK, stale=SELDOM, acts=ACTS, end=END)(_goes_on)

    def _heartbeat(self, claimed: Claimed) -> None:
        model, stage = self._of(claimed.stage_id)
        if self._current(claimed, stage):
            assert self.queue.heartbeat(claimed, LEASE_S) is (Signal.STOP if model.stop else Signal.KEEP)
            stage.lease_until = self.clock() + timedelta(seconds=LEASE_S)
        else:
            with pytest.raises(StaleAttempt):
                self.queue.heartbeat(claimed)

    def _report(self, claimed: Claimed) -> None:
        """A step of training: a metric, a sample, an evaluation, and how far it is."""
        _, stage = self._of(claimed.stage_id)
        if not self._current(claimed, stage):
            for write in self._reports(claimed, step=99, first=99):
                with pytest.raises(StaleAttempt):
                    write()
            return
        *writes, _ = self._reports(claimed, step=stage.step + 1, first=stage.sampled)
        for write in writes:
            write()
        stage.report(text_of(claimed, stage.step + 1))

    def _save(self, claimed: Claimed) -> None:
        """A checkpoint of the last step."""
        _, stage = self._of(claimed.stage_id)
        if self._current(claimed, stage) and stage.step:
            self._reports(claimed, step=stage.step, first=stage.sampled)[-1]()
            stage.save()

    def _reports(self, claimed: Claimed, *, step: int, first: int) -> list[Callable[[], object]]:
        return reports(self.db, claimed, step=step, first=first, spool=self.spool, now=self.clock())

    def _finish(self, claimed: Claimed, how: str) -> None:
        model, stage = self._of(claimed.stage_id)
        if not self._current(claimed, stage):
            with pytest.raises(StaleAttempt):
                self.queue.finish(claimed, ENDS[how])
            return
        self.queue.finish(claimed, ENDS[how])
        now = self.clock()
        if how == "succeed":
            model.succeed(stage)
        elif how == "crash":
            model.give_up(stage, now, counts=True, retry=True, delay_s=10)
        elif how == "bad spec":
            model.give_up(stage, now, counts=True, retry=False, delay_s=0)
        else:
            model.give_up(stage, now, counts=False, retry=True, delay_s=0)

    @rule(seconds=st.sampled_from([1.0, 9.0, 15.0, 40.0]), sweep=st.booleans())
    def time_passes(self, seconds: float, sweep: bool) -> None:
        self.clock.advance(seconds)
        if sweep:
            self._expire()

    def _expire(self) -> None:
        now = self.clock()
        expected = set()
        for model, stage in running(self.models):
            if stage.overdue(now):
                expected.add((stage.id, stage.attempt))
                model.lose(stage, now)
        assert {(expired.stage_id, expired.number) for expired in self.queue.expire()} == expected

    @rule(pick=PICK, how=st.sampled_from(["resume", "resume, all being dead", "cancel"]))
    def somebody_interferes(self, pick: int, how: str) -> None:
        if how == "cancel":
            self._cancel(self._run(pick))
        else:
            self._resume(self._run(pick), gone=how != "resume")

    def _cancel(self, model: RunModel) -> None:
        assert self.queue.stop(model.run) == (model.status not in OVER)
        if model.status not in OVER:
            model.request_stop()

    def _resume(self, model: RunModel, *, gone: bool) -> None:
        """Perhaps where the workers and their stages are known to be gone."""
        now = self.clock()
        trial, buried = model.copy(), False
        for stage in trial.stages.values():
            if stage.status == "running" and (gone or stage.overdue(now)):
                trial.lose(stage, now)
                buried = True
        if trial.status in ("succeeded", "stopping"):
            with pytest.raises(Refused):
                self.queue.resume(model.run, gone=lambda *_: gone)
            return  # and nothing has changed
        assert self.queue.resume(model.run, gone=lambda *_: gone) == (buried or trial.status in OVER)
        self.models[model.run.id] = trial
        if trial.status in OVER:
            trial.resume()

    @invariant()
    def every_promise_is_kept(self) -> None:
        promises.check(self.db, self.models, self.workers, self.clock())

    def teardown(self) -> None:
        """Left alone with a patient worker, every run comes to its end."""
        for _ in range(50):
            self.clock.advance(700)
            self._expire()
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
        promises.check(self.db, {}, self.workers, self.clock())

    def _heard(self) -> list[StageId]:
        return self._sent(self.queue.announced())

    def _listed(self) -> list[StageId]:
        with self.db.read() as session:
            found = queue.ready(session, queues=["default"], now=self.clock(), limit=999)
        return [waiting.stage_id for waiting in found]

    def _sent(self, found: list[StageId]) -> list[StageId]:
        """The broker has these; every one is of a stage that is ready, or was."""
        for stage_id in found:
            self._of(stage_id)[1].heard = True
        return self._in_order(found)

    def _in_order(self, found: list[StageId]) -> list[StageId]:
        """In the order of the model: ids are random, and an example must replay as it ran."""
        places = [stage.id for model in self.models.values() for stage in model.stages.values()]
        return sorted(found, key=places.index)

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


def _newest(items: Sequence[object], pick: int) -> int:
    """A place in `items`, which is not empty: 0 is the last one."""
    return len(items) - 1 - pick % len(items)


@pytest.mark.timeout(600)  # one that fails is cut down to its shortest, for minutes
def test_no_interleaving_breaks_a_promise(db: Database, clock: Clock, tmp_path: Path) -> None:
    """A failure prints the steps that lead to it, and the line that replays them (`@reproduce_failure`)."""
    counter = [0]
    move_log.watch(db)
    postgres = db.engine.dialect.name == "postgresql"
    run_state_machine_as_test(
        lambda: Machine(db, clock, counter, tmp_path / "spool"),
        settings=settings(
            max_examples=8 if postgres else 30,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
