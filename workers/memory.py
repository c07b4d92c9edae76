"""Making a large process cheap to fork: its memory in huge pages, whose table a fork copies in a fraction of the time.

Python and its libraries fill hundreds of megabytes with 4 KiB pages. Collapsed to 2 MiB pages (`madvise(2)`,
MADV_COLLAPSE, Linux 6.1) forking a warm parent and ending its child takes less than half the time. A page that a child
writes to is split again, for that child alone.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MADV_COLLAPSE = 25
_HUGE = 2 << 20


def collapse() -> int:
    """Collapse this process's private memory as far as the kernel does it; how many bytes it took. Never fails."""
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    collapsed = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights != "rw-p" or name not in ([], ["[heap]"]):
            continue
        first, end = (int(address, 16) for address in addresses.split("-"))
        first, end = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if first < end and libc.madvise(first, end - first, _MADV_COLLAPSE) == 0:
            collapsed += end - first
    return collapsed
