"""Preloaded by a test's nursery: stages that wait until their task's file is there, and leave with status 7."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from workers import stage_process


def main(path: Path) -> int:
    """Deaf to SIGTERM where the environment has DEAF."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("DEAF") else signal.SIG_DFL)
    while not path.exists():
        time.sleep(0.01)
    return 7


stage_process.main = main
