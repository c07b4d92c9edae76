"""Checkpoints: written whole or not at all, equal when read back, refused when damaged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import DiskError, ResumeError
from engine.runtime import checkpoint
from engine.runtime.checkpoint import MANIFEST, STATE, TENSORS

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
arrays = st.sampled_from(
    [np.arange(6, dtype=np.int64).reshape(2, 3), np.array(2.5), np.array([], np.float32), np.array([True, False])]
)
tensors = st.sampled_from([torch.arange(4.0).reshape(2, 2).T, torch.tensor(3, dtype=torch.bfloat16), torch.empty(0, 3)])
trees = st.recursive(
    scalars | arrays | tensors | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.booleans() | st.just("$tensor"), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(left: object, right: object) -> bool:
    """Equal in type, shape and every bit; NaN equals NaN."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and [(type(k), k) for k in left] == [(type(k), k) for k in right]
            and all(same(left[k], right[k]) for k in left)
        )
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return isinstance(right, float) and (
            (left == right and math.copysign(1, left) == math.copysign(1, right)) or (left != left and right != right)
        )
    return type(left) is type(right) and left == right


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(st.text(max_size=4).filter(lambda key: not key.startswith("$")), trees, max_size=3))
def test_any_state_comes_back_as_it_went_in(tmp_path: Path, tree: dict) -> None:
    checkpoint.write(tmp_path / "step-1", 1, tree)

    assert same(dict(checkpoint.read(tmp_path / "step-1").state), tree)


def test_an_optimiser_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = trained()
    step(model, optimizer)
    checkpoint.write(tmp_path / "step-1", 1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    step(model, optimizer)

    resumed, resumed_optimizer = trained()
    state = checkpoint.read(tmp_path / "step-1").state
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    step(resumed, resumed_optimizer)

    assert torch.equal(resumed.weight, model.weight)
    assert torch.equal(resumed.bias, model.bias)


def test_what_is_written_is_the_state_of_that_moment(tmp_path: Path) -> None:
    weight = torch.zeros(2)
    view = weight[1:]
    checkpoint.write(tmp_path / "step-1", 1, {"weight": weight, "tied": weight, "view": view})
    weight += 1

    state = checkpoint.read(tmp_path / "step-1").state
    assert (state["weight"].tolist(), state["tied"].tolist(), state["view"].tolist()) == ([0, 0], [0, 0], [0])


def save_text(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "step-7"
    checkpoint.write(path, 7, {"weights": torch.arange(8.0), "count": 3}, {"policy": save_text}, ["latest"])
    return path


@pytest.mark.parametrize("file", [STATE, TENSORS, "policy/config.json"])
def test_a_flipped_bit_is_noticed(written: Path, file: str) -> None:
    raw = bytearray((written / file).read_bytes())
    raw[-1] ^= 1
    (written / file).write_bytes(raw)

    with pytest.raises(ResumeError, match="damaged"):
        checkpoint.read(written)


@pytest.mark.parametrize("file", [STATE, TENSORS, "policy/config.json", MANIFEST])
def test_a_missing_file_refuses_to_resume(written: Path, file: str) -> None:
    (written / file).unlink()

    with pytest.raises(ResumeError, match=file):
        checkpoint.read(written)


def test_a_component_that_was_dropped_from_the_manifest_too_is_missed(written: Path) -> None:
    manifest = json.loads((written / MANIFEST).read_text())
    del manifest["files"]["policy/config.json"]
    (written / MANIFEST).write_text(json.dumps(manifest))
    (written / "policy/config.json").unlink()
    (written / "policy").rmdir()

    with pytest.raises(ResumeError, match="policy"):
        checkpoint.read(written)


def test_asking_for_a_component_that_was_never_saved_refuses_to_resume(written: Path) -> None:
    with pytest.raises(ResumeError, match="optimizer"):
        checkpoint.read(written).state["optimizer"]


def test_the_manifest_names_everything_with_its_size(written: Path) -> None:
    manifest = checkpoint.read_manifest(written)

    assert (manifest.step, manifest.labels) == (7, ("latest",))
    assert set(manifest.components) == {"weights", "count", "policy"}
    assert set(manifest.files) == {STATE, TENSORS, "policy/config.json"}
    assert manifest.bytes == sum((written / file).stat().st_size for file in manifest.files)


def test_a_model_that_cannot_be_saved_leaves_nothing_and_the_older_checkpoint_whole(written: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("…")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        checkpoint.write(written, 7, {"weights": torch.zeros(1)}, {"policy": fails})

    assert checkpoint.read(written).state["count"] == 3
    assert [path.name for path in written.parent.iterdir()] == ["step-7"]


def test_writing_a_step_again_replaces_it(written: Path) -> None:
    checkpoint.write(written, 7, {"count": 4})

    assert checkpoint.read(written).state["count"] == 4
    assert [path.name for path in written.parent.iterdir()] == ["step-7"]


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": {"b": [1, object()]}}, "state.a.b.1"),
        ({"fn": len}, "state.fn"),
        ({"names": np.array(["x"])}, "state.names"),
        ({"when": np.array(["2026-01-01"], dtype="datetime64[D]")}, "state.when"),
        ({"sparse": torch.eye(2).to_sparse()}, "state.sparse"),
    ],
)
def test_what_would_need_pickling_is_refused_by_name(tmp_path: Path, state: dict, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        checkpoint.write(tmp_path / "step-1", 1, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "", "state.json", "a/b"])
def test_a_model_cannot_leave_its_checkpoint(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        checkpoint.write(tmp_path / "step-1", 1, {}, {name: save_text})
