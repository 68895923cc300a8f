"""Labels of snapshots and blobs: which ones an object was seen with, and removing one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from asyncmig.stores.containerd.client import NotFoundError
from asyncmig.stores.fanout import Progress, fan_out


class SeenLabels:
    """Names of the labels of each object that was read, so that none is updated to remove what it does not have.

    Nobody else changes the labels of a cache whose daemon does not run; and if a label did appear after it was looked for, it
    would protect its object once more than needed.
    """

    def __init__(self) -> None:
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

    async def remove_many(
        self,
        names: Sequence[str],
        label: str,
        remove: Callable[[str], Awaitable[object]],
        *,
        concurrency: int,
        progress: Progress,
    ) -> list[bool]:
        """Call ``remove`` for each object that may have the label; tells for each, in order, whether it exists."""

        async def remove_one(name: str) -> bool:
            if not self.lacks(name, label):
                try:
                    await remove(name)
                except NotFoundError:
                    return False
            return True

        return await fan_out(remove_one, names, concurrency=concurrency, progress=progress)
