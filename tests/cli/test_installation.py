"""`doctor` and `db`: what is wrong with an installation, and what cures it."""

from __future__ import annotations

import socket

import pytest

from engine.cli import checks, places
from engine.store import schema


def found(answer, name):
    return next(check for check in answer.data if check["name"] == name)


def test_a_fresh_installation_is_fit(rlx, home):
    answer = rlx("doctor", "--json")
    assert answer.code == 0
    assert {check["name"] for check in answer.data} >= {
        *("python", "packages", "home", "database", "broker", "cpu", "gpus", "sandbox", "workers")
    }
    assert found(answer, "database")["status"] == "ok"
    assert list(home.home.iterdir()) == []

    table = rlx("doctor").out
    assert table.startswith("ok   python")


def test_a_store_of_another_revision_fails_with_its_cure(rlx, lab, home):
    schema.downgrade(home.database_url, "base")
    answer = rlx("doctor", "--json")
    assert answer.code == 4
    assert found(answer, "database") == {
        "name": "database",
        "status": "fail",
        "detail": f"{home.database_url} is at revision base, not {schema.HEAD}",
        "fix": "rlx db upgrade",
    }
    assert rlx("db", "check").code == 5
    assert rlx("db", "current", "--json").data["revision"] is None
    assert rlx("db", "upgrade").code == 0
    assert rlx("db", "current").out == f"{schema.HEAD}\n"
    assert rlx("db", "check").code == 0


def test_going_down_is_asked_for_first(rlx, lab):
    lab.submit()
    assert rlx("db", "downgrade", "base", "--yes").code == 0
    assert rlx("db", "current").out == "base\n"


def test_a_server_that_does_not_answer_fails_and_hides_the_password(rlx, home, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("RLX_BROKER_URL", f"redis://user:hunter2@127.0.0.1:{port}/0")
    places.the_settings.cache_clear()
    answer = rlx("doctor", "--json")
    assert answer.code == 4
    assert "RLX_BROKER_URL" in found(answer, "broker")["fix"]
    assert "hunter2" not in answer.out


def test_a_database_that_does_not_answer_is_unreachable(rlx, home, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("RLX_DATABASE_URL", f"postgresql://user:hunter2@127.0.0.1:{port}/rlx")
    places.the_settings.cache_clear()
    answer = rlx("ls")
    assert answer.code == 4
    assert "error:" in answer.err
    assert "hunter2" not in answer.err
    assert answer.out == ""


def test_one_broken_check_does_not_hide_the_others(rlx, home, monkeypatch):
    monkeypatch.setattr(checks, "_sandbox", lambda: (_ for _ in ()).throw(OSError("boom")))
    answer = rlx("doctor", "--json")
    assert found(answer, "sandbox")["status"] == "fail"
    assert found(answer, "workers")["status"] == "ok"
    assert answer.code == 1


def test_a_cpu_build_beside_gpus_is_a_warning(monkeypatch):
    gpu = {"index": "0", "name": "NVIDIA H200", "uuid": "x", "memory": "143771 MiB", "driver": "570.1"}
    monkeypatch.setattr(checks.provenance, "gpus", lambda: [gpu])
    monkeypatch.setattr(checks, "_torch_cuda", lambda: None)
    assert [check.status for check in checks._devices()] == ["ok", "warn"]
    monkeypatch.setattr(checks, "_torch_cuda", lambda: "12.8")
    (_, gpus) = checks._devices()
    assert (gpus.status, "H200" in gpus.detail, "12.8" in gpus.detail) == ("ok", True, True)


def test_the_build_of_torch_is_read_without_importing_it():
    torch = pytest.importorskip("torch")
    assert checks._torch_cuda() == torch.version.cuda


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("sqlite:////home/me/rlx.db", "sqlite:////home/me/rlx.db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)
def test_urls_are_shown_without_passwords(url, shown):
    assert places.shown_url(url) == shown
