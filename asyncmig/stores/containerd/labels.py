"""Labels of snapshots and blobs: remembering which labels an object had, removing a label and setting one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.stores.containerd.client import NotFoundError
from asyncmig.stores.fanout import Item, Progress, fan_out
from asyncmig.stores.ports import GC_ROOT

ROOTED = f'labels."{GC_ROOT}"'
"""containerd's filter for objects that have the label, whatever its value."""


class SeenLabels:
    """Remembers the names of the labels of each object that was read, which saves calls to remove labels that don't exist.

    Nobody else changes the labels of a cache whose daemon is stopped.  If a label did appear after we looked, no harm would be
    done: it would only protect its object longer than needed.
    """

    def __init__(self, concurrency: int, progress: Progress) -> None:
        self._concurrency = concurrency
        self._progress = progress
        self._labels: dict[str, frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}  # few sets are different, so objects share them

    def note(self, name: str, labels: Iterable[str]) -> None:
        """Object ``name`` was seen with these labels."""
        seen = frozenset(labels)
        self._labels[name] = self._sets.setdefault(seen, seen)

    def lacks(self, name: str, label: str) -> bool:
        """Whether object ``name`` was seen without the label."""
        labels = self._labels.get(name)
        return labels is not None and label not in labels

    async def remove_many(self, names: Sequence[str], label: str, remove: Callable[[str], Awaitable[object]]) -> list[bool]:
        """Call ``remove`` for each object that may have the label; return for each, in order, whether it exists.

        An object that was seen without the label counts as existing; no call is made for it.
        """
        carriers = await in_thread(self._carriers, names, label)
        existing = await self._update_many(remove, carriers)
        return await in_thread(_in_order, names, carriers, existing)

    async def set_many(
        self, values: Sequence[tuple[str, str]], set_one: Callable[[tuple[str, str]], Awaitable[object]]
    ) -> list[bool]:
        """Call ``set_one`` for each object and its value; return for each, in order, whether the object exists."""
        # Forget before the calls, not after: a call that fails or is cancelled may still have set the label.
        await in_thread(self._forget, values)
        return await self._update_many(set_one, values)

    async def _update_many(self, update: Callable[[Item], Awaitable[object]], items: Sequence[Item]) -> list[bool]:
        async def update_one(item: Item) -> bool:
            try:
                await update(item)
            except NotFoundError:
                return False
            return True

        return await fan_out(update_one, items, concurrency=self._concurrency, progress=self._progress)

    def _forget(self, checkpoint: Checkpoint, values: Sequence[tuple[str, str]]) -> None:
        for name, _ in values:
            checkpoint()
            self._labels.pop(name, None)

    def _carriers(self, checkpoint: Checkpoint, names: Sequence[str], label: str) -> list[str]:
        found = []
        for name in names:
            checkpoint()
            if self.lacks(name, label):
                self._progress(1)
            else:
                found.append(name)
        return found


def _in_order(checkpoint: Checkpoint, names: Sequence[str], carriers: list[str], existing: list[bool]) -> list[bool]:
    missing = {name for name, exists in zip(carriers, existing, strict=True) if not exists}
    ordered = []
    for name in names:
        checkpoint()
        ordered.append(name not in missing)
    return ordered
