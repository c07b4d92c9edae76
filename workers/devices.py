"""What a worker lends: its slots and GPUs, who has them, and which waiting stages fit what is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from engine.plan.stage import Needs
from engine.store.queue import Waiting

Together = Callable[[Waiting], bool]
"""Whether other workers have room for the other nodes of a stage."""
Keep = Callable[[Waiting, Needs], bool]
"""Whether what is left on this worker is kept for a stage that needs more."""

_PASSED_OVER = 32
"""So many stages that do not fit what is free are looked at in one look; past them, only what does fit."""


class Offers(Protocol):
    """Stages that wait, in the order in which they come up: `queue.Line`."""

    def next(self, largest: Needs) -> Waiting | None:
        """The next one that needs no more than `largest`."""
        ...


@dataclass(frozen=True)
class Taken:
    """What one look led to."""

    lent: Sequence[tuple[Waiting, tuple[str, ...]]]
    """Stages to start, each with its devices."""
    kept: Waiting | None = None
    """The stage that what is still free, as far as it needs that, was kept for."""


class Devices:
    """The worker's slots (`slot:0`) and GPUs (`gpu:3`). Thread-safe."""

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots, self.gpus = slots, tuple(gpus)
        self.total = Needs(slots, len(self.gpus))
        self._lock = threading.Lock()
        self._slots = [f"slot:{index}" for index in range(slots)]
        self._gpus = [f"gpu:{gpu}" for gpu in self.gpus]
        self._free = {*self._slots, *self._gpus}

    @property
    def any_free(self) -> bool:
        """Whether a stage could start at all."""
        return not self._free.isdisjoint(self._slots)

    @property
    def all_free(self) -> bool:
        """Whether nothing is lent."""
        with self._lock:
            return len(self._free) == len(self._slots) + len(self._gpus)

    def fits(self, needs: Needs) -> bool:
        """Whether the worker has what the stage needs, lent or not."""
        return needs.within(self.total)

    def take(
        self,
        offers: Offers,
        keep: Keep = lambda stage, left: True,
        together: Together = lambda stage: True,
    ) -> Taken:
        """Lend devices to as many of the offered stages as fit, first come first served; all that one needs, or none.

        A stage that fits this worker, but not what is free, is passed over, unless `keep` says that this worker is
        the one to keep its devices for it: then what it needs of them is not lent to those behind it, so that
        small stages do not starve it for ever. So is one of several nodes, unless all of them fit: `together`.
        """
        with self._lock:
            before = set(self._free)
            try:
                return self._take(offers, keep, together)
            except BaseException:  # the store went away half-way: nothing was lent
                self._free = before
                raise

    def _take(self, offers: Offers, keep: Keep, together: Together) -> Taken:
        lent: list[tuple[Waiting, tuple[str, ...]]] = []
        kept, passed = None, 0
        left = Needs(*(sum(name in self._free for name in names) for names in (self._slots, self._gpus)))
        while left.slots:
            only_what_is_left = kept is not None or passed >= _PASSED_OVER
            stage = offers.next(left if only_what_is_left else self.total)
            if stage is None:
                break
            if stage.alone:  # with every slot there is no room for anything beside it
                stage = replace(stage, needs=Needs(self.total.slots, stage.needs.gpus))
            if stage.needs.within(left) and (stage.nodes == 1 or together(stage)):
                lent.append((stage, self._lend(stage.needs)))
                left -= stage.needs
            elif kept is None and keep(stage, left):
                kept = stage
                left -= stage.needs
            else:
                passed += 1
        return Taken(lent, kept)

    def _lend(self, needs: Needs) -> tuple[str, ...]:
        slots = [name for name in self._slots if name in self._free][: needs.slots]
        gpus = [name for name in self._gpus if name in self._free][: needs.gpus]
        self._free.difference_update(slots, gpus)
        return (*slots, *gpus)

    def lend_exactly(self, devices: Sequence[str]) -> bool:
        """Lend these, which another worker has leased of us; False where one of them is still lent."""
        with self._lock:
            if not self._free.issuperset(devices):
                return False
            self._free.difference_update(devices)
        return True

    def lend_again(self, devices: Sequence[str]) -> tuple[str, ...] | None:
        """What a dead predecessor had lent: exactly these GPUs, and as many slots; None where they are not free."""
        gpus = [name for name in devices if name.startswith("gpu:")]
        slots = len(devices) - len(gpus)
        with self._lock:
            free = [name for name in self._slots if name in self._free]
            if slots > len(free) or not self._free.issuperset(gpus):
                return None
            taken = (*free[:slots], *gpus)
            self._free.difference_update(taken)
        return taken

    def give_back(self, taken: Sequence[str]) -> None:
        """The attempt is over."""
        with self._lock:
            self._free.update(taken)


def threads_of(devices: Sequence[str], slots: int) -> int:
    """The CPU threads that go with these devices, of a worker with so many slots: an equal part for each slot.

    With more, the stages of a full worker would wait for each other's threads, and take several times as long.
    """
    lent = sum(name.startswith("slot:") for name in devices)
    return max(1, len(os.sched_getaffinity(0)) * lent // slots)


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
