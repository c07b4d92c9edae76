"""What other tools read of what was mirrored for them, by their own readers: {(stage, key): [(step, value), …]}."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Curves = Mapping[tuple[str, str], list[tuple[int, float]]]
_BLOCK = 32_768


def tensorboard_curves(folder: Path) -> Curves:
    """Every scalar that TensorBoard keeps of a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
        events = EventAccumulator(str(stage), size_guidance={"scalars": 0}).Reload()
        for key in events.Tags()["scalars"]:
            found[stage.name, key] = [(event.step, event.value) for event in events.Scalars(key)]
    return found


def tensorboard_texts(folder: Path) -> dict[str, str]:
    """The texts beside a run's stages, the newest of each tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}


def mlflow_run(uri: str, experiment: str) -> Any:
    """The only run of an experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def mlflow_curves(uri: str, experiment: str) -> Curves:
    """Every metric's whole history, in the order of steps and then times."""
    from mlflow.tracking import MlflowClient

    run, client = mlflow_run(uri, experiment), MlflowClient(uri)
    found = {}
    for name in run.data.metrics:
        stage, _, key = name.partition("/")
        history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda old: (old.step, old.timestamp))
        found[stage, key] = [(old.step, old.value) for old in history]
    return found


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of the only offline run below a folder, as W&B's own protocol buffers.

    The package ships no reader in Python: the file is LevelDB's log behind a header of seven bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, held = 7, b""
    while place + 7 <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            record = Record()
            record.ParseFromString(held)
            yield record
            held = b""


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of its history, in order."""
    rows = []
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
    return rows


def wandb_curves(folder: Path) -> Curves:
    """The rows as curves over `stage/step`."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in wandb_rows(folder):
        for name, value in row.items():
            stage, _, key = name.partition("/")
            if key and key != "step":
                found[stage, key].append((row[f"{stage}/step"], float(value)))
    return {series: sorted(points) for series, points in found.items()}
