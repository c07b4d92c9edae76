"""`rlx export`: the same rows in every format, a model with its card, and nothing half-written or overwritten."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from engine.cli import exporting
from engine.cli.model_card import model_card
from engine.runtime.context import Sample
from engine.store.metrics import MetricWriter
from engine.store.tables import Run
from tests.cli.conftest import SPEC, Lab, scores

Rlx = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(lab: Lab, tmp_path: Path) -> Run:
    """A run with points, one of which is not finite, evaluations, samples and a best checkpoint."""
    made = lab.submit()
    claimed = lab.training(made)
    writer = MetricWriter(lab.db, claimed.run_id, claimed.stage_id, claimed.number, tmp_path / "spool")
    writer.log(1, {"loss": 0.5, "kl": math.nan}, time=1_000.0)
    writer.log(2, {"loss": 0.25}, time=1_001.0)
    writer.close(patience_s=30)
    lab.evaluate(claimed, 0, scores(1))
    lab.evaluate(claimed, 10, scores(9))
    lab.sample(claimed, Sample(10, 'said "so",\nünï', score=1.0, item=3, data={"steps": [[1, "a"]]}))
    lab.checkpoint(claimed, 10, "best", "latest")
    lab.finish(claimed)
    return made


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one file, whatever its format."""
    (file,) = folder.glob(f"{name}.*")
    match file.suffix:
        case ".csv":
            with file.open(newline="", encoding="utf-8") as lines:
                return list(csv.DictReader(lines))
        case ".jsonl":
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        case _:
            return list(pq.read_table(file).to_pylist())


@pytest.mark.parametrize("to", ["csv", "json", "parquet"])
def test_every_format_holds_every_row(rlx: Rlx, run: Run, tmp_path: Path, to: str) -> None:
    answer = rlx("export", run.handle, "--to", to)

    assert (answer.code, answer.out) == (0, f"best-lang-1-{to}\n")
    folder = tmp_path / f"best-lang-1-{to}"
    points = [(row["stage"], row["key"], int(row["step"]), row["value"]) for row in read(folder, "metrics")]
    nothing = "" if to == "csv" else None
    assert [(stage, key, step) for stage, key, step, _ in points] == [
        ("train", "kl", 1),
        ("train", "loss", 1),
        ("train", "loss", 2),
    ]
    assert points[0][3] == nothing
    assert [float(value) for *_, value in points[1:]] == [0.5, 0.25]
    evaluated = read(folder, "evaluations")
    assert [(int(row["step"]), int(row["run"]), float(row["score"])) for row in evaluated] == [
        (step, n, score) for step, ones in ((0, 1), (10, 9)) for n, score in enumerate(scores(ones))
    ]
    (sample,) = read(folder, "samples")
    assert (sample["text"], float(sample["score"]), int(sample["item"])) == ('said "so",\nünï', 1.0, 3)
    data = sample["data"] if to == "json" else json.loads(sample["data"])
    assert data == {"steps": [[1, "a"]]}


def test_many_rows_are_written_a_part_at_a_time(
    rlx: Rlx, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_ROWS", 2)
    rlx("export", run.handle, "--to", "parquet")
    assert pq.ParquetFile(tmp_path / "best-lang-1-parquet" / "metrics.parquet").num_row_groups == 2
    assert len(read(tmp_path / "best-lang-1-parquet", "metrics")) == 3


def test_a_model_comes_with_its_card(rlx: Rlx, run: Run, tmp_path: Path) -> None:
    assert rlx("export", run.handle, "--to", "hf", "--output", "out").code == 0
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["rlx", "archer"]}
    assert "The checkpoint `step-10` of the run `best-lang-1`" in body
    assert "| score | train | 10 | 0.900 |" in body
    assert "```yaml\nversion: 1\nname: best_lang\n```" in body
    assert "rlx submit spec.yaml" in body


def test_what_is_there_is_not_overwritten(rlx: Rlx, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert rlx("export", run.handle, "--to", "csv", "-o", "out").code == 0  # it was empty
    (tmp_path / "out" / "mine.txt").touch()
    answer = rlx("export", run.handle, "--to", "csv", "-o", "out")
    assert answer.code == 5
    assert "out is there already" in answer.err
    assert (tmp_path / "out" / "mine.txt").exists()


def test_what_fails_leaves_nothing(rlx: Rlx, run: Run, tmp_path: Path) -> None:
    assert rlx("export", run.handle, "--to", "hf", "--checkpoint", "step-7").code == 3
    assert rlx("export", "nobody-1", "--to", "csv").code == 3
    assert rlx("export", run.handle, "--to", "xml").code == 2
    assert [path.name for path in tmp_path.iterdir() if "best-lang" in path.name] == []


def test_a_card_names_the_data_and_the_model_that_was_adapted() -> None:
    resolved = {
        **SPEC,
        "model": {"name": "org/name@main"},
        "dataset": {
            "items": {"file": "/far/away/rows.jsonl", "sha256": "ab" * 32},
            "splits": {"dev": {"hub": "org/data", "split": "validation", "revision": None}},
        },
    }
    card = model_card(
        handle="a-1",
        checkpoint="step-1",
        resolved=resolved,
        source="notes: |\n  ```\n",
        evaluations=[],
        code={"version": "0.1.0", "commit": "abc"},
        packages={"torch": "2.13.0"},
        overrides=["seed=1"],
    )
    assert "base_model: org/name" in card
    assert "/far/away" not in card
    assert f"- `train`: `rows.jsonl`, SHA-256 `{'ab' * 32}`" in card
    assert "- `dev`: `org/data`, split `validation`, revision `latest`" in card
    assert "None was recorded." in card
    assert "    rlx submit spec.yaml seed=1" in card
    assert "````yaml\nnotes: |\n  ```\n````" in card  # a fence longer than any in the spec
