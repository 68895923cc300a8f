"""Choices out of the bytes of an input: whatever they are, they mean something, and a small change changes one choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Hands the bytes of an input out.  Behind their end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes have been handed out."""
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """As many bytes, fewer at the end."""
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int = 1) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.number(1 if len(choices) <= 256 else 2) % len(choices)]

    def text(self) -> bytes:
        """Some bytes, preceded by their number."""
        return self.take(self.number())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(max(0, len(self._data) - self._at))
