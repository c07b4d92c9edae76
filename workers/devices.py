"""What a worker lends: its slots and GPUs, who has them, and which waiting stages fit what is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.plan.stage import Resources
from engine.store.queue import Waiting


@dataclass(frozen=True)
class Needs:
    """What one attempt takes: slots and GPUs."""

    slots: int
    gpus: int

    @classmethod
    def of(cls, resources: Resources) -> Needs:
        """At least one slot, and a GPU where the stage insists on CUDA."""
        return cls(max(1, resources.slots), max(resources.gpus, 1 if resources.device == "cuda" else 0))


class Devices:
    """The worker's slots (`slot:0`) and GPUs (`gpu:3`). Thread-safe."""

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots, self.gpus = slots, tuple(gpus)
        self._lock = threading.Lock()
        self._free_slots = [f"slot:{index}" for index in range(slots)]
        self._free_gpus = [f"gpu:{gpu}" for gpu in self.gpus]

    @property
    def any_free(self) -> bool:
        """Whether a stage could start at all."""
        return bool(self._free_slots)

    @property
    def all_free(self) -> bool:
        """Whether nothing is lent."""
        with self._lock:
            return len(self._free_slots) == self.slots and len(self._free_gpus) == len(self.gpus)

    def fits(self, resources: Resources) -> bool:
        """Whether the worker has what the stage needs, lent or not."""
        needs = Needs.of(resources)
        return needs.slots <= self.slots and needs.gpus <= len(self.gpus)

    def take(self, waiting: Sequence[Waiting]) -> list[tuple[Waiting, tuple[str, ...]]]:
        """Lend devices to as many of `waiting` as fit, first come first served.

        A stage that fits this worker, but not what is free, keeps its place: what is free of the devices that it
        needs is not lent to those behind it, so that small stages do not starve a large one for ever. One that
        needs more than the worker has is passed over.
        """
        chosen = []
        with self._lock:
            slots, gpus = len(self._free_slots), len(self._free_gpus)
            for stage in waiting:
                if not self.fits(stage.resources):
                    continue
                needs = Needs.of(stage.resources)
                if needs.slots <= slots and needs.gpus <= gpus:
                    taken = self._free_slots[: needs.slots] + self._free_gpus[: needs.gpus]
                    del self._free_slots[: needs.slots], self._free_gpus[: needs.gpus]
                    chosen.append((stage, tuple(taken)))
                slots, gpus = max(0, slots - needs.slots), max(0, gpus - needs.gpus)
        return chosen

    def lend_again(self, devices: Sequence[str]) -> tuple[str, ...] | None:
        """What a dead predecessor had lent: exactly these GPUs, and as many slots; None where they are not free."""
        gpus = [name for name in devices if name.startswith("gpu:")]
        slots = len(devices) - len(gpus)
        with self._lock:
            if slots > len(self._free_slots) or not set(gpus) <= set(self._free_gpus):
                return None
            taken = self._free_slots[:slots] + gpus
            del self._free_slots[:slots]
            self._free_gpus = [name for name in self._free_gpus if name not in gpus]
        return tuple(taken)

    def give_back(self, taken: Sequence[str]) -> None:
        """The attempt is over."""
        with self._lock:
            self._free_slots = sorted({*self._free_slots, *(name for name in taken if name.startswith("slot:"))})
            self._free_gpus = sorted({*self._free_gpus, *(name for name in taken if name.startswith("gpu:"))})


def gpu_ids(devices: Sequence[str]) -> tuple[str, ...]:
    """The GPUs among device names, as CUDA_VISIBLE_DEVICES wants them."""
    return tuple(name.removeprefix("gpu:") for name in devices if name.startswith("gpu:"))


def gpus_here(environ: Mapping[str, str] = os.environ, root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The GPUs that this process may use, without asking CUDA: the driver's list, narrowed by CUDA_VISIBLE_DEVICES."""
    present = [str(index) for index, _ in enumerate(sorted(root.iterdir()))] if root.is_dir() else []
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return [name for name in map(str.strip, visible.split(",")) if name] if present else []
