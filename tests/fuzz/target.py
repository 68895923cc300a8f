"""What a target is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that takes bytes from outside.

    ``run`` raises only if a promise is broken: for any bytes the code ends, in little time and memory, with a result or an
    ``AsyncmigError``, and what it says is consistent.  ``seeds`` are inputs to begin with, ``longest`` the most bytes of one
    that is made up.  ``words`` are pieces that mean something in it.  ``weight``: its share of the inputs of a campaign, more
    for what costs less.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    longest: int
    words: tuple[bytes, ...] = ()
    weight: int = 1
