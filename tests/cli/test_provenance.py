"""What is recorded of code, packages and hardware: against git, importlib.metadata and the kernel."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

from engine.cli import provenance


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True, text=True).stdout


def checkout(root: Path) -> Path:
    git(root, "init", "-q")
    (root / "engine").mkdir()
    (root / "engine" / "a.py").write_text("a = 1\n")
    (root / "specs").mkdir()
    (root / "specs" / "s.yaml").write_text("version: 1\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_a_clean_checkout_is_its_commit(tmp_path):
    root = checkout(tmp_path)
    code = provenance.code(root)
    assert code["commit"] == git(root, "rev-parse", "HEAD").strip()
    assert (code["dirty"], code["diff_sha256"]) == (False, None)


def test_every_change_of_code_changes_the_hash_and_a_spec_does_not(tmp_path):
    root = checkout(tmp_path)
    (root / "specs" / "s.yaml").write_text("version: 1\nseed: 3\n")
    assert provenance.code(root)["dirty"] is False

    (root / "engine" / "a.py").write_text("a = 2\n")
    edited = provenance.code(root)
    (root / "engine" / "new.py").write_text("b = 1\n")
    untracked = provenance.code(root)
    (root / "engine" / "new.py").write_text("b = 2\n")
    again = provenance.code(root)

    assert edited["dirty"] is True
    assert len({edited["diff_sha256"], untracked["diff_sha256"], again["diff_sha256"]}) == 3
    assert again == provenance.code(root)


def test_outside_of_a_checkout_only_the_version_is_known(tmp_path):
    assert provenance.code(tmp_path) == {
        "version": "0.1.0",
        "commit": None,
        "dirty": None,
        "diff_sha256": None,
    }


def test_packages_are_those_that_importlib_finds():
    found = provenance.packages()
    for name in ("numpy", "sqlalchemy", "typer", "torch", "typing-extensions"):
        assert found[name] == metadata.version(name)
    assert found["python"].startswith("3.")


def test_hardware_is_what_the_kernel_says():
    found = provenance.hardware()
    assert found["cpus"] == os.cpu_count()
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["host"] == os.uname().nodename


def test_two_captures_on_one_machine_are_equal():
    assert provenance.capture() == provenance.capture() == provenance.capturing()()


def test_gpus_are_read_off_the_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA H200, GPU-1f, 143771 MiB, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert provenance.gpus() == [
        {"index": "0", "name": "NVIDIA H200", "uuid": "GPU-1f", "memory": "143771 MiB", "driver": "570.1"}
    ]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert provenance.gpus() == []
