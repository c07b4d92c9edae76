"""Batches made ahead of the step that learns from them: in a thread and in pinned memory, where that pays.

It pays on a GPU: while it computes, the host has nothing else to do. On a CPU the cores that would make the next batch
are those that compute this one (`bench/prefetch.py`), so there batches are made when they are asked for.

A batch that was made and not asked for has changed nothing: what is drawn must be a function of the seed and the step,
and whoever asks notes what was drawn. So a checkpoint knows nothing of what was made ahead.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Generic, TypeVar

import torch

from engine.lm.transfer import moved, pinned

Item = TypeVar("Item")
AHEAD = 2
"""Batches that wait at most: one would leave the GPU idle where batches take unequally long to make."""


class Ahead(Generic[Item]):
    """Iterates over `source`, which a thread reads; at most `most` items wait. What the thread fails with is raised
    where its item would have come, traceback and all. `close` ends the thread."""

    def __init__(self, source: Iterable[Item], *, most: int = AHEAD, begin: Callable[[], None] = lambda: None) -> None:
        self._source, self._most, self._begin = source, most, begin
        self._made: deque[Item] = deque()
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._make, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._ended)
            if self._made:
                item = self._made.popleft()
                self._changed.notify_all()
                return item
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """End the thread, after the item that it is at; what it has made is dropped."""
        with self._changed:
            self._closed = self._ended = True
            self._made.clear()
            self._changed.notify_all()
        self._thread.join()

    def _make(self) -> None:
        try:
            self._begin()
            items = iter(self._source)
            while self._has_room():
                try:
                    item = next(items)
                except StopIteration:
                    break
                with self._changed:
                    if not self._closed:
                        self._made.append(item)
                        self._changed.notify_all()
        except BaseException as failure:  # noqa: BLE001 - raised by `__next__`
            self._failure = failure
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until there is; False once nobody asks any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._made) < self._most)
            return not self._closed


@contextmanager
def made_ahead(source: Iterable[Item], device: torch.device | str) -> Iterator[Iterator[Item]]:
    """The batches of `source` on a device, in order, for the length of the block; see the module.

    `source` must leave every generator of random numbers alone: on a GPU it is read in another thread.
    """
    if torch.device(device).type != "cuda":
        yield iter(source)
        return
    gpu = torch.cuda.current_device()  # each thread has its own; pinning in a new one would wake the first GPU
    with closing(Ahead(map(pinned, source), begin=lambda: torch.cuda.set_device(gpu))) as made:
        yield (moved(item, device) for item in made)
