"""Where the name of a model leads: `scratch:<preset>`, `tiny:<id>`, a hub id, a path, or `run:<handle>@<label>`.

Parsing is pure; `Source` is what the loaders take. Turning a run's checkpoint into a directory is left to
whoever knows the store: it arrives here as a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import ModelError

Kind = Literal["scratch", "tiny", "run", "path", "hub"]
_HUB = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?$")


@dataclass(frozen=True)
class Reference:
    """A model's name, taken apart."""

    kind: Kind
    name: str
    """The preset, the run's handle, the path, the hub id, or the id that a tiny twin is of."""
    label: str | None = None
    """A run's checkpoint label, or a hub revision."""


def parse(name: str, *, base: Path | None = None) -> Reference:
    """Take a model's name apart. Raises ModelError for what can be none of these forms."""
    if name.startswith("scratch:"):
        return Reference("scratch", name.removeprefix("scratch:"))
    if name.startswith("tiny:"):
        return Reference("tiny", name.removeprefix("tiny:"))
    if name.startswith("run:"):
        last, rest = ("@", name[5:]) if name.startswith("run:@") else ("", name[4:])  # run:@last@best
        handle, _, label = rest.partition("@")
        handle = last + handle
        if handle in ("", "@"):
            raise ModelError(f"{name!r} names no run; write run:<handle>@<label>, such as run:best-lang-1@best.")
        return Reference("run", handle, label or "best")
    path = Path(name).expanduser()
    if base is not None and not path.is_absolute():
        path = base / path
    if name and path.is_dir():
        return Reference("path", str(path))
    if name.startswith((".", "/", "~")) or not _HUB.match(name):
        raise ModelError(
            f"{name!r} is neither a directory here nor a hub id (org/name). "
            "Other forms: scratch:<preset>, run:<handle>@<label>."
        )
    repo, _, revision = name.partition("@")
    return Reference("hub", repo, revision or None)


@dataclass(frozen=True)
class Source:
    """A directory or hub id that `from_pretrained` takes, with what must be said beside it."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def is_adapter(self) -> bool:
        """Whether this is a directory with a PEFT adapter in it."""
        return (Path(self.path) / "adapter_config.json").is_file()

    def adapter_base(self) -> str:
        """The model below the adapter."""
        config = json.loads((Path(self.path) / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if not base:
            raise ModelError(f"{self.path}: the adapter does not say which model it belongs to.")
        return str(base)


@contextmanager
def translated_errors(source: Source) -> Iterator[None]:
    """Turn whatever escapes a model library into a ModelError that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(source.path).exists():
            advice = "The directory needs config.json, weights and a tokenizer in the Hugging Face format."
        else:
            advice = (
                "Is the id right, is the hub reachable (HF_HUB_OFFLINE, HF_TOKEN for a gated model)? "
                "A directory or scratch:<preset> needs no network."
            )
        raise ModelError(f"cannot load the model {source.path!r}: {first} {advice}") from error
