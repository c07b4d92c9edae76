"""The proof behind `rlx verify-resume`: one run undisturbed, one whose stages are killed again and again, compared.

Both run in a private home with embedded workers, through the same queue, processes and checkpoints as any run. Which
moments a stage dies at is `moments`', how it does `runtime.interruption`'s; what is printed is `verifying`'s.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from engine.cli import moments, provenance
from engine.cli.compiling import Compiled
from engine.cli.following import Followed, follow, snapshot
from engine.cli.moments import Kills, Lived
from engine.cli.output import talk
from engine.cli.outside_kill import OutsideKill
from engine.cli.progress import reporter_for
from engine.cli.submitting import queue
from engine.compare.fingerprints import parting
from engine.errors import Cause
from engine.plan.hashing import sha256_of
from engine.runtime.interruption import ENVIRONMENT, saves, write_moments
from engine.settings import Settings
from engine.spec.experiment import Retries
from engine.store import artifacts, fingerprints, stages
from engine.store.certificates import Finding, Verdict
from engine.store.fingerprints import Layer
from engine.store.session import Database, open_database
from engine.store.tables import Run, RunId, StageId
from workers import dispatch

POLL_S = 0.05


@dataclass(frozen=True)
class Laboratory:
    """A private home, and the folder in which stage processes find when to die."""

    settings: Settings
    db: Database
    folder: Path


@dataclass(frozen=True)
class StageFinding:
    """Whether a stage did the same in both runs."""

    name: str
    fingerprints: int
    """In the undisturbed run."""
    attempts: int
    """In the disturbed run."""
    parted: str | None
    """Where the streams part: `step 3, update`."""
    output: str | None
    """Content hash of its artifact, where both runs agree."""
    trained: bool

    @property
    def where(self) -> str | None:
        """The first difference, None where there is none."""
        if self.parted is not None:
            return f"{self.name}, {self.parted}"
        return f"{self.name}, its output" if self.output is None else None


def verify(variant: Compiled, home: Path, *, kills: int, seed: int, now: Callable[[], datetime]) -> Finding:
    """Run `variant` twice in `home`, the second time with `kills` kills chosen by `seed`, and say what came of it."""
    with laboratory(home) as lab:
        talk("undisturbed")
        calm = queued(lab, variant)
        followed = followed_to_the_end(lab, calm)
        if followed.snapshot.status != "succeeded":
            return _finding(variant, now(), seed, "failed", 0, error=_error(followed, "the undisturbed run"))
        lives = {stage.name: _lived(lab, calm, stage.name) for stage in variant.plan.stages}
        chosen = moments.choose(lives, kills, seed)
        talk(f"disturbed: {len(chosen.moments) + chosen.outside} kills")
        shaken = queued(lab, _with_attempts(variant, kills + 2))
        write_moments(lab.folder, shaken.handle, chosen.moments)
        outside = _from_outside(lab, shaken, lives, chosen, seed)
        followed = followed_to_the_end(lab, shaken, outside)
        suffered = _suffered(lab, RunId(shaken.id))
        if followed.snapshot.status != "succeeded":
            error = _error(followed, "the disturbed run")
            return _finding(variant, now(), seed, "failed", len(suffered), error=error, killed=suffered)
        compared = _compared(lab, RunId(calm.id), RunId(shaken.id))
        return _finding(variant, now(), seed, conclude(compared)[0], len(suffered), compared=compared, killed=suffered)


def conclude(compared: Sequence[StageFinding]) -> tuple[Verdict, str | None]:
    """The verdict, and the first stage, step and layer at which the runs part."""
    where = next((stage.where for stage in compared if stage.where), None)
    return ("identical" if where is None else "parted"), where


@contextmanager
def laboratory(home: Path) -> Iterator[Laboratory]:
    """A store of its own in `home`; nothing of the user's is touched."""
    settings = Settings(home, f"sqlite:///{home / 'rlx.db'}", "filesystem://", str(home / "artifacts"))
    folder = home / "interruptions"
    folder.mkdir()
    db = open_database(settings)
    try:
        yield Laboratory(settings, db, folder)
    finally:
        db.close()


def queued(lab: Laboratory, variant: Compiled) -> Run:
    """The variant as a run that takes nothing from the cache."""
    return queue(lab.db, variant, tiny=True, no_cache=True)


def followed_to_the_end(lab: Laboratory, run: Run, outside: OutsideKill | None = None) -> Followed:
    """Have a worker of its own carry out the run, and follow it; the worker goes however this ends."""
    run_id = RunId(run.id)
    worker = dispatch.start_worker(lab.settings, run_id, environment={ENVIRONMENT: str(lab.folder)})
    reporter = reporter_for(time.monotonic)

    def wait() -> None:
        if outside is not None:
            outside.look()
        time.sleep(POLL_S)

    def lost() -> str | None:
        return None if worker.poll() is None else f"its worker left with {worker.returncode}"

    try:
        return follow(lambda: snapshot(lab.db, run_id), reporter, lost=lost, wait=wait)
    finally:
        reporter.close()
        _end(worker)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(timeout=30)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _from_outside(
    lab: Laboratory, run: Run, lives: Mapping[str, Lived], chosen: Kills, seed: int
) -> OutsideKill | None:
    """The kill from outside: of the stage that takes longest, or of one after it where none of its attempts lasted."""
    if not chosen.outside:
        return None
    names = list(lives)
    names = names[names.index(max(names, key=lambda name: lives[name].seconds)) :]
    return OutsideKill(
        lab.db, RunId(run.id), {name: lives[name].seconds / 3 for name in names}, chance=random.Random(seed)
    )


def _with_attempts(variant: Compiled, count: int) -> Compiled:
    """The variant whose stages are tried `count` times, without waiting in between."""
    retries = Retries.model_construct(max_attempts=count, backoff=0.1, max_backoff=0.1)
    loaded = variant.loaded
    return replace(
        variant,
        loaded=replace(
            loaded,
            experiment=loaded.experiment.model_copy(update={"retries": retries}),
            resolved={**loaded.resolved, "retries": retries.model_dump(mode="json")},
        ),
    )


def _lived(lab: Laboratory, run: Run, name: str) -> Lived:
    with lab.db.read() as session:
        stage = next(stage for stage in stages.for_run(session, RunId(run.id)) if stage.name == name)
        assert stage.started_at is not None
        assert stage.finished_at is not None
        return Lived(
            stream=fingerprints.of_stage(session, StageId(stage.id)),
            saves=saves(lab.folder, run.handle, name),
            seconds=(stage.finished_at - stage.started_at).total_seconds(),
        )


def _suffered(lab: Laboratory, run_id: RunId) -> list[str]:
    """The attempts of the run that were killed, such as `train, attempt 2`."""
    with lab.db.read() as session:
        return [
            f"{stage.name}, attempt {attempt.number}"
            for stage in stages.for_run(session, run_id)
            for attempt in stages.attempts(session, StageId(stage.id))
            if attempt.cause == Cause.LOST
        ]


def _compared(lab: Laboratory, calm: RunId, shaken: RunId) -> list[StageFinding]:
    with lab.db.read() as session:
        outputs, others = artifacts.of_run(session, calm), artifacts.of_run(session, shaken)
        twins = {stage.name: stage for stage in stages.for_run(session, shaken)}
        found = []
        for stage in stages.for_run(session, calm):
            twin = twins[stage.name]
            stream = fingerprints.of_stage(session, StageId(stage.id))
            parted = parting(stream, fingerprints.of_stage(session, StageId(twin.id)))
            same = outputs[stage.name].sha256 == others[stage.name].sha256
            found.append(
                StageFinding(
                    name=stage.name,
                    fingerprints=len(stream),
                    attempts=twin.attempt,
                    parted=None if parted is None else str(parted),
                    output=outputs[stage.name].sha256 if same else None,
                    trained=any(entry.layer is Layer.WEIGHTS for entry in stream),
                )
            )
        return found


def _error(followed: Followed, what: str) -> str:
    stage = next((stage for stage in followed.snapshot.stages if stage.status == "failed"), None)
    said = f"stage {stage.name} failed ({stage.cause}): {stage.error}" if stage else followed.lost
    return f"{what} did not get to its end: {said or followed.snapshot.status}"


def _finding(
    variant: Compiled,
    now: datetime,
    seed: int,
    outcome: Verdict,
    kills: int,
    *,
    compared: Sequence[StageFinding] = (),
    killed: Sequence[str] = (),
    error: str | None = None,
) -> Finding:
    captured = provenance.capture()
    weights = [stage.output for stage in compared if stage.trained]
    told = {"stages": [asdict(stage) for stage in compared], "killed": list(killed), "error": error}
    return Finding(
        method=variant.loaded.experiment.algorithm.name,  # type: ignore[attr-defined]  # every method's config has one
        versions={stage.kind: stage.version for stage in variant.plan.stages},
        spec=variant.plan.name.removesuffix("_tiny"),
        spec_hash=sha256_of(variant.loaded.resolved),
        outcome=outcome,
        kills=kills,
        seed=seed,
        weights_sha256=weights[-1] if weights else None,
        code=captured.code,
        packages=captured.packages,
        hardware=captured.hardware,
        detail={"where": conclude(compared)[1], **told},
        created_at=now,
    )
