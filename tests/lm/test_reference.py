"""Names of models, taken apart."""

from __future__ import annotations

import pytest

from engine.errors import ModelError
from engine.lm.reference import Reference, parse


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scratch:llama-nano", Reference("scratch", "llama-nano")),
        ("tiny:meta-llama/Llama-3.2-1B-Instruct", Reference("tiny", "meta-llama/Llama-3.2-1B-Instruct")),
        ("run:best-lang-1@step-40", Reference("run", "best-lang-1", "step-40")),
        ("run:best-lang-1", Reference("run", "best-lang-1", "best")),
        ("run:@last@latest", Reference("run", "@last", "latest")),
        ("run:@last", Reference("run", "@last", "best")),
        ("Qwen/Qwen2.5-0.5B", Reference("hub", "Qwen/Qwen2.5-0.5B")),
        ("org/name@v1.2", Reference("hub", "org/name", "v1.2")),
        ("gpt2", Reference("hub", "gpt2")),
    ],
)
def test_names_are_taken_apart(name, expected):
    assert parse(name) == expected


def test_a_directory_is_a_path_before_it_is_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert parse("org/name") == Reference("path", "org/name")
    assert parse("name", base=tmp_path / "org") == Reference("path", str(tmp_path / "org" / "name"))


@pytest.mark.parametrize("name", ["./absent", "/absent/too", "three/part/name", "with space/x", "run:", "run:@", ""])
def test_what_leads_nowhere_is_refused(name):
    with pytest.raises(ModelError, match=r"run:<handle>@<label>"):
        parse(name)
