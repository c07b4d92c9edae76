"""Asking MLflow, which may live in an environment of its own: its ranges and ours do not always meet."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

PEER = Path(__file__).parent / "mlflow_peer.py"


def ask(interpreter: str, *arguments: str | int) -> Any:
    """What the peer answers. Raises SystemExit where it fails."""
    command = [interpreter, str(PEER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def version(interpreter: str) -> str | None:
    """MLflow's version, None where this interpreter has none; says so."""
    done = subprocess.run([interpreter, str(PEER), "version"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return str(json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"MLflow is absent from {interpreter}: its rows are left out (--mlflow-python names another interpreter)\n")
    return None
