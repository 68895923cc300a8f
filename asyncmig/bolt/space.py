"""Choosing places for new pages, and writing the pages."""

from __future__ import annotations

import os
from collections.abc import Iterable

from asyncmig.bolt.format import BRANCH, LEAF, PAGE_HEADER, encode_branch, encode_leaf, encode_page
from asyncmig.errors import DatabaseError

_MAX_BUFFERS = 512  # below IOV_MAX (1024), the limit of one pwritev


class Space:
    """Hands out page ids: first free pages in ascending order, then pages from the high water mark on.

    ``high_water_mark`` grows as pages are handed out.
    """

    def __init__(self, free: Iterable[int], high_water_mark: int) -> None:
        self._runs = runs(free)[::-1]  # popped from the end, so ascending
        self._passed: list[tuple[int, int]] = []  # runs that were too short for a request; they stay free
        self._next = self._end = 0
        self.high_water_mark = high_water_mark

    def take(self, count: int = 1) -> int:
        """Hand out ``count`` consecutive pages; return the first."""
        if count == 1 and self._next < self._end:
            self._next += 1
            return self._next - 1
        while self._end - self._next < count:
            if not self._runs:
                first = self.high_water_mark
                self.high_water_mark += count
                return first
            if self._next < self._end:
                self._passed.append((self._next, self._end))
            self._next, self._end = self._runs.pop()
        first = self._next
        self._next += count
        return first

    def _rest(self) -> list[tuple[int, int]]:
        return [*self._passed, (self._next, self._end), *self._runs]

    def unused_count(self) -> int:
        """How many free pages were not handed out."""
        return sum(end - first for first, end in self._rest())

    def unused(self) -> list[int]:
        """Free pages that were not handed out, ascending."""
        return [i for first, end in sorted(self._rest()) for i in range(first, end)]


def runs(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending page ids as ``(first, end)`` runs."""
    result: list[tuple[int, int]] = []
    first = end = -1
    for i in ids:
        if i != end:
            if end > first:
                result.append((first, end))
            first = i
        end = i + 1
    if end > first:
        result.append((first, end))
    return result


class PageWriter:
    """Allocates pages from ``space`` and writes them; one system call writes a run of consecutive pages.

    Pages stay in a buffer until :meth:`flush`.  They are free pages or beyond the high water mark, so no committed page refers
    to them, and they may be written at any time before the commit.
    """

    def __init__(self, fd: int, path: str, page_size: int, space: Space) -> None:
        self.fd = fd
        self.path = path
        self.page_size = page_size
        self.space = space
        self._buffer: list[bytes] = []
        self._start = self._next = 0

    def write_leaf(self, keys: list[bytes], values: list[bytes]) -> int:
        """Write one leaf, with overflow pages if it needs any; return its page id."""
        return self._write(LEAF, len(keys), encode_leaf(keys, values))

    def write_encoded_leaf(self, count: int, payload: bytes) -> int:
        """Write one leaf whose elements are already encoded; return its page id."""
        return self._write(LEAF, count, payload)

    def write_leaf_body(self, count: int, body: bytes) -> int:
        """Write one leaf page, given without its header; return its page id."""
        page_id = self.space.take()
        self.put(page_id, PAGE_HEADER.pack(page_id, LEAF, count, 0) + body)
        return page_id

    def write_branch(self, keys: list[bytes], children: list[int]) -> int:
        """Write one branch; return its page id."""
        return self._write(BRANCH, len(keys), encode_branch(keys, children))

    def _write(self, flags: int, count: int, payload: bytes) -> int:
        pages = -(-(16 + len(payload)) // self.page_size)
        page_id = self.space.take(pages)
        self.put(page_id, encode_page(page_id, flags, count, payload, self.page_size))
        return page_id

    def put(self, page_id: int, image: bytes) -> None:
        """Write ``image``, a whole number of pages, at ``page_id``."""
        if page_id != self._next or len(self._buffer) >= _MAX_BUFFERS:
            self.flush()
            self._start = page_id
        self._buffer.append(image)
        self._next = page_id + len(image) // self.page_size

    def flush_page(self, page_id: int) -> None:
        """Flush if ``page_id`` is in the buffer."""
        if self._buffer and self._start <= page_id < self._next:
            self.flush()

    def flush(self) -> None:
        """Hand everything buffered to the operating system."""
        if self._buffer:
            write_all(self.fd, self.path, self._buffer, self._start * self.page_size)
            self._buffer.clear()
            self._start = self._next  # if the next page follows directly, put() appends it without setting _start


def write_all(fd: int, path: str, buffers: list[bytes], offset: int) -> None:
    """``pwritev`` until everything is written.  Raises :class:`DatabaseError`, for example if the disk is full."""
    wanted = sum(map(len, buffers))
    try:
        written = os.pwritev(fd, buffers, offset)
        if written < wanted:
            rest = memoryview(b"".join(buffers))
            while written < wanted:
                written += os.pwrite(fd, rest[written:], offset + written)
    except OSError as error:
        raise DatabaseError(path, f"cannot write {wanted} bytes at {offset}: {error.strerror}") from error
