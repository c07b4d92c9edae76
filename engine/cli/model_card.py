"""The card beside an exported model: what it is, from which data, how it was scored, how to make it again. Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    *,
    handle: str,
    checkpoint: str,
    resolved: Mapping[str, Any],
    source: str,
    evaluations: Sequence[Mapping[str, Any]],
    code: Mapping[str, Any],
    packages: Mapping[str, Any],
    overrides: Sequence[str],
) -> str:
    """The card of one checkpoint of a run. `evaluations` have metric, split, step, mean, low, high and count."""
    name, method = resolved["name"], resolved["algorithm"]["name"]
    base = str(resolved["model"]["name"]).partition("@")[0]
    front = ["library_name: transformers", f"tags: [rlx, {method}]"]
    if _HUB.fullmatch(base):
        front.append(f"base_model: {base}")
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {name}",
        resolved.get("description") or f"Trained by `{method}` with rlx.",
        f"The checkpoint `{checkpoint}` of the run `{handle}`: `{resolved['model']['name']}`, trained by `{method}`, "
        f"seed {resolved.get('seed', 0)}.",
        "## Data",
        _data(resolved["dataset"]),
        "## Evaluations",
        _table(evaluations),
        "## Make it again",
        _again(source, overrides, code, packages),
    ]
    return "\n\n".join(parts) + "\n"


def _data(dataset: Mapping[str, Any]) -> str:
    splits = {"train": dataset["items"], **(dataset.get("splits") or {})}
    return "\n".join(f"- `{name}`: {_source(items)}" for name, items in splits.items())


def _source(items: Any) -> str:
    if isinstance(items, Mapping):
        if items.get("hub"):
            return f"`{items['hub']}`, split `{items.get('split')}`, revision `{items.get('revision') or 'latest'}`"
        return f"`{str(items['file']).rpartition('/')[2]}`, SHA-256 `{items.get('sha256')}`"
    return f"{len(items)} items, written out in the spec"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "None was recorded."
    lines = ["| metric | split | step | mean | 95 % interval | scores |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        cells = (row["metric"], row["split"], row["step"], f"{row['mean']:.3f}", interval, row["count"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _again(source: str, overrides: Sequence[str], code: Mapping[str, Any], packages: Mapping[str, Any]) -> str:
    version = ", ".join(f"{key} {code[key]}" for key in ("version", "commit") if code.get(key))
    known = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if name in packages)
    command = " ".join(["rlx submit spec.yaml", *overrides])
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
    return (
        f"    {command}\n\nwith rlx {version or 'of an unknown version'} ({known or 'packages unknown'}) and this "
        f"`spec.yaml`:\n\n{fence}yaml\n{source.rstrip()}\n{fence}"
    )
