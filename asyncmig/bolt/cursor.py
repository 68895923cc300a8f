"""Cursors: moving through the keys of one bucket in order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncmig.bolt.format import BucketValue
from asyncmig.bolt.node import Node

if TYPE_CHECKING:
    from asyncmig.bolt.bucket import Bucket

Item = tuple[bytes, bytes | None]
"""A key and its value; the value of a nested bucket is ``None``, as in bbolt."""


@dataclass(slots=True)
class _Level:
    """One node on the path from the root to the current element, and the range of keys that it may hold."""

    node: Node
    index: int
    low: bytes | None
    high: bytes | None


_STALE = -1


class Cursor:
    """A position in a bucket.

    Unlike bbolt's, it stays valid when the bucket changes: :meth:`next` and :meth:`prev` move relative to the current key, even
    if that key was deleted meanwhile.  At either end the cursor stays on the last key it found.
    """

    __slots__ = ("_bucket", "_key", "_levels", "_version")

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._levels: list[_Level] = []
        self._key: bytes | None = None
        self._version = _STALE

    def first(self) -> Item | None:
        """Go to the first key; ``None`` if the bucket is empty."""
        return self.seek(b"")

    def last(self) -> Item | None:
        """Go to the last key; ``None`` if the bucket is empty."""
        self._start()
        self._descend_to_last()
        return self._current() if self._levels[-1].index >= 0 or self._to_previous_leaf() else self._stay()

    def seek(self, key: bytes) -> Item | None:
        """Go to ``key`` or, if it does not exist, to the next key after it; ``None`` if there is none."""
        self._position(key)
        if self._on_element() or self._to_next_leaf():
            return self._current()
        self._key, self._version = key, _STALE
        return None

    def next(self) -> Item | None:
        """Go to the next key; ``None`` after the last one.  A new cursor goes to the first key."""
        key = self._key
        if key is None:
            return self.first()
        if self._is_stale():
            self._position(key)
            if not self._on_element() and not self._to_next_leaf():
                return self._stay()
            if self._current()[0] != key:
                return self._current()
        self._levels[-1].index += 1
        return self._current() if self._on_element() or self._to_next_leaf() else self._stay()

    def prev(self) -> Item | None:
        """Go to the previous key; ``None`` before the first one, and on a new cursor."""
        key = self._key
        if key is None:
            return None
        if self._is_stale():
            self._position(key)
        self._levels[-1].index -= 1
        return self._current() if self._levels[-1].index >= 0 or self._to_previous_leaf() else self._stay()

    # -- the stack of levels

    def _is_stale(self) -> bool:
        self._bucket.check_open()
        return self._version != self._bucket.version

    def _stay(self) -> Item | None:
        """Stay on the current key.  The levels have run past the end, so the next move has to seek the key again."""
        self._version = _STALE
        return None

    def _start(self) -> None:
        self._bucket.check_open()
        self._version = self._bucket.version
        self._levels = [_Level(self._bucket.root_node(), 0, None, None)]

    def _position(self, key: bytes) -> None:
        """Go to the leaf for ``key``, to the first element that is not less than ``key`` (perhaps past the last element)."""
        self._start()
        level = self._levels[-1]
        while not level.node.leaf:
            level.index = max(bisect_right(level.node.keys, key) - 1, 0)
            level = self._push_child()
        level.index = bisect_left(level.node.keys, key)

    def _push_child(self) -> _Level:
        above = self._levels[-1]
        keys, i = above.node.keys, above.index
        # Only pages fresh from the file are checked against this range.  The first child of a changed node may hold smaller
        # keys, but then that child was changed, too.
        high = keys[i + 1] if i + 1 < len(keys) else above.high
        node = self._bucket.child_node(above.node, i, keys[i], high, len(self._levels))
        self._levels.append(_Level(node, 0, keys[i], high))
        return self._levels[-1]

    def _descend_to_first(self) -> None:
        while not self._levels[-1].node.leaf:
            self._push_child()

    def _descend_to_last(self) -> None:
        level = self._levels[-1]
        level.index = len(level.node.keys) - 1
        while not level.node.leaf:
            level = self._push_child()
            level.index = len(level.node.keys) - 1

    def _on_element(self) -> bool:
        return self._levels[-1].index < len(self._levels[-1].node.keys)

    def _to_next_leaf(self) -> bool:
        """Go to the first element of the next leaf that has any; skip leaves that the transaction has emptied."""
        while self._levels:
            self._levels.pop()
            if self._levels and self._levels[-1].index + 1 < len(self._levels[-1].node.keys):
                self._levels[-1].index += 1
                self._descend_to_first()
                if self._on_element():
                    return True
        return False

    def _to_previous_leaf(self) -> bool:
        while self._levels:
            self._levels.pop()
            if self._levels and self._levels[-1].index > 0:
                self._levels[-1].index -= 1
                self._push_child()
                self._descend_to_last()
                if self._levels[-1].index >= 0:
                    return True
        return False

    def _current(self) -> Item:
        level = self._levels[-1]
        self._key = key = level.node.keys[level.index]
        value = level.node.data[level.index]
        return key, None if type(value) is BucketValue else value
