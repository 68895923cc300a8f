"""Everything that a store has, read once.

The files are locked, so what was read stays true until this process changes it.  Reading a whole store in key order costs less
than looking up a fifth of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import drop
from asyncmig.errors import StoreError
from asyncmig.stores.fanout import Progress

Info_co = TypeVar("Info_co", covariant=True)


class Scan(Generic[Info_co]):
    """All objects of a store in the order of their names, and what is wrong with objects whose labels can't be changed.

    The facts about each object are kept as a tuple of numbers and strings; ``make`` turns the name and the tuple into an Info.
    Python's garbage collector would go through full objects again and again, while the event loop waits.
    """

    def __init__(self, make: Callable[..., Info_co]) -> None:
        self._make = make
        self.facts: dict[str, tuple[int | str | None, ...]] = {}
        self.faults: dict[str, str] = {}

    def get(self, name: str) -> Info_co | None:
        """Info of the object; ``None`` if it does not exist."""
        facts = self.facts.get(name)
        return None if facts is None else self._make(name, *facts)

    def all(self) -> Iterator[Info_co]:
        """Info of every object."""
        return (self._make(name, *facts) for name, facts in self.facts.items())

    def forget(self, checkpoint: Checkpoint) -> None:
        """Drop everything."""
        drop(checkpoint, self.facts)

    def note(self, name: str, fault: str | None) -> None:
        """Remember what is wrong with an object, if anything is."""
        if fault is not None:
            self.faults.setdefault(name, fault)

    def check(self, names: Iterable[str]) -> None:
        """Raise :class:`StoreError` if anything is wrong with one of the objects."""
        for name in names if self.faults else ():
            if name in self.faults:
                raise StoreError(self.faults[name])


@contextmanager
def share_of(total: int, progress: Progress) -> Iterator[Progress]:
    """Report ``total`` items as done while a scan advances, although the scan may go through more or fewer items."""
    left = total

    def advance(count: int) -> None:
        nonlocal left
        step = min(count, left)
        left -= step
        if step:
            progress(step)

    yield advance
    advance(left)
