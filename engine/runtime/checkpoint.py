"""One complete training state as a directory: written whole or not at all, and checked before it is believed.

    step-40/
      manifest.json        step, labels, components, and the size and SHA-256 of every other file
      state.json           the state's shape and scalars
      state.safetensors    its tensors and arrays
      policy/              a Hugging Face directory per model, loadable by `from_pretrained`

Which checkpoints to keep is for `shelf`, who may register one in SQL for the stage's context.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from safetensors import SafetensorError

from engine.errors import DiskError, ResumeError
from engine.runtime.context import Restored, SaveModel, State
from engine.runtime.manifest import MANIFEST, VERSION, Manifest, measure, read_manifest, verify

STATE, TENSORS = "state.json", "state.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Components(dict[str, Any]):
    """A restored state: asking it for a component that was not saved refuses to resume."""

    def __missing__(self, key: str) -> Any:
        raise ResumeError(
            f"the checkpoint has no component {key!r}, only {sorted(self)}: resuming would change results"
        )


def write(
    directory: Path,
    step: int,
    state: State,
    models: Mapping[str, SaveModel] | None = None,
    labels: Sequence[str] = (),
    sampled: int = 0,
    fingerprints: int = 0,
    reached: Callable[[Literal["draft", "renamed"]], None] = lambda moment: None,
) -> Manifest:
    """Write a checkpoint to `directory`, replacing an older one there in one rename.

    `reached` hears when the draft is half written, and when the checkpoint stands in its place.
    Raises TypeError for a state that cannot be kept, DiskError where the disk refuses.
    """
    from safetensors.torch import save_file  # here: a light stage that saves nothing does without torch

    from engine.runtime.tree import flatten

    for name in models or {}:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a model's folder in a checkpoint")
    skeleton, tensors = flatten(dict(state))
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.with_name(f".{directory.name}.{uuid4().hex[:8]}")
    with _disk(directory):
        try:
            draft.mkdir()
            save_file(tensors, draft / TENSORS)
            (draft / STATE).write_text(json.dumps(skeleton, allow_nan=False), encoding="utf-8")
            reached("draft")
            for name, save in (models or {}).items():
                (draft / name).mkdir()
                save(draft / name)
            files = {path: measure(draft / path) for path in _files(draft)}
            text = json.dumps(
                {
                    "version": VERSION,
                    "step": step,
                    "labels": list(labels),
                    "sampled": sampled,
                    "fingerprints": fingerprints,
                    "components": sorted(map(str, state)),
                    "models": sorted(models or {}),
                    "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in files.items()},
                },
                indent=1,
            )
            (draft / MANIFEST).write_text(text, encoding="utf-8")
            _sync_tree(draft)
            _replace(draft, directory)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    reached("renamed")
    return read_manifest(directory)


def read(directory: Path) -> Restored:
    """The checkpoint at `directory`, every file verified. Raises ResumeError for a damaged or incomplete one."""
    from safetensors.torch import load_file

    from engine.runtime.tree import unflatten

    manifest = verify(directory)
    if missing := [path for path in (STATE, TENSORS) if path not in manifest.files]:
        raise ResumeError(f"the checkpoint {directory} lacks {missing[0]}: resuming from it would lie")
    try:
        skeleton = json.loads((directory / STATE).read_text(encoding="utf-8"))
        tensors = load_file(directory / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ResumeError(f"the checkpoint {directory} cannot be read: {error}") from error
    state = Components(unflatten(skeleton, tensors))
    lost = [name for name in manifest.components if name not in state and not (directory / name).is_dir()]
    if lost:
        raise ResumeError(f"the checkpoint {directory} lacks its component {lost[0]!r}: resuming from it would lie")
    return Restored(step=manifest.step, state=state, path=directory)


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _replace(draft: Path, directory: Path) -> None:
    """Rename into place; a folder that is in the way steps aside first."""
    aside = None
    if directory.exists():
        aside = directory.with_name(f".{directory.name}.old-{uuid4().hex[:8]}")
        directory.rename(aside)
    draft.rename(directory)
    _sync(directory.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DiskError(f"the checkpoint {directory} could not be written: {error}") from error
