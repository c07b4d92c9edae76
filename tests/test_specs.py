"""Every shipped spec is accepted, fits the schema that editors use, and compiles."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from engine.cli.models import with_models
from engine.methods import registry
from engine.methods.tiny import twin
from engine.spec.load import load
from engine.spec.schema import json_schema

SPECS = sorted((Path(__file__).resolve().parent.parent / "specs").glob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_it_loads_and_compiles_and_so_does_its_twin(path: Path) -> None:
    loaded = load(path, [], methods=registry.configs())

    plan = registry.plan(loaded.experiment, frozenset(loaded.set_paths))
    small = registry.plan(twin(loaded).experiment)

    assert loaded.experiment.name == path.stem
    assert [stage.name for stage in small.stages] == [stage.name for stage in plan.stages]
    assert all(stage.resources.gpus == 0 for stage in small.stages)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_it_fits_the_schema_that_editors_complete_from(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())

    if "extends" in raw:  # a layer alone is not a whole spec
        raw = load(path, [], methods=registry.configs()).resolved
    found = jsonschema.Draft7Validator(json_schema(registry.configs())).iter_errors(raw)
    assert [error.message for error in found] == []


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_where_its_model_leads_counts_in_its_plan(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plan = registry.plan(load(path, [], methods=registry.configs()).experiment)

    told = with_models(plan, str(tmp_path))

    assert [stage.name for stage in told.stages if "model_content" in stage.extra] == ["model"]


def test_every_method_has_a_shipped_spec() -> None:
    used = {load(path, [], methods=registry.configs()).resolved["algorithm"]["name"] for path in SPECS}

    assert used == set(registry.METHODS)
