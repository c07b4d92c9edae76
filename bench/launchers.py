"""One spec under every launcher: how far its losses are from one process's, and what a step takes.

    python bench/launchers.py [--steps 50] [--ranks 2] [--only compiled] [--json]

The peer is the same run in one process. Each is submitted by `rlx submit` to one worker and computed anew: 512 dates,
a scratch Llama, on the CPU. Two ranks on two cores share them with what starts them; what is of interest on a machine
of this size is that losses agree, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

UNSCORED = [f"dataset.{name}=null" for name in ("score_fn", "done_fn", "split_fn")]
"""Losses are all that is compared."""
ROOT = Path(__file__).resolve().parent.parent
RLX = str(Path(sys.executable).parent / "rlx")


def launchers(ranks: int) -> dict[str, list[str]]:
    """Every launcher by its name, as overrides."""
    several = f"hardware.processes={ranks}"
    torchrun, deepspeed = ["hardware.launcher=torchrun", several], ["hardware.launcher=deepspeed", several]
    found = {
        "single": ["hardware.launcher=single"],
        "single, compiled": ["hardware.launcher=single", "hardware.compile=true"],
        "torchrun, DDP": torchrun,
        "torchrun, DDP, compiled": [*torchrun, "hardware.compile=true"],
        "torchrun, FSDP2": [*torchrun, "hardware.parallel=fsdp"],
        "torchrun, FSDP2, compiled": [*torchrun, "hardware.parallel=fsdp", "hardware.compile=true"],
        "torchrun, FSDP2, activations computed twice": [
            *torchrun, "hardware.parallel=fsdp", "hardware.checkpoint_activations=true"
        ],
    }  # fmt: skip
    if find_spec("deepspeed"):
        found |= {f"deepspeed, ZeRO-{stage}": [*deepspeed, f"hardware.zero={stage}"] for stage in (1, 2, 3)}
        found["deepspeed, ZeRO-3, all offloaded"] = [*deepspeed, "hardware.zero=3", "hardware.offload=all"]
    return found


def rlx(home: Path, *words: str) -> str:
    return subprocess.run(
        [RLX, *words],
        cwd=ROOT,
        env={**os.environ, "RLX_HOME": str(home)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def curves(home: Path, handle: str) -> dict[str, dict[int, float]]:
    """Every metric of the run, by step."""
    target = home / handle
    rlx(home, "export", handle, "--to", "json", "--output", str(target))
    found: dict[str, dict[int, float]] = {}
    for line in (target / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["key"], {})[row["step"]] = row["value"]
    return found


def measure(steps: int, ranks: int, only: str) -> dict[str, dict[str, float]]:
    """Of each launcher the largest relative difference of a step's loss, and the median step's tokens a second."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        worker = subprocess.Popen(
            [RLX, "worker", "--slots", "1"], cwd=ROOT, env={**os.environ, "RLX_HOME": folder}, stderr=subprocess.DEVNULL
        )
        try:
            found: dict[str, dict[int, float]] = {}
            speeds: dict[str, float] = {}
            for name, overrides in launchers(ranks).items():
                if name != "single" and only not in name:
                    continue
                words = [f"algorithm.steps={steps}", f"evaluation.every={steps}", *UNSCORED, *overrides]
                handle = rlx(home, "submit", "specs/dates_sft.yaml", *words, "--no-cache", "--no-wait").strip()
                rlx(home, "watch", handle)
                metrics = curves(home, handle)
                found[name] = metrics["train/loss"]
                speeds[name] = statistics.median(metrics["train/tokens_per_second"].values())
        finally:
            worker.terminate()
            worker.wait()
    alone = found["single"]
    return {
        name: {
            "difference": max(abs(losses[step] - loss) / loss for step, loss in alone.items()),
            "tokens_per_second": speeds[name],
        }
        for name, losses in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", default="", help="of the launchers those whose names have this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.steps, options.ranks, options.only)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'launcher':46} {'largest difference of a loss':>30} {'tokens/s':>9}")
    for name, row in found.items():
        print(f"{name:46} {row['difference']:30.1e} {row['tokens_per_second']:9,.0f}")


if __name__ == "__main__":
    main()
