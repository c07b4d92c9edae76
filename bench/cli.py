"""How long the commands that should feel instant take, cold: CPU seconds, wall seconds and memory of a new process.

    python bench/cli.py [--runs 1000] [--repeats 15]

The peers in the same run are a bare interpreter and a two-command Typer application: what is left above them is ours.
Every command runs in a process of its own against a store of that many runs; medians are reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TYPER_APP = (
    "import typer; app = typer.Typer(); app.command('a')(lambda: None); app.command('b')(lambda: None); app(['--help'])"
)
COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "a two-command Typer app": ([sys.executable, "-c", TYPER_APP], None),
    "rlx --help": (["rlx", "--help"], 0.25),
    "rlx ls": (["rlx", "ls"], 0.45),
    "rlx validate specs/best_lang.yaml": (["rlx", "validate", "specs/best_lang.yaml"], None),
}


def seed(home: Path, count: int) -> None:
    """A store of `count` runs of the first experiment, none of them carried out."""
    from engine.cli.compiling import compiled
    from engine.store import runs
    from engine.store.session import open_database

    variant = compiled(ROOT / "specs" / "best_lang.yaml", [])[0]
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    submission = runs.Submission(source=variant.loaded.source, resolved=variant.loaded.resolved)
    for start in range(0, count, 100):
        with database.write() as session:
            for _ in range(min(100, count - start)):
                runs.submit(session, variant.plan, submission, now=datetime.now(UTC))
    database.engine.dispose()


def measure(command: list[str], env: dict[str, str]) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, peak memory in MiB) of one process."""
    program = str(Path(sys.executable).parent / "rlx") if command[0] == "rlx" else command[0]
    start = time.perf_counter()
    process = subprocess.Popen(
        [program, *command[1:]], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} left with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed-into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.seed_into is not None:
        seed(arguments.seed_into, arguments.runs)
        return
    with tempfile.TemporaryDirectory() as folder:
        # In another process: the kernel counts the memory of whoever starts a process as its own until it execs.
        seeding = [sys.executable, __file__, "--seed-into", folder, "--runs", str(arguments.runs)]
        subprocess.run(seeding, cwd=ROOT, check=True)
        env = {**os.environ, "RLX_HOME": folder}
        print(f"| command ({arguments.runs:,} runs stored) | CPU s | promised | wall s | MiB | × bare interpreter |")
        print("| --- | --- | --- | --- | --- | --- |")
        bare = None
        for name, (command, promised) in COMMANDS.items():
            rows = [measure(command, env) for _ in range(arguments.repeats)]
            cpu, wall, memory = (statistics.median(column) for column in zip(*rows, strict=True))
            bare = cpu if bare is None else bare
            told = "" if promised is None else f"{promised:.2f}"
            print(f"| `{name}` | {cpu:.2f} | {told} | {wall:.2f} | {memory:.0f} | {cpu / bare:.0f} |")


if __name__ == "__main__":
    main()
