"""What a store has, read once.

The files are locked, so what was read stays true until this process changes it.  To read all of a store in the order of its
keys costs less than to look up a fifth of it.
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
    """All objects of a store in the order of their names, and what is wrong with those whose labels can't be changed.

    What is known of each is kept as a tuple of numbers and strings, of which ``make`` makes an Info with the name: objects of
    their own would be gone through by Python's garbage collector again and again, while the event loop waits.
    """

    def __init__(self, make: Callable[..., Info_co]) -> None:
        self._make = make
        self.facts: dict[str, tuple[int | str | None, ...]] = {}
        self.faults: dict[str, str] = {}

    def get(self, name: str) -> Info_co | None:
        """What is known of the object; ``None`` if there is none."""
        facts = self.facts.get(name)
        return None if facts is None else self._make(name, *facts)

    def all(self) -> Iterator[Info_co]:
        """What is known of all objects."""
        return (self._make(name, *facts) for name, facts in self.facts.items())

    def forget(self, checkpoint: Checkpoint) -> None:
        """Drop everything."""
        drop(checkpoint, self.facts)

    def note(self, name: str, fault: str | None) -> None:
        """Note what is wrong with an object, if anything is."""
        if fault is not None:
            self.faults.setdefault(name, fault)

    def check(self, names: Iterable[str]) -> None:
        """Raise :class:`StoreError` if something is wrong with one of the objects."""
        for name in names if self.faults else ():
            if name in self.faults:
                raise StoreError(self.faults[name])


@contextmanager
def share_of(total: int, progress: Progress) -> Iterator[Progress]:
    """Report ``total`` items as dealt with, in the measure in which the items of a scan are, whose number is another one."""
    left = total

    def advance(count: int) -> None:
        nonlocal left
        step = min(count, left)
        left -= step
        if step:
            progress(step)

    yield advance
    advance(left)
