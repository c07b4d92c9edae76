"""The schema speaks draft-07 and agrees with the loader on what a spec is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from engine.errors import SpecError
from engine.methods import registry
from engine.spec.load import load
from engine.spec.reader import read_yaml
from engine.spec.reference import reference_markdown
from engine.spec.schema import json_schema
from engine.spec.tree import plain

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))
NEWER = {
    "$defs",
    "prefixItems",
    "unevaluatedProperties",
    "dependentRequired",
    "minContains",
    "$anchor",
    "discriminator",
}
Edit = Callable[..., str]


@pytest.fixture
def validator(desk: Any) -> Draft7Validator:
    return Draft7Validator(json_schema(desk.methods))


def errors(validator: Draft7Validator, text: str) -> list[str]:
    tree, _ = read_yaml(text)
    return [error.message for error in validator.iter_errors(plain(tree))]


def schemas(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema inside a schema, names of properties not taken for keywords."""
    if isinstance(node, list):
        for child in node:
            yield from schemas(child)
    elif isinstance(node, dict):
        yield node
        for key, child in node.items():
            if key in ("properties", "definitions", "patternProperties"):
                yield from (found for inner in child.values() for found in schemas(inner))
            elif key not in ("default", "const", "enum", "examples", "required"):
                yield from schemas(child)


def test_it_is_draft_07_and_nothing_newer(desk: Any) -> None:
    schema = json_schema(desk.methods)

    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    for one in schemas(schema):
        assert not NEWER & set(one)
        assert "$ref" not in one or set(one) == {"$ref"}  # draft-07 reads nothing beside it
        assert "$ref" not in one or one["$ref"].removeprefix("#/definitions/") in schema["definitions"]


def test_docstrings_are_the_help(desk: Any) -> None:
    blocks = json_schema(desk.methods)["definitions"]

    assert blocks["Ranker"]["properties"]["candidates"]["description"] == "How many."
    assert blocks["Ranker"]["description"] == "The upper level."
    assert "main_prompt" in blocks["Item"]["properties"]["prompt"]["description"]
    assert "`2h`" in blocks["Hardware"]["properties"]["timeout"]["description"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_spec_is_valid_and_loads(path: Path) -> None:
    methods = registry.configs()

    found = Draft7Validator(json_schema(methods)).iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))

    assert [error.message for error in found] == []
    for variant in load(path, methods=methods).variants():
        assert registry.plan(variant.experiment, variant.set_paths).stages


@pytest.mark.parametrize("name", [name for name, config in registry.configs().items() if hasattr(config, "needs")])
def test_every_method_says_which_functions_it_cannot_do_without(name: str, desk: Any) -> None:
    text = f"version: 1\nname: a\ndataset: {{items: [{{prompt: x}}]}}\nalgorithm: {name}\nmodel: gpt2\n"

    with pytest.raises(SpecError, match=f"spec.yaml:3:1: {name} needs dataset.score_fn: add it"):
        load(desk.write(text), methods=registry.configs())


def test_specs_are_shipped() -> None:
    assert {"best_lang.yaml", "best_lang_llama.yaml", "twenty_questions.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize(
    "change",
    [
        ("seed: 0", "sed: 0"),
        ("seed: 0", "seed: '0'"),
        ("name: best_lang\n", ""),
        ("version: 1\n", ""),
        ("version: 1", "version: 2"),
        ("every: 10", "every: 0"),
        ("name: archer", "name: archr"),
        ("candidates: 8", "candidats: 8"),
        ("timeout: 2h", "timeout: 2 hours"),
        ("launcher: single", "launcher: slurm"),
        ("slots: {lang: {Go: 3, Rust: 1}}", "slots: {lang: Go}"),
        ("  items:\n    - prompt: Name the best language.\n      answer: Rust\n", ""),
        ("    - prompt: Name the best language.\n      answer: Rust\n", "    []\n"),
        ("      answer: Rust", "      anser: Rust"),
        ("  name: archer\n", ""),
        ("name: scratch:llama-nano", "trust_remote_code: true"),
    ],
)
def test_editors_see_the_mistakes_that_have_a_form(
    change: tuple[str, str], desk: Any, validator: Draft7Validator, edited: Edit
) -> None:
    text = edited(change)

    assert errors(validator, text)
    assert desk.problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "extends: base.yaml\n",
        "extends: [a.yaml, b.yaml]\nalgorithm: {iterations: 3}\ndataset: {main_prompt: x}\nmodel: {lora: {r: 2}}\n",
        "version: 1\nname: a\ndataset: x.yaml\nalgorithm: ppo\nmodel: gpt2\n",
        "version: 1\nname: a\ndataset: {file: x.yaml, main_prompt: x}\nalgorithm: {name: ppo}\nmodel: {name: gpt2}\n",
        "version: 1\nname: a\ndataset: {items: {hub: a/b, split: train}}\nalgorithm: ppo\nmodel: gpt2\n"
        "hardware: {timeout: 90}\nsweep: {grid: {seed: [1]}}\n",
    ],
)
def test_what_the_loader_resolves_is_no_error_to_an_editor(text: str, validator: Draft7Validator) -> None:
    assert errors(validator, text) == []


def test_one_method_is_a_choice_too(desk: Any, edited: Edit) -> None:
    validator = Draft7Validator(json_schema({"archer": desk.methods["archer"]}))

    assert errors(validator, desk.spec) == []
    assert errors(validator, edited(("name: archer", "name: ppo")))


class TestReference:
    def test_every_key_of_every_block_has_a_row(self, desk: Any) -> None:
        schema = json_schema(desk.methods)

        rows = [line for line in reference_markdown(schema).splitlines() if line.startswith("| `")]

        blocks = [schema, *(block for block in schema["definitions"].values() if "properties" in block)]
        assert len(rows) == sum(len(block["properties"]) for block in blocks)

    def test_a_row_says_type_default_and_meaning(self, desk: Any) -> None:
        page = reference_markdown(json_schema(desk.methods))

        assert "| `candidates` | whole number ≥ 1 | `8` | How many. |" in page
        assert '| `kind` | `dqn`, `qv` | `"dqn"` |  |' in page
        assert "| `name` | text | required | Lower-case letters" in page
        assert "| `clip` | number > 0 or empty | `1.0` |  |" in page
        assert "| `ranker` | [Ranker](#ranker) | its defaults | The upper level. |" in page
        assert "| `evaluation` | [EvaluationPlan](#evaluationplan) | its defaults | When and how often" in page

    def test_every_table_is_one(self) -> None:
        page = reference_markdown(json_schema(registry.configs()))

        for line in page.splitlines():
            if line.startswith("|"):
                assert line.replace("\\|", "").count("|") == 5
        for link in {part.split(")")[0] for part in page.split("](#")[1:]}:
            assert f"\n## {link}\n" in page.lower()
