"""Reading many objects: one call for each, or one List for all.

Measured here and in containerd, an object costs a fifth through List of what it costs through a call of its own.  But List
reads the whole namespace.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.stores.fanout import Progress, fan_out

Info = TypeVar("Info")
Found = TypeVar("Found")

_WORTH_LISTING = 64
"""Try List from this many objects on; with fewer it makes no difference."""
_LISTED_PER_CALL = 5
"""Objects that List reads in the time that one call takes."""


@dataclass(frozen=True, slots=True)
class Reader(Generic[Info, Found]):
    """How one kind of object is read.

    ``get``: reads one object by name, ``None`` if it does not exist.  ``pages``: all objects in the namespace with their
    names, some at a time.  ``found``: converts a wanted object into what the caller gets.
    """

    get: Callable[[str], Awaitable[Info | None]]
    pages: Callable[[], AsyncGenerator[list[tuple[str, Info]]]]
    found: Callable[[Info], Found]
    concurrency: int
    progress: Progress

    async def read_many(self, names: Sequence[str]) -> list[Found | None]:
        """Each object, in order; ``None`` for one that does not exist.

        A call of its own looks up each object that List did not show.  List does not show one state in time, so an object
        may have changed meanwhile.
        """
        found: dict[str, Found] = {}
        if len(names) >= _WORTH_LISTING:
            await self._list(await in_thread(distinct, names), found)
        rest = await in_thread(_missing, names, found)
        infos = await fan_out(self.get, rest, concurrency=self.concurrency, progress=self.progress)
        return await in_thread(self._in_order, names, found, rest, infos)

    async def _list(self, wanted: set[str], found: dict[str, Found]) -> None:
        """List until all are found, or until single calls would have been quicker."""
        budget = _LISTED_PER_CALL * len(wanted)
        async with aclosing(self.pages()) as pages:
            async for page in pages:
                before = len(found)
                found.update((name, self.found(info)) for name, info in page if name in wanted)
                self.progress(len(found) - before)
                budget -= len(page)
                if len(found) == len(wanted) or budget <= 0:
                    return

    async def read_all(self, pages: AsyncGenerator[list[tuple[str, Info]]], is_wanted: Callable[[Info], bool]) -> list[Found]:
        """All objects of ``pages`` that are wanted, each once even if List starts again after an interruption.

        Reports no progress, because the total is unknown.
        """
        found: dict[str, Found] = {}
        async with aclosing(pages):
            async for page in pages:
                found.update((name, self.found(info)) for name, info in page if is_wanted(info))
        return await in_thread(_values, found)

    def _in_order(
        self, checkpoint: Checkpoint, names: Sequence[str], found: dict[str, Found], rest: list[str], infos: list[Info | None]
    ) -> list[Found | None]:
        for name, info in zip(rest, infos, strict=True):
            checkpoint()
            if info is not None:
                found[name] = self.found(info)
        ordered = []
        for name in names:
            checkpoint()
            ordered.append(found.get(name))
        return ordered


# Loops over all names run in worker threads, and not as one step in C: the event loop would have to wait for that step.


def distinct(checkpoint: Checkpoint, names: Sequence[str]) -> set[str]:
    """The names, each once."""
    found = set()
    for name in names:
        checkpoint()
        found.add(name)
    return found


def _values(checkpoint: Checkpoint, found: Mapping[str, Found]) -> list[Found]:
    values = []
    for value in found.values():
        checkpoint()
        values.append(value)
    return values


def _missing(checkpoint: Checkpoint, names: Sequence[str], found: Mapping[str, object]) -> list[str]:
    missing: dict[str, None] = {}
    for name in names:
        checkpoint()
        if name not in found:
            missing[name] = None
    return list(missing)
