"""The ranks that carry out one stage together, and the few words that they exchange.

Every call below is made by all ranks, in the same order. Where the ranks come from is `ranks`' business; what they
do with gradients is the learner's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

T = TypeVar("T")


class World(Protocol):
    """A rank's view of all of them."""

    @property
    def rank(self) -> int:
        """Ours, from 0. Only the first one reports, and leaves an output."""

    @property
    def size(self) -> int: ...

    def agree(self, value: T) -> T:
        """The first rank's value, in every rank."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in every rank."""

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the ranks."""


class Alone:
    """One rank, whose word is all there is."""

    rank, size = 0, 1

    def agree(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]

    def total(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)


ALONE = Alone()


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a stage find each other."""

    host: str
    port: int
    listener: int | None = None
    """The first rank's: the descriptor of a socket that listens there already, so that nobody else takes the port."""

    @classmethod
    def here(cls) -> Meeting:
        """On this machine, at a free port. The caller is to become the first rank, or its parent."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            host, port = server.getsockname()[:2]
            return cls(host, port, server.detach())


class Group:
    """The ranks as a process group of torch's: gloo between processors, NCCL between GPUs."""

    def __init__(self, rank: int, size: int, meeting: Meeting, *, gpus: bool, patience_s: float) -> None:
        import torch.distributed as dist

        self.rank, self.size = rank, size
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR=meeting.host,
            MASTER_PORT=str(meeting.port),
        )
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine: nobody else need reach them
        patience = timedelta(seconds=patience_s)
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch lists it in no __all__
            meeting.host,
            meeting.port,
            size,
            is_master=rank == 0,
            timeout=patience,
            wait_for_workers=False,
            master_listen_fd=meeting.listener if rank == 0 else None,
        )
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)

    def agree(self, value: T) -> T:
        import torch.distributed as dist

        held = [value if self.rank == 0 else None]
        dist.broadcast_object_list(held, src=0)
        agreed: T = held[0]  # type: ignore[assignment]  # rank 0's, by now
        return agreed

    def gather(self, value: T) -> list[T]:
        import torch.distributed as dist

        found: list[T] = [value] * self.size
        dist.all_gather_object(found, value)
        return found

    def total(self, numbers: Sequence[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        held = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(held)
        summed: list[float] = held.tolist()
        return summed

    def leave(self) -> None:
        """Say goodbye to the others."""
        import torch.distributed as dist

        dist.destroy_process_group()
