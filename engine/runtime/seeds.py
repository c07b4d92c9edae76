"""Randomness: seeding everything, deriving seeds by name, and the state of every generator as plain data.

A checkpoint holds `rng_state()` beside the state of whatever generators a stage made for itself; who draws
which number is the stage's own business.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.errors import ResumeError


def derive(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for the purpose that `names` spell out; other names, another stream."""
    text = "\x00".join((str(seed), *(f"{type(name).__name__}:{name}" for name in names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_numpy(seed: int) -> None:
    """Seed python's and numpy's global generators."""
    random.seed(seed)
    np.random.seed(derive(seed, "numpy") % 2**32)


def seed_torch(seed: int) -> None:
    """Seed torch's generators, CUDA's included where it is in use."""
    import torch

    # Not `torch.manual_seed`: it asks every kind of accelerator in turn, which takes a fifth of a short stage's time.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def same_bits_again() -> None:
    """Have torch compute the same on the CPU every time, whatever the threads' timing.

    Without it several threads add into one place in any order, such as in the gradient of `hidden[places]`. On a GPU
    that would cost speed, or be refused: callers leave it out there. What has no such way is told in the log.
    """
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # read before written is a bug


def rng_state() -> dict[str, Any]:
    """The state of every global generator, as a tree that a checkpoint can hold; torch's where it is imported.

    With torch's its number of threads: sums are rounded otherwise with another, on a worker with other slots for one.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, dtype=np.uint32), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": np.array(keys, dtype=np.uint32),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if (torch := sys.modules.get("torch")) is None:
        return state
    state["torch"], state["threads"] = torch.get_rng_state(), torch.get_num_threads()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = list(torch.cuda.get_rng_state_all())
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put every global generator back. Raises ResumeError where one is missing or of another machine's shape.

    A state without torch's is from before a light stage imported torch: its generators are as they were seeded.
    """
    missing = sorted({"python", "numpy"} - set(state))
    if missing:
        raise ResumeError(
            f"the checkpoint lacks the random state of {', '.join(missing)}: resuming would change results"
        )
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(word) for word in python["words"]), python["gauss"]))
    np.random.set_state(
        (legacy["name"], np.asarray(legacy["keys"]), legacy["position"], legacy["has_gauss"], legacy["cached"])
    )
    if "torch" not in state:
        return
    import torch

    torch.set_rng_state(state["torch"])
    if "threads" in state:
        torch.set_num_threads(state["threads"])
    if "cuda" in state:
        if len(state["cuda"]) != torch.cuda.device_count():
            raise ResumeError(
                f"the checkpoint was written with {len(state['cuda'])} GPUs, here are {torch.cuda.device_count()}: "
                "resume it on as many as before"
            )
        torch.cuda.set_rng_state_all(state["cuda"])
