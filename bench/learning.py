"""Who learns what, and at which cost: ArCHer against token-level PPO and REINFORCE over fresh seeds.

    python bench/learning.py run best_lang --seeds 5         # submits what is missing, waits, writes the results
    python bench/learning.py run twenty_questions --seeds 5
    python bench/learning.py report best_lang                # the table and the pictures from the results again

Every arm is an ordinary run of a shipped spec, submitted through the queue into a home folder of its own, so that
each row can be looked at with `rlx show` (`RLX_HOME=<home>`). Results are kept as JSON in `bench/results`; the report
prints Markdown and draws `docs/images/learning-<task>.png`. Training arms that do not start from the same weights would
be unfair: at equal seed all arms share one cached warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import select

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
AXES = {"scored_episodes": "scored episodes", "generated_tokens": "generated tokens", "seconds": "seconds"}
THRESHOLDS = {"best_lang": 0.8, "twenty_questions": 0.5}
"""Costs are told to the first evaluation that reaches this. The best that can be had is 1 and 0.6."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: a shipped spec, overrides, and the evaluation metric that tells its quality."""

    label: str
    spec: str
    metric: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """One evaluation: which arm and seed, where on the curve, and how good."""

    arm: str
    seed: int
    split: str
    step: int
    mean: float
    count: int
    scored_episodes: float
    generated_tokens: float
    seconds: float


FROZEN = ("algorithm.generator.mode=frozen",)
TASKS: dict[str, tuple[Arm, ...]] = {
    task: (
        Arm("ArCHer, best of 8", f"specs/{task}.yaml", "score"),
        Arm("ArCHer, generator alone", f"specs/{task}.yaml", "score/generator"),
        Arm("frozen generator, best of 8", f"specs/{task}_frozen.yaml", "score"),
        Arm("frozen generator, alone", f"specs/{task}_frozen.yaml", "score/generator"),
        Arm("PPO", f"specs/{task}_ppo.yaml", "score"),
        Arm("REINFORCE", f"specs/{task}_reinforce.yaml", "score"),
    )
    for task in ("best_lang", "twenty_questions")
}


def environment(home: Path) -> dict[str, str]:
    """One thread a process: two runs side by side on two cores do not disturb each other's clock."""
    return {**os.environ, "RLX_HOME": str(home), "OMP_NUM_THREADS": "1"}


def submit(task: str, seeds: Sequence[int], home: Path, jobs: int) -> None:
    """Submit every spec of the task at every seed to a worker of `jobs` slots, and wait for all of them."""
    rlx = [str(Path(sys.executable).parent / "rlx")]
    env = environment(home)
    # The worker first: a submission that finds none alive would start one of its own.
    worker = subprocess.Popen([*rlx, "worker", "--slots", str(jobs)], cwd=ROOT, env=env)
    try:
        while not json.loads(output([*rlx, "worker", "ls", "--json"], env)):
            time.sleep(0.5)
        handles = []
        for seed in seeds:
            for spec, overrides in dict.fromkeys((arm.spec, arm.overrides) for arm in TASKS[task]):
                fixed = (f"seed={seed}", "hardware.threads=1", "evaluation.every=2")
                handles.append(output([*rlx, "submit", spec, *fixed, *overrides, "--no-wait"], env).strip())
        for handle in handles:
            subprocess.run([*rlx, "watch", handle], cwd=ROOT, env=env, check=True)
    finally:
        worker.terminate()
        worker.wait(timeout=60)


def output(command: Sequence[str], env: dict[str, str]) -> str:
    """What a command printed."""
    return subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def collect(task: str, home: Path) -> list[Point]:
    """The learning curves of all succeeded runs, from the store."""
    from engine.store.session import open_database
    from engine.store.tables import Evaluation, Run, Stage

    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    points = []
    with database.read() as session:
        rows = session.execute(
            select(Evaluation, Run)
            .join(Run, Run.id == Evaluation.run_id)
            .join(Stage, Stage.id == Evaluation.stage_id)
            .where(Run.status == "succeeded", Stage.name == "train")
        ).all()
    for arm in TASKS[task]:
        name = Path(arm.spec).stem
        for evaluation, run in rows:
            if run.resolved["name"] == name and evaluation.metric == arm.metric:
                cost = {axis: float(evaluation.cost[axis]) for axis in AXES}
                points.append(
                    Point(
                        arm.label,
                        run.seed,
                        evaluation.split,
                        evaluation.step,
                        evaluation.mean,
                        evaluation.count,
                        **cost,
                    )
                )
    return points


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % Student interval."""
    from scipy import stats

    data = np.asarray(values)
    if len(data) < 2:
        return float(data.mean()), float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return float(data.mean()), float(data.mean()) - half, float(data.mean()) + half


def curves(points: Sequence[Point], split: str) -> dict[str, dict[int, list[Point]]]:
    """Arm -> seed -> its evaluations in order of steps."""
    grouped: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in sorted(points, key=lambda p: p.step):
        if point.split == split:
            grouped[point.arm][point.seed].append(point)
    return grouped


def table(points: Sequence[Point], split: str, threshold: float) -> str:
    """Markdown: first and last score over seeds, and the median cost at which the threshold was first reached."""
    costs = " | ".join(f"{name} to {threshold}" for name in AXES.values())
    head = f"| arm | seeds | untrained | final score (95 % over seeds) | {costs} |"
    lines = [head, "|" + " --- |" * (4 + len(AXES))]
    best: dict[str, tuple[float, str]] = {}
    for arm, seeds in curves(points, split).items():
        first = np.mean([run[0].mean for run in seeds.values()])
        mean, low, high = interval([run[-1].mean for run in seeds.values()])
        cells = []
        for axis in AXES:
            reached = [next((getattr(p, axis) for p in run if p.mean >= threshold), None) for run in seeds.values()]
            hits = [value for value in reached if value is not None]
            if len(hits) * 2 > len(reached):
                median = float(np.median([value if value is not None else np.inf for value in reached]))
                cells.append(
                    f"{median:,.0f}" + ("" if len(hits) == len(reached) else f" ({len(hits)} of {len(reached)})")
                )
                if axis not in best or median < best[axis][0]:
                    best[axis] = (median, arm)
            else:
                cells.append(f"not reached ({len(hits)} of {len(reached)})")
        lines.append(
            f"| {arm} | {len(seeds)} | {first:.2f} | {mean:.3f} ({low:.3f} to {high:.3f}) | {' | '.join(cells)} |"
        )
    winners = "; ".join(f"on {AXES[axis]}: **{arm}** ({value:,.0f})" for axis, (value, arm) in best.items())
    return "\n".join(lines) + f"\n\nFirst to {threshold} (median over seeds) {winners or 'nobody'}."


def draw(points: Sequence[Point], task: str, splits: Sequence[str]) -> Path:
    """One panel an axis and split: the mean over seeds as a line, each seed as a thin one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = ["#0072B2", "#56B4E9", "#009E73", "#999999", "#D55E00", "#CC79A7"]
    figure, panels = plt.subplots(
        len(splits), len(AXES), figsize=(12, 3.6 * len(splits)), sharey=True, squeeze=False, constrained_layout=True
    )
    for row, split in zip(panels, splits, strict=True):
        for panel, (axis, name) in zip(row, AXES.items(), strict=True):
            for colour, (arm, seeds) in zip(colours, curves(points, split).items(), strict=False):
                for run in seeds.values():
                    panel.plot([getattr(p, axis) for p in run], [p.mean for p in run], color=colour, alpha=0.25, lw=0.8)
                steps = sorted(set.intersection(*({p.step for p in run} for run in seeds.values())))
                at = {s: [p for run in seeds.values() for p in run if p.step == s] for s in steps}
                xs = [np.mean([getattr(p, axis) for p in at[s]]) for s in steps]
                panel.plot(xs, [np.mean([p.mean for p in at[s]]) for s in steps], color=colour, lw=2, label=arm)
            panel.set_xlabel(name)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"mean score, {split}")
        means = [p.mean for p in points]
        row[0].set_ylim(max(-1.25, min(means) - 0.03), max(means) + 0.03)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path = ROOT / "docs" / "images" / f"learning-{task}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def keep(task: str, home: Path) -> None:
    """Write what the runs of a home measured into the results."""
    points = collect(task, home)
    RESULTS.mkdir(exist_ok=True)
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(p).items()} for p in points]
    seeds = sorted({p.seed for p in points})
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"task": {json.dumps(task)}, "seeds": {seeds}, "points": [\n{lines}\n]}}\n'
    (RESULTS / f"learning-{task}.json").write_text(text)


def report(task: str) -> None:
    """Print the table of each split and draw the curves."""
    data = json.loads((RESULTS / f"learning-{task}.json").read_text())
    points = [Point(**row) for row in data["points"]]
    splits = sorted({p.split for p in points}, key=lambda s: (s != "train", s))
    for split in splits:
        print(f"\n### {task}, {split} items\n\n{table(points, split, THRESHOLDS[task])}\n")
    print(f"drawn: {draw(points, task, splits).relative_to(ROOT)}")


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("task", choices=TASKS)
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--first-seed", type=int, default=5000, help="fresh: no default was chosen on these")
    run.add_argument("--jobs", type=int, default=2)
    run.add_argument("--home", type=Path, default=None)
    again = commands.add_parser("report")
    again.add_argument("task", choices=TASKS)
    again.add_argument("--home", type=Path, default=None, help="read this home's runs anew")
    arguments = parser.parse_args()
    if arguments.command == "run":
        home = (arguments.home or ROOT / ".rlx-learning" / arguments.task).resolve()
        home.mkdir(parents=True, exist_ok=True)
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        submit(arguments.task, seeds, home, arguments.jobs)
        keep(arguments.task, home)
    elif arguments.home is not None:
        keep(arguments.task, arguments.home)
    report(arguments.task)


if __name__ == "__main__":
    main()
