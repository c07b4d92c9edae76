"""Items come out of every format alike, and an error names the file and the row."""

from __future__ import annotations

import csv
import datetime
import gzip
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data.items import read_items
from engine.data.splits import split_items
from engine.errors import DataError, ExitCode
from engine.spec.dataset import Dataset, Item

ROWS: list[dict[str, Any]] = [
    {"prompt": "Sum of 1 and 2?", "answer": "3", "level": "easy"},
    {"prompt": 'line one\nline two, with a comma and "quotes"', "answer": "né\u2028", "level": ""},
]
EXPECTED = [{"prompt": row["prompt"], "answer": row["answer"], "columns": {"level": row["level"]}} for row in ROWS]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=1)
    return out.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


FILES = {
    "items.csv": as_csv(ROWS),
    "items.parquet": as_parquet(ROWS),
    "items.jsonl": as_jsonl(ROWS),
    "items.ndjson": b"\n" + as_jsonl(ROWS),
    "items.json": json.dumps(ROWS).encode(),
    "wrapped.json": json.dumps({"items": ROWS}).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "items.yaml": json.dumps(ROWS).encode(),
    "items.yml": json.dumps({"items": ROWS}).encode(),
    "items.jsonl.gz": gzip.compress(as_jsonl(ROWS)),
}


def write(folder: Path, name: str, content: bytes | str) -> dict[str, Any]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return {"file": name}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_items(name: str, tmp_path: Path) -> None:
    assert read_items(write(tmp_path, name, FILES[name]), tmp_path) == EXPECTED


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"prompt": st.text(), "answer": JSON}), min_size=1, max_size=5))
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_data_survives_unchanged(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = json.dumps(rows) if name == "a.json" else "\n".join(json.dumps(row) for row in rows)

    assert read_items(write(tmp_path, name, text), tmp_path) == rows


def test_columns_are_renamed_and_the_rest_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path, "q.jsonl", '{"question": "2+2", "gold": [4], "id": 7, "ctx": "c"}\n')
    source["columns"] = {"prompt": "question", "answer": "gold", "context": "ctx"}

    assert read_items(source, tmp_path) == [
        {"prompt": "2+2", "answer": [4], "columns": {"id": 7, "context": "c"}},
    ]


def test_format_and_limit_can_be_said(tmp_path: Path) -> None:
    source = {**write(tmp_path, "data.txt", as_jsonl(ROWS)), "format": "jsonl", "limit": 1}

    assert read_items(source, tmp_path) == EXPECTED[:1]


def test_yaml_reads_words_as_words(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        "a.yaml",
        "- {prompt: no, answer: on}\n- {prompt: yes, answer: 2024-01-31}\n- {prompt: x, answer: true}\n",
    )

    assert read_items(source, tmp_path) == [
        {"prompt": "no", "answer": "on"},
        {"prompt": "yes", "answer": "2024-01-31"},
        {"prompt": "x", "answer": True},
    ]


BOMB = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nitems: [*b, *b]\n"

BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "bad json": ("a.json", '[{"prompt": "x",\n "answer": }]', r"a\.json:2:12: not JSON"),
    "not a list": ("a.json", '{"prompt": "x"}', r"a\.json: expected a list of items"),
    "a row that is no mapping": ("a.json", '[{"prompt": "x", "answer": 1}, 3]', r"a\.json:2: expected a mapping"),
    "NaN": ("a.json", '[{"prompt": "x", "answer": NaN}]', "NaN is not JSON"),
    "a key twice": ("a.json", '[{"prompt": "x", "prompt": "y", "answer": 1}]', "'prompt' stands twice"),
    "too deep": ("a.json", "[" * 100_000, "not JSON that we read"),
    "deeper than we follow": ("a.jsonl", '{"prompt": "", "answer": ' + "[" * 70 + "]" * 70 + "}", "more than 64 deep"),
    "bad line": ("a.jsonl", '{"prompt": "x", "answer": 1}\n{"prompt"\n', r"a\.jsonl:2:10: not JSON"),
    "a missing column": ("a.jsonl", '{"promt": "x", "answer": 1}', r"a\.jsonl:1: .*'prompt'.*did you mean 'promt'"),
    "no such column at all": ("a.jsonl", '{"q": 1, "a": 2}', r"no column 'prompt' for `prompt`; it has 'q', 'a'"),
    "a prompt that is no text": ("a.jsonl", '{"prompt": 3, "answer": 1}', r"a\.jsonl:1: the prompt is 3, not text"),
    "a huge number": ("a.jsonl", '{"prompt": "", "answer": ' + "9" * 30 + "}", "does not fit into 64 bits"),
    "not UTF-8": ("a.csv", b"prompt,answer\na,b\nc,\xff\n", r"a\.csv:3: not UTF-8 text \(byte 0xff\)"),
    "a short row": ("a.csv", "prompt,answer\na,b\nc\n", r"a\.csv:3: 1 values for 2 columns"),
    "an open quote": ("a.csv", 'prompt,answer\n"a,b\n', r"a\.csv:2: not CSV"),
    "a column twice": ("a.csv", "prompt,prompt\n", r"a\.csv:1: the column 'prompt' stands twice"),
    "an empty csv": ("a.csv", "", r"a\.csv:1: empty"),
    "bad yaml": ("a.yaml", "- prompt: [x\n- y\n", r"a\.yaml:3:1: not YAML"),
    "a yaml bomb": ("a.yaml", BOMB, r"a\.yaml:2:8: .*aliases are not read"),
    "a python tag": ("a.yaml", "- !!python/object/apply:os.system [x]\n", r"a\.yaml:1:3: not YAML that we read"),
    "a yaml key twice": ("a.yaml", "- {prompt: a, prompt: b, answer: c}\n", r"a\.yaml:1:15: .*stands twice"),
    "a yaml key that is a list": ("a.yaml", "- {[a]: b}\n", r"a\.yaml:1:4: .*unhashable key"),
    "yaml infinity": ("a.yaml", "- {prompt: a, answer: .inf}\n", "not a finite number"),
    "a yaml column that is no text": ("a.yaml", "- {1: a}\n", "the column name 1 is not text"),
    "binary yaml": ("a.yaml", "- {prompt: a, answer: !!binary aGk=}\n", "a bytes is not JSON data"),
    "not parquet": ("a.parquet", b"PAR1 no", r"a\.parquet: not a Parquet file"),
    "not gzip": ("a.json.gz", b"[]", "not a whole gzip file"),
    "half a gzip": ("a.json.gz", gzip.compress(b"[]" * 99)[:-5], "not a whole gzip file"),
    "no known suffix": ("a.xlsx", b"", r"say `format:`, one of yaml, json, jsonl, csv, parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_error_names_the_file_and_the_row(case: str, tmp_path: Path) -> None:
    name, content, message = BROKEN[case]
    with pytest.raises(DataError, match=message) as caught:
        read_items(write(tmp_path, name, content), tmp_path)

    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_a_date_in_parquet_is_refused_by_name(tmp_path: Path) -> None:
    content = as_parquet([{"prompt": "x", "answer": datetime.date(2024, 1, 31)}])
    with pytest.raises(DataError, match=r"a\.parquet:1: column 'answer': a date is not JSON data"):
        read_items(write(tmp_path, "a.parquet", content), tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: cannot be read: No such file"):
        read_items({"file": "gone.json"}, tmp_path)
    with pytest.raises(DataError, match="either a `file` or a `hub`"):
        read_items({})


def test_a_file_must_be_the_one_that_was_meant(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", as_jsonl(ROWS))
    right = hashlib.sha256(as_jsonl(ROWS)).hexdigest()

    assert read_items({**source, "sha256": right.upper()}, tmp_path) == EXPECTED
    with pytest.raises(DataError, match=f"its SHA-256 is {right}"):
        read_items({**source, "sha256": "0" * 64}, tmp_path)


def test_a_hub_dataset_that_cannot_be_had_is_a_data_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    with pytest.raises(DataError, match=r"nobody/nothing \(split 'dev'\) cannot be loaded"):
        read_items({"hub": str(tmp_path / "nobody/nothing"), "split": "dev"})


def test_a_dataset_directory_reads_through_the_hub_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    write(tmp_path, "train.jsonl", as_jsonl(ROWS))

    assert read_items({"hub": str(tmp_path), "split": "train"}) == EXPECTED


def test_without_the_library_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'rlx\[hub\]'"):
        read_items({"hub": "openai/gsm8k"})


def test_splits_have_items_inline_or_behind_a_file(tmp_path: Path) -> None:
    dataset = {
        "items": [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": None, "columns": {"x": 1}}],
        "splits": {"heldout": write(tmp_path, "h.jsonl", as_jsonl(ROWS))},
    }

    expected = {
        "train": [Item(prompt="a", answer=1), Item(prompt="b", columns={"x": 1})],
        "heldout": [Item(**row) for row in EXPECTED],
    }
    assert split_items(dataset, tmp_path) == expected
    assert split_items(Dataset.model_validate_json(json.dumps(dataset)), tmp_path) == expected


@pytest.mark.parametrize(
    "dataset, message",
    [
        ({"items": []}, "the split 'train' has no items"),
        ({}, "the split 'train' has no items"),
        ({"items": [{"prompt": "a", "answer": 1}], "splits": {"dev": []}}, "the split 'dev' has no items"),
        ({"items": [{"answer": "a"}]}, "train:1: an item needs a `prompt`"),
        ({"items": [{"prompt": "a", "answer": 1}, "b"]}, "train:2: expected a mapping"),
    ],
)
def test_a_split_without_items_is_refused(dataset: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_items(dataset)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name, columns, count",
    [
        ("gsm8k/test.jsonl.gz", {"prompt": "question", "answer": "answer"}, 991),
        ("svamp/SVAMP.json.gz", {"prompt": "Body", "answer": "Answer"}, 745),
    ],
)
def test_published_files_read_whole(name: str, columns: dict[str, str], count: int) -> None:
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (shared / name).exists():
        pytest.skip(f"{name} is absent")

    assert len(read_items({"file": name, "columns": columns}, shared)) == count
