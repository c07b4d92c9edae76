"""MLflow: one run a run, found again by a tag, its series as metrics under `stage/key`.

A metric's history only grows. The same point (step, value, time) logged twice is stored once by MLflow's databases; a
point that was replaced is added where its value differs from the newest of its step, and what was struck out stays.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.tracking.bridge import About, Left, Point
from engine.tracking.packages import required

_METRICS, _PARAMS = 1000, 100
"""Of one request, at most."""
_ODD = re.compile(r"[^\w\-. :/]")
"""What no name of MLflow's may contain."""
_ENDS: Mapping[str, str] = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_TAG = "rlx.run"


class MlflowRun:
    """Writes to the store at `uri`, by default a database in `folder`."""

    def __init__(self, folder: Path, uri: str | None, experiment: str | None) -> None:
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._client: Any = None
        self._run = ""

    @property
    def where(self) -> str:
        """The store and the run in it."""
        return f"{_without_password(self._place)} run {self._run}"

    @property
    def _place(self) -> str:
        return self._uri or f"sqlite:///{self._folder / 'mlflow.db'}"

    def open(self, about: About, left: Left | None) -> bool:
        """Find the run, or make it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        client = required("mlflow", "mlflow.tracking").MlflowClient
        if self._uri is None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._client = client(tracking_uri=self._place)
        experiment = self._experiment_id(self._experiment or about.spec)
        found = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{about.id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            return left is not None and left.get("run") == self._run
        tags = {_TAG: about.id, "mlflow.user": about.user, "mlflow.source.name": "rlx"}
        start = int(about.submitted * 1000)
        made = self._client.create_run(experiment, start_time=start, tags=tags, run_name=about.handle)
        self._run = made.info.run_id
        return False

    def _experiment_id(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        place = None if self._uri is not None else (self._folder / "artifacts" / name).as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def describe(self, about: About) -> None:
        """Parameters, which MLflow lets nobody change, tags, notes, and how the run stands."""
        entities = required("mlflow", "mlflow.entities")
        params = [entities.Param(_name(name), str(value)) for name, value in about.params.items()]
        for some in _cut(params, _PARAMS):
            self._client.log_batch(self._run, params=some)
        tags = {**{f"tag.{tag}": "true" for tag in about.tags}, "rlx.status": about.status}
        if about.notes:
            tags["mlflow.note.content"] = about.notes
        self._client.log_batch(self._run, tags=[entities.RunTag(_name(key), value) for key, value in tags.items()])
        if about.status in _ENDS:
            end = None if about.finished is None else int(about.finished * 1000)
            self._client.set_terminated(self._run, _ENDS[about.status], end)
        else:
            self._client.update_run(self._run, status="RUNNING")

    def write(self, points: Sequence[Point]) -> None:
        """A metric each."""
        metric = required("mlflow", "mlflow.entities").Metric
        told = [metric(_name(point.name), point.value, int(point.time * 1000), point.step) for point in points]
        for some in _cut(told, _METRICS):
            self._client.log_batch(self._run, metrics=some)

    def amend(self, points: Sequence[Point], since: float) -> bool:
        """Add those whose value is not the newest of their step."""
        if points:
            newest: dict[int, tuple[int, float]] = {}
            for old in self._client.get_metric_history(self._run, _name(points[0].name)):
                newest[old.step] = max(newest.get(old.step, (0, 0.0)), (old.timestamp, old.value))
            self.write([point for point in points if not _same(newest.get(point.step), point.value)])
        return True

    def flush(self) -> Left:
        """All is written as it comes."""
        return {"run": self._run}

    def close(self) -> Left:
        """Nothing to end."""
        return self.flush()


def _same(known: tuple[int, float] | None, value: float) -> bool:
    return known is not None and (known[1] == value or (math.isnan(known[1]) and math.isnan(value)))


def _name(name: str) -> str:
    return _ODD.sub("_", name)[:250]


def _cut(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _without_password(uri: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)
