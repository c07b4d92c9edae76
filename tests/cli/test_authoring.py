"""`init`, `validate`, `schema`, `plan`: from a file to a plan, with every mistake said at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted(path.relative_to(ROOT) for path in (ROOT / "specs").glob("*.yaml"))


@pytest.fixture
def spec(rlx, tmp_path, monkeypatch) -> Path:
    """The spec that `rlx init` writes."""
    monkeypatch.chdir(tmp_path)
    assert rlx("init", "green.yaml").out == "green.yaml\n"
    return tmp_path / "green.yaml"


def test_init_writes_a_spec_that_is_valid_and_that_editors_understand(rlx, spec):
    assert rlx("validate", str(spec)).code == 0
    first, document = spec.read_text().splitlines()[0], yaml.safe_load(spec.read_text())
    assert first == "# yaml-language-server: $schema=.rlx/schema.json"
    assert document["name"] == "green"
    schema = json.loads((spec.parent / ".rlx" / "schema.json").read_text())
    assert list(Draft7Validator(schema).iter_errors(document)) == []


def test_init_replaces_nothing_unasked(rlx, spec):
    spec.write_text("precious")
    refused = rlx("init", "green.yaml")
    assert refused.code == 5
    assert spec.read_text() == "precious"
    assert rlx("init", "green.yaml", "--force", "--name", "other").code == 0
    assert "name: other" in spec.read_text()


@pytest.mark.parametrize("path", SPECS, ids=str)
def test_every_shipped_spec_is_valid(rlx, path):
    answer = rlx("validate", str(ROOT / path), "--json")
    assert answer.code == 0
    assert answer.data["problems"] == []
    assert "train" in answer.data["stages"]


def test_all_problems_are_told_at_once_with_their_places(rlx, spec):
    text = spec.read_text().replace("iterations: 30", "iteration: 30").replace("seed: 0", "seed: zero")
    spec.write_text(text.replace("def done_fn(text: str)", "def done_fn(text, more)"))
    lines = spec.read_text().splitlines()

    answer = rlx("validate", str(spec))
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("error:") == 3
    assert "Did you mean 'iterations'?" in answer.err
    assert "3 problems" in answer.err

    data = rlx("validate", str(spec), "--json").data
    assert data["valid"] is False
    places = {problem["path"]: lines[problem["line"] - 1] for problem in data["problems"]}
    assert "seed: zero" in places["seed"]
    assert "iteration: 30" in next(line for path, line in places.items() if path.startswith("algorithm"))
    assert "def done_fn" in places["dataset.done_fn"]


def test_validate_runs_nothing_of_the_spec(rlx, spec, tmp_path):
    witness = tmp_path / "witness"
    bomb = f"open({str(witness)!r}, 'w').close()"
    spec.write_text(spec.read_text().replace("    def score_fn", f"    {bomb}\n    def score_fn"))
    assert rlx("validate", str(spec)).code == 0
    assert not witness.exists()


def test_hardware_for_a_stage_that_is_not_there_is_an_error_with_its_place(rlx, spec):
    spec.write_text(spec.read_text() + "hardware:\n  stages:\n    trian: {gpus: 1}\n")
    answer = rlx("validate", str(spec), "--json")
    assert answer.code == 2
    (problem,) = answer.data["problems"]
    assert "Did you mean 'train'?" in problem["message"]
    assert problem["line"] == len(spec.read_text().splitlines())


def test_a_file_that_is_not_there_is_bad_input(rlx, tmp_path):
    answer = rlx("validate", str(tmp_path / "gone.yaml"))
    assert answer.code == 2
    assert "gone.yaml" in answer.err


def test_plan_shows_stages_needs_and_cache_and_leaves_no_trace(rlx, spec, home):
    answer = rlx("plan", str(spec), "hardware.gpus=2", "hardware.timeout=2h", "seed=7")
    assert answer.code == 0
    head, model, train, evaluate = answer.out.splitlines()
    assert head == "green  archer on scratch:llama-nano, seed 7  hardware.gpus=2 hardware.timeout=2h seed=7"
    assert model.split()[1:3] == ["model", "lm.prepare"]
    assert "2 GPUs, at most 2h 00m  miss" in train
    assert train.endswith("← model")
    assert evaluate.startswith("└─ evaluate")
    assert [path.name for path in home.home.iterdir()] == ["schema.json"]  # of `rlx init`


def test_plan_as_json_names_what_a_stage_reads(rlx, spec):
    data = rlx("plan", str(spec), "--json").data
    assert [stage["name"] for stage in data["stages"]] == ["model", "train", "evaluate"]
    train = data["stages"][1]
    assert train["inputs"] == {"model": "model"}
    assert train["config"]["algorithm"]["iterations"] == 30
    assert train["cache"] == {"key": None, "hit": False, "why": "runs after model"}
    assert len(data["stages"][0]["cache"]["key"]) == 64


def test_a_sweep_has_a_plan_a_variant(rlx, spec):
    plans = rlx("plan", str(spec), "seed=1,2", "algorithm.iterations=5,6", "--json").data
    assert [(plan["seed"], plan["stages"][1]["config"]["algorithm"]["iterations"]) for plan in plans] == [
        (1, 5),
        (1, 6),
        (2, 5),
        (2, 6),
    ]
    assert "4 variants" in rlx("validate", str(spec), "seed=1,2", "algorithm.iterations=5,6").out


def test_the_tiny_twin_has_the_same_stages(rlx, spec):
    tiny, whole = rlx("plan", str(spec), "--tiny", "--json").data, rlx("plan", str(spec), "--json").data
    assert tiny["name"] == "green_tiny"
    assert [stage["name"] for stage in tiny["stages"]] == [stage["name"] for stage in whole["stages"]]
    assert tiny["stages"][1]["config"]["algorithm"]["iterations"] == 2


def test_schema_is_draft_7_and_a_method_lists_its_keys(rlx):
    schema = rlx("schema").data
    Draft7Validator.check_schema(schema)
    assert "draft-07" in schema["$schema"]

    listing = rlx("schema", "archer").out
    assert "ranker.candidates: int = 8" in listing
    assert "Utterances sampled for each decision." in listing
    assert "properties" in rlx("schema", "archer", "--json").data
    unknown = rlx("schema", "arhcer")
    assert (unknown.code, "'archer'" in unknown.err) == (3, True)


def test_validate_and_ls_stay_light(tmp_path):
    """No library of models, pages or queues is imported, and the peak of memory stays under DESIGN's 60 MiB."""
    for line in (["validate", str(ROOT / "specs" / "best_lang.yaml")], ["ls", "--json"], ["show", "x"]):
        script = (
            "import sys; from engine.cli.app import run; run(sys.argv[1:]);"
            "heavy = {'torch', 'transformers', 'streamlit', 'celery', 'rich', 'numpy', 'pyarrow', 'alembic'};"
            "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'));"
            "print(sorted(heavy & set(sys.modules)), peak.split()[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *line],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RLX_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        imported, _, kilobytes = done.stdout.splitlines()[-1].rpartition(" ")
        assert imported == "[]", line
        assert int(kilobytes) < 60 * 1024, line
