"""Labels of snapshots and blobs: which ones an object was seen with, and removing one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.stores.containerd.client import NotFoundError
from asyncmig.stores.fanout import Progress, fan_out


class SeenLabels:
    """Names of the labels of each object that was read, so that none is updated to remove what it does not have.

    Nobody else changes the labels of a cache whose daemon does not run; and if a label did appear after it was looked for, it
    would protect its object once more than needed.
    """

    def __init__(self, concurrency: int, progress: Progress) -> None:
        self._concurrency = concurrency
        self._progress = progress
        self._labels: dict[str, frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}  # there are few different ones

    def note(self, name: str, labels: Iterable[str]) -> None:
        """Object ``name`` was seen with these labels."""
        seen = frozenset(labels)
        self._labels[name] = self._sets.setdefault(seen, seen)

    def lacks(self, name: str, label: str) -> bool:
        """Whether it was seen without the label."""
        labels = self._labels.get(name)
        return labels is not None and label not in labels

    async def remove_many(self, names: Sequence[str], label: str, remove: Callable[[str], Awaitable[object]]) -> list[bool]:
        """Call ``remove`` for each object that may have the label; tells for each, in order, whether it exists.

        One that was seen without the label counts as existing; nobody is asked.
        """

        async def remove_one(name: str) -> bool:
            try:
                await remove(name)
            except NotFoundError:
                return False
            return True

        carriers = await in_thread(self._carriers, names, label)
        existing = await fan_out(remove_one, carriers, concurrency=self._concurrency, progress=self._progress)
        return await in_thread(_in_order, names, carriers, existing)

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
