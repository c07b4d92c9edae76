"""What a worker's own process loads: never torch, never the prefork pool; and the command line no Celery too early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def loaded_after(code: str, env: dict[str, str]) -> set[str]:
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["workers.main", "workers.listener", "workers.children", "workers.supervisor"])
def test_a_worker_never_imports_torch(module: str) -> None:
    modules = loaded_after(f"import {module}", {})
    assert not modules & {"torch", "transformers", "engine.functions.client"}


def test_the_command_line_imports_no_celery_to_start_or_find_workers() -> None:
    modules = loaded_after("import workers.dispatch", {})
    assert not modules & {"celery", "kombu", "torch"}


def test_a_worker_that_has_listened_loaded_neither_torch_nor_prefork(settings: Any) -> None:
    code = """
import os, signal, sys, threading, time
from engine.settings import read_settings
from workers import main

def leave_once_it_listens():
    while "celery.concurrency.thread" not in sys.modules:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=leave_once_it_listens, daemon=True).start()
assert main.run_worker(read_settings()) == 0
"""
    modules = loaded_after(code, {**settings.environment(), "RLX_PRELOAD": "", "PATH": ""})
    assert "celery.worker" in modules
    assert not modules & {"torch", "celery.concurrency.prefork"}
