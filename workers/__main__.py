"""`python -m workers`: a worker as a process of its own, as `dispatch.start_worker` starts it."""

from __future__ import annotations

import argparse
import sys
from uuid import UUID

from engine import log
from engine.settings import read_settings
from workers.main import run_worker


def main() -> int:
    """Read the settings from the environment and work."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Run a worker of the queue.")
    parser.add_argument("--run", type=UUID, help="serve this run alone, and leave when it is over")
    parser.add_argument("--slots", type=int, help="stages at once; by default one per GPU, or one")
    parser.add_argument("--queues", default="default", help="queues to serve, separated by commas")
    parser.add_argument("--name", help="by default the host's")
    given = parser.parse_args()
    log.configure()
    return run_worker(
        read_settings(), slots=given.slots, queues=given.queues.split(","), name=given.name, run_id=given.run
    )


if __name__ == "__main__":
    sys.exit(main())
