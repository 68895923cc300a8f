"""What a store has, read once.

The files are locked, so what was read stays true until this process changes it.  To read all of a store in the order of its
keys costs less than to look up a fifth of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from asyncmig.errors import StoreError
from asyncmig.stores.fanout import Progress

Info = TypeVar("Info")


@dataclass(slots=True)
class Scan(Generic[Info]):
    """All objects of a store in the order of their names, and what is wrong with those whose labels can't be changed."""

    infos: dict[str, Info] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, fault: str | None) -> None:
        """Note what is wrong with an object, if anything is."""
        if fault is not None:
            self.faults.setdefault(name, fault)

    def check(self, name: str) -> None:
        """Raise :class:`StoreError` if something is wrong with the object."""
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
