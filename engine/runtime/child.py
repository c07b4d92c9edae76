"""One attempt at a stage, from inside its own process: prepare, call the stage, keep its output, say how it ended.

Nothing raised in here escapes: however the stage ends, that is an `Outcome`. Starting the process, watching
it and recording the outcome are the workers' business, who also hand in how to open the user's functions.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, cast

from engine.runtime import autopsy, services
from engine.runtime.context import Address, Functions, StageContext, Stopped
from engine.runtime.engine_context import EngineContext
from engine.runtime.follower import FollowerContext
from engine.runtime.interruption import Interruption
from engine.runtime.kept import Owner
from engine.runtime.late import once_imported
from engine.runtime.ranks import RankFailed, Ranks
from engine.runtime.seeds import derive, same_bits_again, seed_numpy, seed_torch
from engine.runtime.task import Task, device_names
from engine.runtime.world import ALONE, World
from engine.store.artifact_store import ArtifactStore
from engine.store.stages import Outcome

OpenFunctions = Callable[[Mapping[str, Any], Mapping[str, Address]], Functions]
"""Opens the user's functions that a stage's config holds; its services may be of use to them."""
Stage = Callable[[StageContext], None]
"""A stage's code."""


def run_stage(task: Task, open_functions: OpenFunctions) -> Outcome:
    """Run the attempt to its end. Everything that it prints is in the log already."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    ctx, ranks = None, None
    try:
        _prepare(task)
        if task.member:
            return _run_member(task, open_functions, stop)
        stage = load_entry(task.claimed.entry)
        claimed = task.claimed
        if claimed.resources.launcher != "single":
            ranks = Ranks.start(task, partial(_follow, task, stage, open_functions), stop)
        interruption = Interruption.of(os.environ, claimed.handle, claimed.name)
        world = ALONE if ranks is None else ranks.join()
        ctx = EngineContext(task, open_functions, stop, interruption=interruption, world=world)
        with _services(task, ctx, stop) as ctx.services:
            world.agree(dict(ctx.services))
            stage(ctx)
            if ranks is not None:
                ranks.part()
        ctx.deliver()
        store = ArtifactStore(task.settings.artifact_url, task.settings.home / "cache")
        with ctx.spent("saving"):
            artifact = store.put(task.output_dir, task.claimed.kind)
        return Outcome.succeeded(artifact)
    except Stopped:
        return _leave(ctx, Outcome.stopped())
    except BaseException as error:  # noqa: BLE001 - the outcome is how it is told
        traceback.print_exc()
        own = error.outcome if isinstance(error, RankFailed) else autopsy.of_exception(error)
        return _leave(ctx, own if ranks is None else ranks.blame(own))
    finally:
        if ctx is not None:
            ctx.close()


def _follow(task: Task, stage: Stage, open_functions: OpenFunctions, world: World) -> None:
    """Carry out the stage as another rank than the first."""
    ctx = FollowerContext(task, open_functions, world)
    try:
        stage(ctx)
    finally:
        ctx.close()


def _run_member(task: Task, open_functions: OpenFunctions, stop: threading.Event) -> Outcome:
    """Carry out the stage as another node than the first; the first one reports, so success leaves nothing."""
    stage, ranks = load_entry(task.claimed.entry), None
    try:
        follow = partial(_follow, task, stage, open_functions)
        ranks = Ranks.start(task, follow, stop)
        with suppress(Stopped):
            follow(ranks.join())
        ranks.part()
        return Outcome("succeeded")
    except BaseException as error:  # noqa: BLE001 - the outcome is how it is told
        traceback.print_exc()
        own = error.outcome if isinstance(error, RankFailed) else autopsy.of_exception(error)
        return own if ranks is None else ranks.blame(own)


def load_entry(entry: str) -> Stage:
    """The function at `package.module:function`. Raises ImportError where there is none."""
    module, _, name = entry.partition(":")
    try:
        return cast(Stage, getattr(importlib.import_module(module), name))
    except AttributeError as error:
        raise ImportError(f"{module} has no function {name!r}") from error


def _services(task: Task, ctx: EngineContext, stop: threading.Event) -> AbstractContextManager[Mapping[str, Address]]:
    """What the stage declared to need beside it, for as long as it works."""
    claimed, owner = task.claimed, None
    if task.worker is not None:
        declared = claimed.config.get("services", {})
        owner = Owner(task.settings.sockets, str(claimed.run_id), task.worker, declared)
    around = services.Around(task.service_log, task.service_gpus, ctx.alive, owner=owner)
    return services.running(ctx.config.get("services", {}), ctx.extra.get("served", {}), around, stop)


def _prepare(task: Task) -> None:
    """What must be settled before user code is imported: devices, threads, seeds."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device_names(task.gpus)
    if not task.member:
        task.output_dir.mkdir(exist_ok=True)
    seed = derive(task.claimed.seed, task.claimed.name)
    seed_numpy(seed)
    once_imported("torch", lambda: _prepare_torch(task, seed))


def _prepare_torch(task: Task, seed: int) -> None:
    import torch

    threads = task.claimed.resources.threads
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or task.threads or len(os.sched_getaffinity(0)))
    if not task.gpus:
        same_bits_again()
    seed_torch(seed)


def _leave(ctx: EngineContext | None, outcome: Outcome) -> Outcome:
    """Deliver what the stage has reported; a failure to do so is logged, and does not hide how the stage ended."""
    if ctx is not None:
        try:
            ctx.deliver()
        except Exception:  # noqa: BLE001 - see above
            print("what the stage reported last could not be delivered:", file=sys.stderr)  # noqa: T201 - this is its log
            traceback.print_exc()
    return outcome
