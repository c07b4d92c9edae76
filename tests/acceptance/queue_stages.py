"""Stages that do next to nothing, for tests of the queue: run by real workers, in real stage processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.errors import DataError
from engine.runtime.context import Evaluation, ItemScore, Sample, StageContext, Stopped
from engine.runtime.engine_context import EngineContext
from engine.store.fingerprints import Layer


def noop(ctx: StageContext) -> None:
    """Write one file."""
    print("hello from the stage")
    (ctx.output_dir / "answer.txt").write_text(str(ctx.config.get("answer", 42)))


def add(ctx: StageContext) -> None:
    """Add up what the inputs hold."""
    total = sum(int((path / "answer.txt").read_text()) for path in ctx.inputs.values())
    (ctx.output_dir / "answer.txt").write_text(str(total))


def count(ctx: StageContext) -> None:
    """Count to `extra.steps` with random increments; reports and a checkpoint at every step, reports after it too.

    Waits after the checkpoint of step `extra.pause_at` for the file `extra.gate`, and after that of
    `extra.pause_again_at` for the same with the suffix `.again`: a test acts on the stage meanwhile.
    """
    steps, rng, total, done = int(ctx.extra["steps"]), np.random.default_rng(ctx.seed), 0.0, 0
    restored = ctx.restore()
    if restored is not None:
        rng.bit_generator.state = restored.state["rng"]
        total, done = restored.state["total"], restored.step
    print(f"counting from {done + 1}")
    while True:
        ctx.sample(Sample(done, f"after {done}"))
        if done == ctx.extra.get("pause_at"):
            Path(ctx.extra["gate"]).with_suffix(".reached").write_text(str(os.getpid()))
            while not Path(ctx.extra["gate"]).exists() and not ctx.should_stop:
                time.sleep(0.01)
        if done == ctx.extra.get("pause_again_at"):
            while not Path(ctx.extra["gate"]).with_suffix(".again").exists() and not ctx.should_stop:
                time.sleep(0.01)
        if ctx.should_stop:
            raise Stopped
        if done == steps:
            break
        done += 1
        total += float(rng.random())
        ctx.log(done, total=total)
        ctx.sample(Sample(done, f"before {done}"))
        ctx.progress(done, steps)
        if done == steps // 2:
            ctx.evaluation(Evaluation(done, "score", [ItemScore(0, (total,))]))
        ctx.checkpoint(done, {"rng": rng.bit_generator.state, "total": total})
    (ctx.output_dir / "total.txt").write_text(repr(total))


def learn(ctx: EngineContext) -> None:
    """Six steps that note what they draw, each with a checkpoint; `extra.forgets` loses the generator on a resume."""
    rng, total, done = np.random.default_rng(ctx.seed), 0.0, 0
    restored = ctx.restore()
    if restored is not None:
        total, done = restored.state["total"], restored.step
        if not ctx.extra.get("forgets"):
            rng.bit_generator.state = restored.state["rng"]
    for step in range(done + 1, 7):
        ctx.trace.step = step
        drawn = rng.random(3)
        ctx.trace.note(Layer.DATA, drawn)
        total += float(drawn.sum())
        ctx.trace.note(Layer.UPDATE, total)
        ctx.checkpoint(step, {"rng": rng.bit_generator.state, "total": total}, models={"sum": _writer(total)})
        ctx.deliver()  # the checkpoint counts from here on
        time.sleep(0.05)  # so that a kill from outside finds it at work
    (ctx.output_dir / "letters.txt").write_text("".join(set("abcdefghijklmnop")))  # as a library may
    (ctx.output_dir / "total.txt").write_text(repr(total))


def _writer(total: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sum.txt").write_text(repr(total))

    return write


def fail(ctx: StageContext) -> None:
    """Log a metric, then break."""
    ctx.log(1, loss=0.5)
    print("about to fail")
    raise DataError("items.jsonl:3: the answer is missing")


def crash(ctx: StageContext) -> None:
    """End as a bug in C code would."""
    os.kill(os.getpid(), signal.SIGSEGV)


def deaf(ctx: StageContext) -> None:
    """Never look whether to stop, and keep a child in a session of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(ctx.extra["gate"]).with_suffix(".reached").write_text(f"{os.getpid()} {child.pid}")
    while True:
        time.sleep(0.05)


def stuck(ctx: StageContext) -> None:
    """Report once, start a Python and another process, and then do nothing for ever."""
    ctx.log(1, loss=0.5)
    other = subprocess.Popen(["sleep", "600"])
    twin = os.fork()
    if twin == 0:
        _wait_as_a_twin()
    Path(ctx.extra["gate"]).with_suffix(".reached").write_text(f"{os.getpid()} {other.pid} {twin}")
    _wait_for_nobody()


def _wait_for_nobody() -> None:
    threading.Event().wait()


def _wait_as_a_twin() -> None:
    threading.Event().wait()


def fill_the_disk(ctx: StageContext) -> None:
    """Write a file where there is no room, as a library would that knows nothing of us."""
    ctx.checkpoint(1, {"x": 1})
    with Path("/dev/full").open("w") as file:
        file.write("weights" * 10_000)


def exit_early(ctx: StageContext) -> None:
    """End the process behind the engine's back."""
    print("RuntimeError: CUDA out of memory", flush=True)
    os._exit(3)


def spend(ctx: StageContext) -> None:
    """Time that is told apart; after a checkpoint the process is killed, where `extra.die` says so."""
    with ctx.spent("generation"), ctx.spent("functions"):
        time.sleep(0.02)
    with ctx.spent("training"):
        time.sleep(0.02)
    ctx.checkpoint(1, {"x": 1})
    if ctx.extra.get("die"):
        Path(ctx.extra["gate"]).with_suffix(".reached").write_text(str(os.getpid()))
        with ctx.spent("training"):
            threading.Event().wait()


def kill_worker(ctx: StageContext) -> None:
    """End the worker, its nursery and so this process, as a machine that runs out of memory might."""
    nursery = os.getppid()
    worker = int(Path(f"/proc/{nursery}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (worker, nursery):
        os.kill(pid, signal.SIGKILL)
    threading.Event().wait()


def draw(ctx: StageContext) -> None:
    """Import torch, where it was not imported yet, and write down what each global generator draws."""
    early = "torch" in sys.modules
    import torch

    drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    (ctx.output_dir / "drawn.json").write_text(json.dumps([early, *drawn, torch.get_num_threads()]))


def litter(ctx: StageContext) -> None:
    """Write down which process this is, and leave in it what `extra.leaves` names."""
    child = 0
    match ctx.extra.get("leaves"):
        case "thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        case "child":
            child = subprocess.Popen(["sleep", "600"]).pid
        case "orphan":
            script = "import os, subprocess; print(subprocess.Popen(['sleep', '600'], stdout=-3, stderr=-3).pid)"
            child = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
        case "file":
            os.open("/dev/null", os.O_RDONLY)
        case "environment":
            os.environ["LEFT"] = "behind"
        case "folder":
            os.chdir(ctx.output_dir.parent)
        case "path":
            sys.path.append("/nowhere")
        case "timer":
            signal.setitimer(signal.ITIMER_PROF, 600)
        case "failure":
            raise DataError("as asked")
    print("the number is", ctx.extra["number"])
    (ctx.output_dir / "pid.txt").write_text(f"{os.getpid()} {child} {ctx.extra['number']}")


def modules(ctx: StageContext) -> None:
    """Write down what the stage's process found imported, and its environment."""
    (ctx.output_dir / "gpus.txt").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    (ctx.output_dir / "torch.txt").write_text(str("torch" in sys.modules))
