"""Other hardware for a run that is taken up again: the same stages on what there is now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engine.errors import SpecError

if TYPE_CHECKING:
    from engine.plan.stage import Resources


def other_hardware(resolved: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Resources]:
    """What each stage of the run of this spec takes under these overrides. Raises SpecError for any that changes more.

    Hardware is where a run happens, not what it computes; its number format is an exception.
    """
    from engine.methods.registry import configs, plan
    from engine.spec.hardware import ONLY_UNDER
    from engine.spec.load import load, load_resolved

    for override in overrides:
        if not override.startswith("hardware."):
            raise SpecError(f"{override}: a run goes on as what it is, on other `hardware.` at most: `rlx submit` anew")
    document = dict(resolved)
    if any(override.startswith("hardware.launcher=") for override in overrides):
        # What was said of the launcher before goes with it.
        document["hardware"] = {key: value for key, value in resolved["hardware"].items() if key not in ONLY_UNDER}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"  # through the loader, for its messages
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        changed = plan(load(path, overrides, methods=configs()).experiment)
    for before, after in zip(plan(load_resolved(resolved, configs())).stages, changed.stages, strict=True):
        if before.config != after.config:
            raise SpecError(
                f"{' '.join(overrides)} changes what the stage {after.name!r} computes: `rlx submit` it anew"
            )
    return {stage.name: stage.resources for stage in changed.stages}
