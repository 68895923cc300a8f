"""Looking at many files of a directory, each of which may wait for the disk.

On a cold cache a look waits for the directory, the inode and the data, one after the other.  Eight at a time,
in the order of the inodes, wait less.  On a warm one a look takes a few system calls, and threads would only fight for the
interpreter lock, so they are called to help when looks turn out to be slow.  See docs/decisions/0012-cold-caches.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Lock, Thread
from time import perf_counter
from typing import Generic, TypeVar, cast

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import drop, stepping
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress, no_progress

Item = TypeVar("Item")
Seen = TypeVar("Seen")

_LOOKERS = 8
_TURN = 32
"""Looks after which it is found out how long they took."""
_SLOW = 50e-6
"""Seconds: a look that finds everything in memory took a fifth of it."""
_SLOW_ONES = 8
"""Slow looks in a turn that call for help; one or two may be a thread that had to wait for a processor."""
_BATCH = 16
"""Neighbours on disk that one thread looks at."""
_FEW = 64
"""Files in a directory for which it is not read."""
_OTHERS = 16
"""Other files in a directory, for each that is looked for, that are passed over to find it."""
_PATIENCE = 0.02
"""Seconds between two looks at whether the caller has been cancelled, when others are still busy."""
_UNSEEN = object()


def look_at_all(
    checkpoint: Checkpoint,
    look: Callable[[Item], Seen],
    items: Sequence[Item],
    path_of: Callable[[Item], str | None],
    progress: Progress = no_progress,
) -> list[Seen]:
    """What ``look`` returns for each item, in the order of the items.

    It is called from several threads at a time, so it must change nothing, and ``path_of`` tells the file that it looks at.
    When a look fails, what is left is looked at in the order of the items by the caller alone, that one once more: so the error
    that is raised is that of the first one that fails, and several threads may have lacked memory or open files of which one
    has enough.  When this returns or raises, no thread is left.
    """
    seen: list[object] = [_UNSEEN] * len(items)
    told = _Told(progress)
    begin = _while_quick(checkpoint, look, items, seen, told)
    if begin < len(items):
        order = _in_order_of_inodes(checkpoint, items, begin, path_of)
        _Crew(look, items, order, seen).work(checkpoint, told)
        drop(checkpoint, order)
    for index in stepping(checkpoint, range(begin, len(items))):
        if seen[index] is _UNSEEN:
            seen[index] = look(items[index])
    told.up_to(len(items))
    return cast("list[Seen]", seen)


class _Told:
    """How much of the progress has been reported."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told = 0

    def up_to(self, count: int) -> None:
        if count > self._told:
            self._progress(count - self._told)
            self._told = count


def _while_quick(
    checkpoint: Checkpoint, look: Callable[[Item], Seen], items: Sequence[Item], seen: list[object], told: _Told
) -> int:
    """Look at one after the other until looks are slow; returns the first item that is left."""
    for start in range(0, len(items), _TURN):
        checkpoint()
        end, slow = min(start + _TURN, len(items)), 0
        before = perf_counter()
        for index in range(start, end):
            seen[index] = look(items[index])
            after = perf_counter()
            slow += after - before >= _SLOW
            before = after
        told.up_to(end)
        if slow >= _SLOW_ONES:
            return end
    checkpoint()
    return len(items)


class _Crew(Generic[Item, Seen]):
    """Threads, the caller's among them, that share the looks at the items in ``order``."""

    def __init__(self, look: Callable[[Item], Seen], items: Sequence[Item], order: list[int], seen: list[object]) -> None:
        self._look = look
        self._items = items
        self._order = order
        self._seen = seen
        self._lock = Lock()
        self._given = 0
        self._over = False

    def work(self, checkpoint: Checkpoint, told: _Told) -> None:
        """Look at all items, or until a look fails."""
        before = len(self._items) - len(self._order)
        helpers: list[Thread] = []
        try:
            self._call_helpers(helpers)
            for batch in self._batches():
                for index in batch:
                    checkpoint()
                    if self._over:
                        break
                    self._look_at(index)
                told.up_to(before + max(0, self._given - _BATCH * _LOOKERS))  # what others have in hand is not done yet
            for helper in helpers:
                while helper.is_alive():
                    helper.join(_PATIENCE)
                    checkpoint()
        finally:
            self._over = True
            for helper in helpers:
                helper.join()

    def _call_helpers(self, helpers: list[Thread]) -> None:
        with suppress(RuntimeError, MemoryError):  # fewer will do
            for _ in range(min(_LOOKERS - 1, len(self._order) // _BATCH)):
                helper = Thread(target=self._help, name="asyncmig-looking", daemon=True)
                helper.start()
                helpers.append(helper)

    def _help(self) -> None:
        with suppress(MemoryError):  # the caller does what is left
            for batch in self._batches():
                for index in batch:
                    if self._over:
                        return
                    self._look_at(index)

    def _batches(self) -> Iterator[list[int]]:
        while not self._over:
            with self._lock:
                start = self._given
                self._given = min(start + _BATCH, len(self._order))
            if start >= len(self._order):
                return
            yield self._order[start : start + _BATCH]

    def _look_at(self, index: int) -> None:
        try:
            self._seen[index] = self._look(self._items[index])
        except Exception:  # raised where it is tried once more
            self._over = True


def _in_order_of_inodes(
    checkpoint: Checkpoint, items: Sequence[Item], begin: int, path_of: Callable[[Item], str | None]
) -> list[int]:
    """The items from ``begin`` on, by inode where the directory tells it, the others behind them."""
    directories: dict[str, dict[str, int]] = {}
    for index in stepping(checkpoint, range(begin, len(items))):
        path = path_of(items[index])
        if path is not None:
            directory, name = os.path.split(path)
            directories.setdefault(directory, {})[name] = index
    keys: list[int] = []
    for directory, wanted in directories.items():
        if len(wanted) > _FEW:
            keys += _inodes(checkpoint, directory, wanted)
        drop(checkpoint, wanted)
    order = [key & _INDEX for key in stepping(checkpoint, sorted_in_steps(keys))]
    drop(checkpoint, keys)
    ordered = bytearray(len(items))
    for index in stepping(checkpoint, order):
        ordered[index] = 1
    order += [index for index in stepping(checkpoint, range(begin, len(items))) if not ordered[index]]
    return order


_INDEX_BITS = 40
_INDEX = (1 << _INDEX_BITS) - 1


def _inodes(checkpoint: Checkpoint, directory: str, wanted: dict[str, int]) -> Iterator[int]:
    """Inode and item in one number, for each of the wanted names that is met early enough."""
    patience = len(wanted) * (1 + _OTHERS)
    # What is wrong with the directory, the looks will tell.
    with suppress(OSError), os.scandir(directory) as entries:
        for _, entry in zip(range(patience), stepping(checkpoint, entries), strict=False):
            index = wanted.get(entry.name)
            if index is not None:
                yield entry.inode() << _INDEX_BITS | index
