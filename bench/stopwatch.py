"""What accounting for a stage's time costs: nanoseconds a spell and a sign of life.

    python bench/stopwatch.py [--calls 200000] [--repeats 7]

The peer in the same run is an empty `with`. CPU time of the one thread, the fastest of the repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from engine.runtime import stopwatch
from engine.runtime.stopwatch import Stopwatch, spent


def per_call_ns(work: Callable[[], object], calls: int, repeats: int) -> float:
    """The fastest repeat's nanoseconds a call, the loop included."""
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        for _ in range(calls):
            work()
        best = min(best, time.thread_time() - start)
    return best / calls * 1e9


def empty_spell() -> None:
    with nullcontext():
        pass


def spell() -> None:
    with spent("functions"):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page")
        page.write_bytes(stopwatch.blank())
        watch = Stopwatch(page)
        rows = [("an empty `with`", per_call_ns(empty_spell, arguments.calls, arguments.repeats))]
        rows.append(("a spell, no stage running", per_call_ns(spell, arguments.calls, arguments.repeats)))
        watch.start()
        rows.append(("a spell of a running stage", per_call_ns(spell, arguments.calls, arguments.repeats)))
        rows.append(("a sign of life", per_call_ns(watch.beat, arguments.calls, arguments.repeats)))
        looks = per_call_ns(lambda: stopwatch.look(page), arguments.calls // 20, arguments.repeats)
        rows.append(("a supervisor's look, four a second", looks))
        watch.stop()
    print("| what | ns |\n| --- | --- |")
    for name, cost in rows:
        print(f"| {name} | {cost:,.0f} |")


if __name__ == "__main__":
    main()
