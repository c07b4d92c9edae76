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


@dataclass(frozen=True)
class Place:
    """One rank among those of a stage."""

    local: int
    """On its node, from 0."""
    on_node: int
    """How many there are on each."""
    node: int = 0
    nodes: int = 1
    interface: str = "lo"
    """Through which ranks reach each other: this machine's own, where nobody else need reach them."""

    @property
    def rank(self) -> int:
        return self.node * self.on_node + self.local

    @property
    def size(self) -> int:
        return self.nodes * self.on_node

    def environment(self, meeting: Meeting) -> dict[str, str]:
        """What torchrun gives a process."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.on_node),
            "GROUP_RANK": str(self.node),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "MASTER_ADDR": meeting.host,
            "MASTER_PORT": str(meeting.port),
        }


class Group:
    """The ranks as a process group of torch's: gloo between processors, NCCL between GPUs."""

    def __init__(self, place: Place, meeting: Meeting, *, gpus: bool, patience_s: float) -> None:
        import torch.distributed as dist

        self.rank, self.size = rank, size = place.rank, place.size
        os.environ.update(place.environment(meeting))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", place.interface)
        if place.nodes > 1:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", place.interface)
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
