"""TensorBoard: one folder a run, in it one a stage, in that one event file.

What was written is known by name and length, so a crash leaves nothing twice: the files are cut back to what was
remembered. Points that were replaced are not amended: the files are written anew, and begin with a session's start, at
which a TensorBoard that is looking on forgets what it had.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.tracking.bridge import About, Left, Point
from engine.tracking.packages import required

_OURS = "events.out.tfevents.*.rlx"
_ROOT = ""


class TensorBoardFiles:
    """Writes into `folder`. Values are 32-bit floats, which is all that TensorBoard shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _EventFile] = {}

    @property
    def where(self) -> str:
        """The run's folder."""
        return str(self._folder)

    def open(self, about: About, left: Left | None) -> bool:
        """Cut the files back to where we left; where one is missing or too short, empty them all."""
        required("tensorboard", "tensorboard.summary.writer.record_writer")
        sizes: Mapping[str, int] = (left or {}).get("sizes", {})
        whole = left is not None and all(
            (self._folder / name).is_file() and (self._folder / name).stat().st_size >= size
            for name, size in sizes.items()
        )
        for file in self._folder.rglob(_OURS):
            if not whole or str(file.relative_to(self._folder)) not in sizes:
                os.truncate(file, 0)  # a TensorBoard that reads it gets stuck where it is gone
        if whole:
            for name, size in sizes.items():
                stage = str(Path(name).parent)
                self._files[_ROOT if stage == "." else stage] = _EventFile(self._folder / name, size)
        return whole

    def describe(self, about: About) -> None:
        """The run's spec and state, as a text beside its stages."""
        rows = [("status", about.status), ("user", about.user), ("tags", ", ".join(about.tags)), ("notes", about.notes)]
        self._file(_ROOT).text("run", _table(rows))
        self._file(_ROOT).text("spec", _table((name, json.dumps(value)) for name, value in about.params.items()))

    def write(self, points: Sequence[Point]) -> None:
        """A scalar each."""
        for point in points:
            self._file(point.stage).scalar(point)

    def amend(self, points: Sequence[Point], since: float) -> bool:
        """Never: the files are written anew."""
        return False

    def flush(self) -> Left:
        """The files' lengths."""
        return {"sizes": {str(f.path.relative_to(self._folder)): f.flush() for f in self._files.values()}}

    def close(self) -> Left:
        """The same, and the files are closed."""
        left = self.flush()
        for file in self._files.values():
            file.close()
        self._files = {}
        return left

    def _file(self, stage: str) -> _EventFile:
        if stage not in self._files:
            seconds, nanos = divmod(time.time_ns(), 10**9)
            name = f"events.out.tfevents.{seconds}.{nanos:09d}.rlx"
            self._files[stage] = _EventFile(self._folder / stage / name)
        return self._files[stage]


class _EventFile:
    """One event file, begun or gone on with from `size`."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path, self._proto = path, event_pb2
        path.parent.mkdir(parents=True, exist_ok=True)
        self._out = path.open("ab")
        if size is not None:
            self._out.truncate(size)
        self._records = RecordWriter(self._out)
        if size is None:
            self._add(file_version="brain.Event:2")
            self._add(session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalar(self, point: Point) -> None:
        """One point."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=point.key, simple_value=point.value)])
        self._add(summary=summary, step=point.step, wall_time=point.time)

    def text(self, tag: str, words: str) -> None:
        """A text, in place of any earlier one."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        value = Summary.Value(
            tag=tag,
            metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
            tensor=TensorProto(dtype=DT_STRING, string_val=[words.encode()], tensor_shape=shape),
        )
        self._add(summary=Summary(value=[value]))

    def flush(self) -> int:
        """Hand over to the system what was written; the file's length."""
        self._out.flush()
        return self._out.tell()

    def close(self) -> None:
        """No more."""
        self._out.close()

    def _add(self, wall_time: float | None = None, **event: Any) -> None:
        made = self._proto.Event(wall_time=time.time() if wall_time is None else wall_time, **event)
        self._records.write(made.SerializeToString())


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Markdown, with every value as code: what a user wrote is shown, not rendered."""
    lines = [f"| {name} | `{str(value).replace('`', '´').replace('|', '¦')}` |" for name, value in rows if value]
    return "\n".join(["| | |", "| --- | --- |", *lines])
