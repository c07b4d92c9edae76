"""What is done to a module once it is imported: once, after it, and not before somebody imports it."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from engine.runtime.late import once_imported


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "arrives_late.py").write_text("there = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "arrives_late", raising=False)
    return "arrives_late"


def test_it_is_done_when_the_module_is_there(module: str) -> None:
    seen: list[bool] = []
    finders = list(sys.meta_path)
    once_imported(module, lambda: seen.append(importlib.import_module(module).there))
    assert importlib.util.find_spec(module) is not None  # whether it could be imported is no import
    assert seen == []
    importlib.import_module(module)
    importlib.reload(sys.modules[module])
    assert seen == [True]
    assert sys.meta_path == finders


def test_it_is_done_at_once_where_the_module_is_there_already(module: str) -> None:
    importlib.import_module(module)
    seen: list[str] = []
    once_imported(module, lambda: seen.append("done"))
    assert seen == ["done"]


def test_a_module_that_is_not_there_is_not_there(module: str) -> None:
    once_imported("never_arrives", lambda: pytest.fail("it has not been imported"))
    with pytest.raises(ImportError):
        importlib.import_module("never_arrives")


def test_a_module_that_fails_may_be_imported_again(module: str, tmp_path: Path) -> None:
    file = tmp_path / "arrives_late.py"
    file.write_text("1 / 0\n")
    seen: list[str] = []
    once_imported(module, lambda: seen.append("done"))
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(module)
    file.write_text("there = True  # now\n")
    importlib.import_module(module)
    assert seen == ["done"]
