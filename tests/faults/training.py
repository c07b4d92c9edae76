"""Real training, made small: what the fleets of these tests run, and what must come out the same whatever befalls it.

A network learns to continue a random sequence: shuffled batches, dropout, AdamW and a schedule, so that weights,
optimiser, data order and every generator must be restored for a resumed run to end as an undisturbed one does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.plan.stage import Plan, Resources, Stage
from engine.runtime.context import Evaluation, ItemScore, Sample, StageContext, Stopped
from engine.runtime.seeds import rng_state, set_rng_state

WEIGHTS = "model.safetensors"
_SYMBOLS, _LENGTH, _ROWS, _BATCH = 12, 8, 96, 16


STAGES = ("begin", "go_on", "sum_up", "count", "count_on")
COUNTED = 5
"""Steps of a light stage."""
HELD_AT, HELD_AGAIN_AT = 8, 12
"""The steps after whose checkpoints a stage that is held waits."""


def plan(
    seed: int,
    *,
    steps: int = 40,
    pace_s: float = 0.05,
    name: str = "storm",
    queue: str = "default",
    gates: Sequence[Path] = (),
) -> Plan:
    """Two stages that train, the second from the weights of the first, one that sums up both, and two light ones.

    With `gates`, the first is held once it has made the checkpoint of step HELD_AT, until the first of these files
    exists; with a second one it is held again at HELD_AGAIN_AT.
    """
    resources = Resources(queue=queue, threads=1)
    extra = {"steps": steps, "pace_s": pace_s, "every": 4}
    held = extra | {"gates": {str(at): str(gate) for at, gate in zip((HELD_AT, HELD_AGAIN_AT), gates, strict=False)}}
    light = {"resources": Resources(queue=queue, light=True), "extra": {"steps": COUNTED, "pace_s": pace_s}}
    entry, counts = "tests.faults.training", "tests.faults.counting:count"
    return Plan(
        name,
        seed,
        (
            Stage("begin", "test.train", f"{entry}:train", (), resources=resources, extra=held),
            Stage(
                "go_on", "test.train", f"{entry}:train", (), inputs={"from": "begin"}, resources=resources, extra=extra
            ),
            Stage(
                "sum_up", "test.sum", f"{entry}:sum_up", (), inputs={"a": "begin", "b": "go_on"}, resources=resources
            ),
            Stage("count", "test.count", counts, (), inputs={"of": "sum_up"}, **light),
            Stage("count_on", "test.count", counts, (), inputs={"of": "count"}, **light),
        ),
    )


class Network(nn.Module):
    """Reads a window of symbols, says which comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_SYMBOLS, 16)
        self.recur = nn.GRU(16, 32, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(32, _SYMBOLS)

    def forward(self, windows: Tensor) -> Tensor:
        """Logits [B, V] from windows [B, T]."""
        states, _ = self.recur(self.embed(windows))
        return self.head(self.drop(states[:, -1]))


class Training:
    """Everything that a checkpoint has to hold."""

    def __init__(self, seed: int) -> None:
        data = torch.Generator().manual_seed(seed)
        self.windows = torch.randint(_SYMBOLS, (_ROWS, _LENGTH), generator=data)
        self.targets = (self.windows.sum(1) + seed) % _SYMBOLS
        self.network = Network()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=3e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, T_max=200)
        self.order = torch.randperm(_ROWS)
        self.place = 0

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "schedule": {
                key: value for key, value in self.schedule.state_dict().items() if key != "_get_lr_called_within_step"
            },
            "order": self.order,
            "place": self.place,
            "rng": rng_state(),
        }

    def restore(self, state: Any) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.order, self.place = state["order"], state["place"]
        set_rng_state(state["rng"])

    def step(self) -> dict[str, float]:
        """One batch; what is logged of it."""
        if self.place + _BATCH > _ROWS:
            self.order, self.place = torch.randperm(_ROWS), 0
        rows = self.order[self.place : self.place + _BATCH]
        self.place += _BATCH
        loss = nn.functional.cross_entropy(self.network(self.windows[rows]), self.targets[rows])
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.item(), "grad_norm": norm.item(), "first_row": float(rows[0])}

    def score(self) -> float:
        """Mean log-probability of the right symbol, without dropout."""
        self.network.eval()
        with torch.no_grad():
            found = -nn.functional.cross_entropy(self.network(self.windows), self.targets).item()
        self.network.train()
        return found


def train(ctx: StageContext) -> None:
    """Train for `extra.steps` steps, no faster than one in `extra.pace_s`; a checkpoint every `extra.every` steps."""
    torch.use_deterministic_algorithms(True)
    steps, every, training, step = int(ctx.extra["steps"]), int(ctx.extra["every"]), Training(ctx.seed), 0
    if "from" in ctx.inputs:
        training.network.load_state_dict(load_file(ctx.inputs["from"] / WEIGHTS))
    if (restored := ctx.restore()) is not None:
        training.restore(restored.state)
        step = restored.step
    print(f"training from step {step + 1}")
    while step < steps:
        if ctx.should_stop:
            raise Stopped
        began, step = time.monotonic(), step + 1
        metrics = training.step()
        ctx.log(step, metrics)
        ctx.progress(step, steps)
        ctx.sample(Sample(step, f"{step}: {torch.randint(10**6, ()).item()}", score=metrics["loss"]))
        if step % every == 0:
            if step % (2 * every) == 0:
                ctx.evaluation(Evaluation(step, "score", [ItemScore(0, (training.score(),))]))
            ctx.checkpoint(step, training.state(), models={"policy": lambda folder: _save(training, folder)})
            if (gate := ctx.extra.get("gates", {}).get(str(step))) is not None:
                _hold(ctx, Path(gate))
        time.sleep(max(0.0, float(ctx.extra["pace_s"]) - (time.monotonic() - began)))
    _save(training, ctx.output_dir)


def _hold(ctx: StageContext, gate: Path) -> None:
    while not gate.exists() and not ctx.should_stop:
        time.sleep(0.01)


def _save(training: Training, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in training.network.state_dict().items()}, folder / WEIGHTS)


def sum_up(ctx: StageContext) -> None:
    """One number from all the weights that went before."""
    total = sum(
        tensor.double().abs().sum().item()
        for path in ctx.inputs.values()
        for tensor in load_file(path / WEIGHTS).values()
    )
    ctx.log(1, total=total)
    (ctx.output_dir / "total.txt").write_text(repr(total))
