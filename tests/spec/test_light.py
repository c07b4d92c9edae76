"""What feels instant imports nothing heavy, and stays in step with the heavy modules it does not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from engine.spec.model import PRESETS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "numpy", "sqlalchemy", "celery", "streamlit", "jsonschema", "pandas", "requests")
MODULES = sorted(path.stem for path in (ROOT / "engine" / "spec").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in MODULES)])
def test_the_spec_layer_imports_nothing_heavy(module: str) -> None:
    code = f"import engine.spec{module}, sys; print(*sys.modules)"

    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not set(HEAVY) & set(run.stdout.split())


def test_the_package_alone_imports_no_validator() -> None:
    code = "import engine.spec, sys; print(*sys.modules)"

    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not {"pydantic", "yaml"} & set(run.stdout.split())


def test_the_presets_that_a_spec_may_name_are_those_that_can_be_built() -> None:
    source = (ROOT / "engine" / "lm" / "scratch.py").read_text(encoding="utf-8")
    (table,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "PRESETS"
    )

    assert isinstance(table, ast.Dict)
    assert tuple(ast.literal_eval(key) for key in table.keys if key is not None) == PRESETS
