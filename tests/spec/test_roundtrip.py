"""Whatever a spec says is what is loaded, in whichever way it is said: as YAML, as JSON, in layers, by overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.spec.load import load, load_resolved
from engine.spec.tree import from_plain, leaves, merge, plain
from tests.strategies import words

TEXT = words(max_size=20).filter(lambda text: "${" not in text)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
ANSWERS = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ITEMS = st.lists(st.fixed_dictionaries({"prompt": TEXT, "answer": ANSWERS}), min_size=1, max_size=3)
SPECS = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "name": st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
        "dataset": st.fixed_dictionaries(
            {"items": ITEMS},
            optional={"main_prompt": TEXT, "splits": st.dictionaries(st.sampled_from(["heldout", "b"]), ITEMS)},
        ),
        "algorithm": st.fixed_dictionaries(
            {"name": st.just("ppo")}, optional={"iterations": st.integers(1, 99), "epochs": st.integers(1, 9)}
        ),
        "model": st.fixed_dictionaries(
            {"name": st.sampled_from(["gpt2", "a/b@main", "run:best-lang-1@best", "tiny:a/b"])},
            optional={
                "lora": st.none() | st.fixed_dictionaries({"r": st.integers(1, 64), "dropout": st.floats(0, 0.9)})
            },
        ),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "description": TEXT,
        "hardware": st.fixed_dictionaries({"gpus": st.integers(0, 8)}, optional={"timeout": st.floats(1, 1e6)}),
        "tags": st.lists(TEXT, max_size=3),
    },
)
JSON = st.recursive(
    st.none() | st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def holds(resolved: Any, said: Any) -> bool:
    """Whether everything that was said stands in what was resolved."""
    if isinstance(said, dict) and isinstance(resolved, dict):
        return all(key in resolved and holds(resolved[key], value) for key, value in said.items())
    if isinstance(said, list) and isinstance(resolved, list):
        return len(said) == len(resolved) and all(map(holds, resolved, said))
    return bool(resolved == said)


@given(SPECS)
@IN_ONE_FOLDER
def test_yaml_json_and_stored_rows_agree(desk: Any, said: dict[str, Any]) -> None:
    as_yaml = desk.load(yaml.safe_dump(said, allow_unicode=True))
    as_json = desk.load(json.dumps(said, ensure_ascii=False))

    assert holds(as_yaml.resolved, said)
    assert as_yaml.resolved == as_json.resolved
    assert load_resolved(json.loads(json.dumps(as_yaml.resolved)), desk.methods) == as_yaml.experiment
    assert as_yaml.set_paths == as_json.set_paths == set(leaves(from_plain(said)))
    assert all(where.line for where in map(as_yaml.origin.__getitem__, as_yaml.set_paths - {"dataset.splits"}))


@given(SPECS, SPECS)
@IN_ONE_FOLDER
def test_a_layer_says_the_same_in_a_file_as_on_the_command_line(
    desk: Any, below: dict[str, Any], above: dict[str, Any]
) -> None:
    desk.write(json.dumps(below, ensure_ascii=False), "below.yaml")
    in_file = desk.load(json.dumps({"extends": "below.yaml", **above}, ensure_ascii=False))

    # A whole block would replace the one below, so blocks are overridden key by key.
    nested = [path for path in leaves(from_plain(above)) if not path.startswith("dataset")]
    flat = {path: from_plain(above).at(*path.split(".")) for path in nested}
    flat |= {f"dataset.{key}": from_plain(value) for key, value in above["dataset"].items() if value != {}}
    flat |= {f"dataset.splits.{key}": from_plain(v) for key, v in above["dataset"].get("splits", {}).items()}
    flat.pop("dataset.splits", None)
    overrides = [f"{path}={json.dumps(plain(node), ensure_ascii=False)}" for path, node in flat.items() if node]
    by_hand = load(desk.folder / "below.yaml", overrides, methods=desk.methods)

    assert in_file.resolved == by_hand.resolved
    assert holds(in_file.resolved, above)


def paths(data: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every path in nested mappings, blocks included."""
    found = {prefix: data} if prefix else {}
    for key, value in data.items() if isinstance(data, dict) else ():
        found |= paths(value, (*prefix, key))
    return found


@given(st.dictionaries(st.sampled_from("abc"), JSON), st.dictionaries(st.sampled_from("abc"), JSON))
def test_the_upper_layer_wins_and_the_lower_shows_where_it_is_silent(below: Any, above: Any) -> None:
    merged = plain(merge(from_plain(below), from_plain(above)))

    assert holds(merged, above)
    upper, lower, both = paths(above), paths(below), paths(merged)
    assert set(upper) <= set(both) <= set(upper) | set(lower)
    for path, value in lower.items():
        # Silent: the upper layer has blocks all the way down, and then not this key.
        around = [upper[path[:length]] for length in range(1, len(path)) if path[:length] in upper]
        if path not in upper and all(isinstance(block, dict) for block in around):
            assert holds(both[path], value)


def test_nothing_is_written(desk: Any) -> None:
    path: Path = desk.write()

    load(path, methods=desk.methods)

    assert [entry.name for entry in desk.folder.iterdir()] == ["spec.yaml"]
