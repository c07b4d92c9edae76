"""A stage's checkpoints side by side on disk: where the next one goes, which is the newest, which may go.

Every attempt writes below a folder of its own, so an attempt that was believed dead and wakes up again
overwrites nothing of its successor's; all attempts read each other's. Removing is a separate act, for the
caller to do once it knows that it is still the current attempt.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import ResumeError
from engine.runtime import checkpoint
from engine.runtime.context import SaveModel, State
from engine.runtime.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Kept:
    """One checkpoint on the shelf."""

    attempt: int
    path: Path
    manifest: Manifest

    @property
    def order(self) -> tuple[int, int]:
        """Newer is larger: by step, then by attempt."""
        return self.manifest.step, self.attempt

    @classmethod
    def at(cls, path: Path, manifest: Manifest) -> Kept:
        """A checkpoint by its place, which names the attempt."""
        return cls(int(path.parent.name.removeprefix("attempt-")), path, manifest)


class Shelf:
    """The checkpoints of one stage under `root`, seen by its attempt number `attempt`."""

    def __init__(self, root: Path, attempt: int = 1) -> None:
        self._root, self._attempt = root, attempt

    def save(
        self,
        step: int,
        state: State,
        models: Mapping[str, SaveModel] | None = None,
        labels: Sequence[str] = (),
        sampled: int = 0,
        fingerprints: int = 0,
        reached: Callable[[Literal["draft", "renamed"]], None] = lambda moment: None,
    ) -> Kept:
        """Write a checkpoint of this attempt; see `checkpoint.write`."""
        path = self._root / f"attempt-{self._attempt}" / f"step-{step}"
        written = checkpoint.write(path, step, state, models, labels, sampled, fingerprints, reached)
        return Kept(self._attempt, path, written)

    def all(self) -> list[Kept]:
        """Every complete checkpoint of any attempt, oldest first; drafts that a crash left do not count."""
        found = []
        for path in self._root.glob("attempt-*/step-*"):
            try:
                found.append(Kept.at(path, read_manifest(path)))
            except ResumeError:
                if path.exists():  # else another attempt has just removed it
                    raise
        return sorted(found, key=lambda kept: kept.order)

    def newest(self) -> Kept | None:
        """The checkpoint to resume from. Raises ResumeError where a manifest cannot be read."""
        kept = self.all()
        return kept[-1] if kept else None

    def surplus(self) -> list[Kept]:
        """What retention lets go: all but the newest, the one before it, and the newest bearer of each label."""
        kept = self.all()
        wanted = {one.path for one in kept[-2:]}
        bearers = {label: one.path for one in kept for label in one.manifest.labels}
        return [one for one in kept if one.path not in wanted | set(bearers.values())]

    def labelled(self, label: str) -> Kept | None:
        """The newest checkpoint that claims `label`."""
        return next((one for one in reversed(self.all()) if label in one.manifest.labels), None)


def remove(kept: Kept) -> None:
    """Delete one checkpoint, if it is still there: out of sight by a rename first, so that no half of it is found."""
    aside = kept.path.with_name(f".{kept.path.name}.gone")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):
        kept.path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
