"""Validated read access to the pages of one bolt file.

Pages are read with ``pread``, not through a memory map: a map turns a truncated file or a bad disk sector into SIGBUS, which
kills the embedding process, and faults pages in while holding the interpreter lock, which stalls its event loop.  See
docs/decisions/0001-pread-not-mmap.md.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from asyncmig.bolt import format as fmt
from asyncmig.bolt.files import status
from asyncmig.bolt.format import BRANCH, FREELIST, LEAF, NO_FREELIST, PAGE_HEADER, Malformed, Meta
from asyncmig.errors import CorruptDatabaseError, DatabaseError

Claim = Callable[[int, int], None]

_PAGE_SIZES = [fmt.MIN_PAGE_SIZE << i for i in range(15)]

# A file of holes may claim any size and costs its maker nothing, so memory beyond these is spent only on what is really there.
_FEW_PAGES = 1 << 20
"""Pages that a file may use whatever is on disk; a walk takes a byte for each."""
_BYTES_PER_PAGE = 8
"""What is on disk at least for each page of any real file: a used page was written whole, a free one is on the freelist.

Pages and not bytes are compared, because sound files may have large holes: what :func:`rebuild` makes of a database that had
shrunk has them wherever a page is free, and was seen with 441 bytes in use for each on disk.
"""
_SMALL_PAGE = 64 << 20
"""Bytes that a page may have with its overflow pages whatever is on disk."""
_HOLES_IN_PAGE = 4
"""How many times its data such a page may be large.  It was written whole, but file systems and copies may drop zeros."""


@dataclass(slots=True)
class Page:
    """One page and its overflow pages, header checked."""

    id: int
    flags: int
    count: int
    overflow: int
    image: bytes


class PageFile:
    """The committed state of a bolt file, read through a file descriptor that the caller keeps open.

    Every method raises :class:`CorruptDatabaseError` for bytes the format does not allow, :class:`DatabaseError` when the
    operating system cannot read them, and nothing else.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        found = status(fd, path)
        self.size = found.st_size
        self.allocated = found.st_blocks * 512
        """Bytes that the file takes on disk; blocks are counted in units of 512 bytes everywhere."""
        self.bad_meta: str | None = None
        """What is wrong with one of the meta pages while the other one is good, and what that means."""
        self.meta_offset = 0
        """Where the meta page of the committed state is."""
        self.meta = self._choose_meta()
        self.page_size = self.meta.page_size
        self.high_water_mark = self.meta.high_water_mark

    # -- the two meta pages

    def _choose_meta(self) -> Meta:
        problems: list[str] = []
        first = self._meta_at(0, problems)
        # With page 0 gone nobody tells the page size, so page 1 is looked for wherever it may be, as bbolt does.
        sizes = [first.page_size] if first else _PAGE_SIZES
        second = next((m for size in sizes if (m := self._meta_at(size, problems)) and m.page_size == size), None)
        metas = [m for m in (first, second) if m]
        if len(metas) == 1:
            page, cause = (1, problems[0] if problems else "another page size") if first else (0, problems[0])
            self.bad_meta = (
                f"meta page {page} is unusable ({cause}), so this is the state of the other one; "
                "if the bad one was the newer, the last commit is lost. "
                "'asyncmig db repair' writes a copy in which both are good"
            )
        if not metas:
            raise CorruptDatabaseError(self.path, None, f"invalid database, both meta pages are unusable: {problems[0]}")
        meta = max(metas, key=lambda m: m.txid)
        self.meta_offset = 0 if meta is first else meta.page_size
        self._check_meta(meta)
        return meta

    def _meta_at(self, offset: int, problems: list[str]) -> Meta | None:
        try:
            return fmt.parse_meta(self.read(fmt.META_SIZE, offset))
        except Malformed as problem:
            problems.append(str(problem))
            return None

    def _check_meta(self, meta: Meta) -> None:
        def corrupt(cause: str) -> CorruptDatabaseError:
            return CorruptDatabaseError(self.path, meta.txid % 2, cause)

        size, pages = meta.page_size, meta.high_water_mark
        if size not in _PAGE_SIZES:
            raise corrupt(f"page size {size} is not a power of two from {_PAGE_SIZES[0]} to {_PAGE_SIZES[-1]}")
        if pages * size > self.size:
            raise corrupt(f"the file is truncated: {pages} pages of {size} bytes in use, {self.size} bytes present")
        if not self._is_on_disk(pages, size):
            raise corrupt(
                f"{pages} pages of {size} bytes in use, but nearly all of the file is a hole: they were never written"
            )
        if meta.txid == fmt.MAX_UINT64:
            raise corrupt("the transaction id cannot be raised any more")
        if not 2 <= meta.root < pages:
            raise corrupt(f"root page {meta.root} is not between 2 and the high water mark {pages}")
        if meta.freelist != NO_FREELIST and not 2 <= meta.freelist < pages:
            raise corrupt(f"freelist page {meta.freelist} is not between 2 and the high water mark {pages}")

    # -- holes

    def _is_on_disk(self, pages: int, page_size: int) -> bool:
        """Whether as much of the file is on disk as so many pages take at least."""
        needed = pages * _BYTES_PER_PAGE
        if pages <= _FEW_PAGES or self.allocated >= needed:
            return True
        # What is on disk may be compressed.  ZFS counts it only seconds after it was written, other file systems never do.
        return self._has_data(0, pages * page_size, needed)

    def _has_data(self, start: int, end: int, enough: int) -> bool:
        """Whether ``enough`` of the bytes from ``start`` to ``end`` are no hole; ``True`` where that can't be told."""
        try:
            while enough > 0 and start < end:
                start = os.lseek(self.fd, start, os.SEEK_DATA)
                hole = os.lseek(self.fd, start, os.SEEK_HOLE)
                enough -= max(0, min(hole, end) - start)
                start = hole
        except OSError as error:
            return error.errno != errno.ENXIO  # which means that there are no more data
        return enough <= 0

    # -- pages

    def page(self, page_id: int, claim: Claim | None = None) -> Page:
        """Read a page with its overflow pages.

        ``claim`` is called with the page id and the end of its overflow pages before these are read, and may raise: in a
        damaged file every page may claim all pages behind it.
        """
        size = self.page_size
        if not 2 <= page_id < self.high_water_mark:
            raise self.corrupt(page_id, f"page id is not between 2 and the high water mark {self.high_water_mark}")
        image = self.read(size, page_id * size)
        if len(image) < size:
            raise self.corrupt(page_id, "the file ends within the page")
        stated, flags, count, overflow = PAGE_HEADER.unpack_from(image)
        if stated != page_id:
            raise self.corrupt(page_id, f"its header says page {stated}")
        if page_id + overflow >= self.high_water_mark:
            raise self.corrupt(page_id, f"{overflow} overflow pages reach past the high water mark {self.high_water_mark}")
        if claim:
            claim(page_id, page_id + overflow + 1)
        if overflow:
            image = self._with_overflow(page_id, overflow)
        return Page(page_id, flags, count, overflow, image)

    def _with_overflow(self, page_id: int, overflow: int) -> bytes:
        start, count = page_id * self.page_size, (overflow + 1) * self.page_size
        if count > _SMALL_PAGE and not self._has_data(start, start + count, count // _HOLES_IN_PAGE):
            raise self.corrupt(page_id, f"most of its {overflow} overflow pages are a hole: they were never written")
        image = self.read(count, start)
        if len(image) < count:
            raise self.corrupt(page_id, "the file ends within its overflow pages")
        return image

    def leaf(self, page: Page) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of a leaf page."""
        try:
            return fmt.decode_leaf(page.image, fmt.PAGE_HEADER_SIZE, page.count, len(page.image))
        except Malformed as problem:
            raise self.corrupt(page.id, str(problem)) from None
        except MemoryError:
            raise self.out_of_memory() from None

    def branch(self, page: Page) -> tuple[list[bytes], list[int]]:
        """Keys and child page ids of a branch page."""
        try:
            return fmt.decode_branch(page.image, page.count)
        except Malformed as problem:
            raise self.corrupt(page.id, str(problem)) from None
        except MemoryError:
            raise self.out_of_memory() from None

    def single_leaf(self, page_id: int) -> tuple[Sequence[bytes], Sequence[bytes]] | None:
        """Keys and values of a tree that is one leaf page without overflow pages, as most buckets are; ``None`` for others.

        The same as :meth:`tree_page` and :meth:`leaf` at half the cost.
        """
        size = self.page_size
        if not 2 <= page_id < self.high_water_mark:
            return None
        image = self.read(size, page_id * size)
        if len(image) < size:
            return None
        stated, flags, count, overflow = PAGE_HEADER.unpack_from(image)
        if stated != page_id or flags != LEAF or overflow:
            return None
        try:
            return fmt.decode_small_leaf(image, fmt.PAGE_HEADER_SIZE, count, size)
        except Malformed as problem:
            raise self.corrupt(page_id, str(problem)) from None
        except MemoryError:
            raise self.out_of_memory() from None

    def tree_page(self, page_id: int, claim: Claim | None = None) -> tuple[Page, bool]:
        """A page that must be a branch or a leaf, and whether it is a leaf."""
        page = self.page(page_id, claim)
        if page.flags not in (BRANCH, LEAF):
            raise self.corrupt(page_id, f"type {page.flags:#x} where a branch or leaf page should be")
        return page, page.flags == LEAF

    def freelist(self) -> list[int] | None:
        """Ids of the free pages, ascending; ``None`` when the file stores no freelist."""
        if self.meta.freelist == NO_FREELIST:
            return None
        try:
            page = self.page(self.meta.freelist)
        except CorruptDatabaseError as error:
            raise self.corrupt(error.page, error.detail, mendable=True) from None
        if page.flags != FREELIST:
            raise self.corrupt(page.id, f"type {page.flags:#x} where the freelist should be", mendable=True)
        try:
            return decode_freelist(page, self.high_water_mark)
        except Malformed as problem:
            raise self.corrupt(page.id, str(problem), mendable=True) from None
        except MemoryError:
            raise self.out_of_memory() from None

    def corrupt(self, page_id: int | None, cause: str, *, mendable: bool = False) -> CorruptDatabaseError:
        """The error for a page of this file."""
        return CorruptDatabaseError(self.path, page_id, cause, mendable=mendable)

    def out_of_memory(self) -> DatabaseError:
        """The error for a file that is too large for this machine."""
        return DatabaseError(self.path, f"not enough memory for a file with {self.size} bytes")

    def read(self, count: int, offset: int) -> bytes:
        """``pread``; fewer bytes at the end of the file."""
        try:
            return os.pread(self.fd, count, offset)
        except OverflowError:
            raise CorruptDatabaseError(self.path, None, f"offset {offset} is beyond any file") from None
        except MemoryError:
            raise self.out_of_memory() from None
        except OSError as error:
            raise DatabaseError(self.path, f"cannot read {count} bytes at {offset}: {error.strerror}") from error


def decode_freelist(page: Page, high_water_mark: int) -> list[int]:
    """Page ids of a freelist page.  Raises :class:`Malformed`.

    A count of 0xFFFF means that the first id is the real count (bbolt ``freelist.go``).
    """
    start, count = fmt.PAGE_HEADER_SIZE, page.count
    if count == 0xFFFF:
        count = int.from_bytes(page.image[start : start + 8], "little")
        start += 8
    if count > (len(page.image) - start) // 8:
        raise Malformed(f"{count} free pages do not fit on the freelist page")
    ids = list(memoryview(page.image)[start : start + 8 * count].cast("Q"))
    if any(a >= b for a, b in pairwise(ids)):
        ids.sort()
        if any(a == b for a, b in pairwise(ids)):
            raise Malformed("a page is on the freelist twice")
    if ids and not 2 <= ids[0] <= ids[-1] < high_water_mark:
        raise Malformed(f"free page {ids[0] if ids[0] < 2 else ids[-1]} is not between 2 and the high water mark")
    return ids


def encode_freelist(ids: list[int]) -> tuple[int, bytes]:
    """The ``count`` field and the payload of a freelist page."""
    count = len(ids)
    head = [] if count < 0xFFFF else [count]
    return min(count, 0xFFFF), struct.pack(f"<{len(head) + count}Q", *head, *ids)


def freelist_pages(count: int, page_size: int) -> int:
    """Pages that a freelist of ``count`` ids takes."""
    return -(-(fmt.PAGE_HEADER_SIZE + 8 * (count + 1)) // page_size)
