"""A checkpoint's manifest: what should be in its folder, and whether it is. Light: who asks need not import torch.

Writing checkpoints and reading their states is `checkpoint`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ResumeError

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself."""

    step: int
    labels: tuple[str, ...]
    components: tuple[str, ...]
    """Keys of the state and names of the models; all must be there to resume."""
    sampled: int
    """How many samples its attempt had reported before."""
    fingerprints: int
    """How many fingerprints its stage had noted before."""
    files: Mapping[str, tuple[int, str]]
    """Relative path: size in bytes, SHA-256."""
    sha256: str
    """Of the manifest file itself, and so of everything that it lists."""

    @property
    def bytes(self) -> int:
        """Size of everything listed."""
        return sum(size for size, _ in self.files.values())


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, nothing verified. Raises ResumeError where it cannot be read."""
    try:
        raw = (directory / MANIFEST).read_bytes()
        data = json.loads(raw)
        if data["version"] != VERSION:
            raise ResumeError(f"{directory} is a checkpoint of format {data['version']}, this rlx reads {VERSION}")
        return Manifest(
            step=data["step"],
            labels=tuple(data["labels"]),
            sampled=data["sampled"],
            fingerprints=data.get("fingerprints", 0),  # absent from checkpoints of earlier versions
            components=(*data["components"], *data["models"]),
            files={path: (entry["bytes"], entry["sha256"]) for path, entry in data["files"].items()},
            sha256=hashlib.sha256(raw).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{directory} has no readable {MANIFEST}: {error}") from error


def verify(directory: Path) -> Manifest:
    """The manifest, once every file that it lists was read and is as listed. Raises ResumeError otherwise."""
    manifest = read_manifest(directory)
    for path, (size, digest) in manifest.files.items():
        file = directory / path
        if not file.is_file():
            raise ResumeError(f"the checkpoint {directory} lacks {path}: resuming from it would lie")
        if measure(file) != (size, digest):
            raise ResumeError(f"the checkpoint {directory} is damaged: {path} is not what its manifest says")
    return manifest


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
