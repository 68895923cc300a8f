"""Sorting without holding the interpreter lock for long.

``list.sort`` does not release the lock: sorting a million keys stops every other thread, also that of an embedding event loop,
for most of a second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item", str, bytes, int)
_STEP = 4096


def sorted_in_steps(items: list[Item]) -> Iterator[Item]:
    """The items in order.  Sorts them in parts of about 4,096, which takes about a millisecond each."""
    if len(items) <= _STEP:
        yield from sorted(items)
        return
    # Every n-th item of an arbitrary order is a fair sample, so the parts differ in size by a small factor only.
    pivots = sorted(items[:: _STEP // 4])[3::4]
    parts: list[list[Item]] = [[] for _ in range(len(pivots) + 1)]
    for item in items:
        parts[bisect_right(pivots, item)].append(item)
    for part in parts:
        part.sort()
        yield from part
