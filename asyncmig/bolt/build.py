"""Building buckets in bulk from entries that arrive in key order.

Each page is filled completely and written once.  So this is several times faster than a transaction, and needs memory for one
page per level only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from asyncmig.bolt import format as fmt
from asyncmig.bolt.bucket import Bucket, split
from asyncmig.bolt.files import sync_all
from asyncmig.bolt.format import BucketValue, encode_bucket, inline_value
from asyncmig.bolt.pagefile import encode_freelist, freelist_pages
from asyncmig.bolt.space import PageWriter, Space, write_all
from asyncmig.errors import BucketError, DatabaseError


class BucketBuilder:
    """Builds one bucket.  Keys must come in strictly ascending order.

    Raises :class:`BucketError` for keys out of order or of a wrong size.
    """

    __slots__ = ("_keys", "_kids", "_last", "_page_size", "_sequence", "_size", "_values", "_writer")

    def __init__(self, writer: PageWriter, sequence: int = 0) -> None:
        self._writer = writer
        self._page_size = writer.page_size
        self._sequence = sequence
        self._keys: list[bytes] = []
        self._values: list[bytes] = []
        self._size = fmt.PAGE_HEADER_SIZE
        self._last = b""
        self._kids: list[tuple[bytes, int]] = []

    def put(self, key: bytes, value: bytes) -> None:
        """Add a key.  A :class:`BucketValue` makes it a nested bucket."""
        if key <= self._last or len(key) > fmt.MAX_KEY_SIZE:
            raise BucketError(_complaint(key, self._last))
        size = fmt.ELEMENT_SIZE + len(key) + len(value)
        if self._keys and (self._size + size > self._page_size or len(self._keys) == fmt.MAX_ELEMENTS):
            self._cut()
        self._keys.append(key)
        self._values.append(value)
        self._size += size
        self._last = key

    def child(self, sequence: int = 0) -> BucketBuilder:
        """A builder for a nested bucket.  Pass the result of its :meth:`finish` to :meth:`put`."""
        return BucketBuilder(self._writer, sequence)

    def leaf_bucket(self, keys: list[bytes], values: list[bytes], sequence: int) -> BucketValue:
        """Write a nested bucket from sorted keys; the fast way for small buckets."""
        return write_small_bucket(self._writer, keys, values, sequence)

    def finish(self) -> BucketValue:
        """Write what is left; return the value for the parent bucket."""
        if not self._kids:
            return self.leaf_bucket(self._keys, self._values, self._sequence)
        return encode_bucket(self.finish_pages(), self._sequence)

    def finish_pages(self) -> int:
        """Write what is left, never inline; return the root page."""
        if self._keys or not self._kids:
            self._cut()
        return write_branches(self._writer, self._kids)

    def _cut(self) -> None:
        first = self._keys[0] if self._keys else b""
        self._kids.append((first, self._writer.write_leaf(self._keys, self._values)))
        self._keys, self._values, self._size = [], [], fmt.PAGE_HEADER_SIZE


def write_small_bucket(writer: PageWriter, keys: list[bytes], values: list[bytes], sequence: int) -> BucketValue:
    """Write a bucket from sorted keys; return the value for its parent.

    Raises :class:`BucketError` for a key of a wrong size.
    """
    count = len(keys)
    if keys and not keys[0]:
        raise BucketError(_complaint(b"", b""))
    if count <= fmt.MAX_ELEMENTS:
        payload, nested = fmt.encode_small_leaf(keys, values)
        size = fmt.PAGE_HEADER_SIZE + len(payload)
        if size > fmt.MAX_KEY_SIZE:
            _check_lengths(keys)
        if size <= writer.page_size // 4 and not nested:
            return inline_value(count, payload, sequence)
        if size <= writer.page_size:
            return encode_bucket(writer.write_encoded_leaf(count, payload), sequence)
    else:
        _check_lengths(keys)
    sizes = [fmt.ELEMENT_SIZE + len(k) + len(v) for k, v in zip(keys, values, strict=True)]
    kids = [(keys[a], writer.write_leaf(keys[a:b], values[a:b])) for a, b in split(sizes, writer.page_size, 1.0)]
    return encode_bucket(write_branches(writer, kids), sequence)


def write_branches(writer: PageWriter, level: list[tuple[bytes, int]]) -> int:
    """Write the branches above the pages of one level, given with their first keys; return the root page."""
    while len(level) > 1:
        sizes = [fmt.ELEMENT_SIZE + len(k) for k, _ in level]
        level = [
            (level[a][0], writer.write_branch([k for k, _ in level[a:b]], [p for _, p in level[a:b]]))
            for a, b in split(sizes, writer.page_size, 1.0)
        ]
    return level[0][1]


def _check_lengths(keys: list[bytes]) -> None:
    longest = max(keys, key=len)
    if len(longest) > fmt.MAX_KEY_SIZE:
        raise BucketError(_complaint(longest, b""))


def _complaint(key: bytes, last: bytes) -> str:
    if not 0 < len(key) <= fmt.MAX_KEY_SIZE:
        return f"a key of {len(key)} bytes; 1 to {fmt.MAX_KEY_SIZE} are allowed"
    return f"key {key[:64]!r} does not follow {last[:64]!r}"


Fill = Callable[[BucketBuilder], None]


def build_bucket(parent: Bucket, name: bytes, fill: Fill) -> None:
    """Create the bucket ``name`` in ``parent``, within its transaction, from entries that ``fill`` adds in key order.

    Has the same effect as creating the bucket and putting the entries, but small buckets cost half as much, and pages are full.
    Raises :class:`BucketError` if the key exists.  Any error ends the transaction.
    """
    with parent.tx.indivisible():
        builder = BucketBuilder(parent.tx.writer)
        fill(builder)
        parent.put_new_bucket(name, builder.finish())


def build_file(fd: int, path: str, buckets: Mapping[bytes, Fill], *, page_size: int = 4096) -> None:
    """Write a whole new database into the empty file ``fd`` and sync it.

    ``buckets`` has a function for each top-level bucket, which fills it.  Raises :class:`DatabaseError` and
    :class:`BucketError`.
    """
    writer = PageWriter(fd, path, page_size, Space([], 2))
    top = BucketBuilder(writer)
    for name in sorted(buckets):
        builder = top.child()
        buckets[name](builder)
        top.put(name, builder.finish())
    finish_file(writer, top.finish_pages(), sequence=0, flags=0, txid=1)


def finish_file(writer: PageWriter, root: int, *, sequence: int, flags: int, txid: int) -> None:
    """Complete a new file whose trees are written: write the freelist and both meta pages, set the length, sync."""
    page_size, space = writer.page_size, writer.space
    free = space.unused()
    count = freelist_pages(len(free), page_size)
    page = space.high_water_mark
    space.high_water_mark += count
    stated, payload = encode_freelist(free)
    image = fmt.encode_page(
        page, fmt.FREELIST, stated, payload.ljust(count * page_size - fmt.PAGE_HEADER_SIZE, b"\0"), page_size
    )
    writer.put(page, image)
    writer.flush()
    for number in (txid - 1, txid):
        meta = fmt.Meta(page_size, flags, root, sequence, page, space.high_water_mark, number)
        write_all(writer.fd, writer.path, [meta.pack().ljust(page_size, b"\0")], number % 2 * page_size)
    try:
        os.ftruncate(writer.fd, space.high_water_mark * page_size)
    except OSError as error:
        raise DatabaseError(writer.path, f"cannot complete the file: {error.strerror}") from error
    sync_all(writer.fd, writer.path)
