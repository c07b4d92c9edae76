"""A real worker with shorter times, so that leases run out and retries come within a test's patience.

Run as `python -m tests.faults.worker`; the settings come from the environment, as they do for `rlx worker`.
"""

from __future__ import annotations

import argparse
import sys

from engine import log
from engine.errors import ExitCode, Unreachable
from engine.settings import read_settings
from workers import housekeeping
from workers.main import run_worker
from workers.supervisor import Times

housekeeping.SWEEP_EVERY_S = 1.0


def main() -> int:
    """Work until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--lease-s", type=float, default=5.0)
    given = parser.parse_args()
    log.configure()
    times = Times(lease_s=given.lease_s, heartbeat_s=given.lease_s / 8, grace_s=10.0, retry_s=0.3)
    try:
        return run_worker(read_settings(), slots=given.slots, gpus=[], name=given.name, times=times)
    except Unreachable as error:  # at the very start: whoever keeps workers running starts another
        print(error, file=sys.stderr)
        return ExitCode.UNREACHABLE


if __name__ == "__main__":
    sys.exit(main())
