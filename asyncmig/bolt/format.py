"""Constants, headers and element tables of the bbolt file format, version 2.

A file is a row of pages.  Pages 0 and 1 are meta pages; the one with the higher transaction id is the committed state.  The
others are branch, leaf or freelist pages, each possibly followed by overflow pages.  All numbers are little-endian (bbolt
writes them in the byte order of its host; big-endian hosts are not supported here).

Sources: etcd-io/bbolt ``page.go``, ``db.go``, ``bucket.go``, ``node.go``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from operator import add, lt

MAGIC = 0xED0CDAED
VERSION = 2

BRANCH = 0x01
LEAF = 0x02
META = 0x04
FREELIST = 0x10

BUCKET_FLAG = 0x01
NO_FREELIST = 0xFFFF_FFFF_FFFF_FFFF
"""``Meta.freelist`` of a file written with NoFreelistSync, as containerd 1.7 and later do."""

MIN_PAGE_SIZE = 1024
MAX_PAGE_SIZE = 1 << 24
MAX_KEY_SIZE = 32768
MAX_VALUE_SIZE = (1 << 31) - 2
MAX_ELEMENTS = 0xFFFE
"""The element count of a page has 16 bits; only pages of a megabyte and more can reach this."""
MAX_UINT64 = 0xFFFF_FFFF_FFFF_FFFF
MAX_TREE_DEPTH = 40
"""Levels of branch pages.  Each has at least two children in files that bbolt wrote, so 40 is beyond any real file."""

PAGE_HEADER = struct.Struct("<QHHI")  # id, flags, count, overflow
PAGE_HEADER_SIZE = PAGE_HEADER.size
BUCKET_HEADER = struct.Struct("<QQ")  # root page (0: inline), sequence
BUCKET_HEADER_SIZE = BUCKET_HEADER.size
ELEMENT_SIZE = 16
INLINE_PREFIX = BUCKET_HEADER_SIZE + PAGE_HEADER_SIZE

_META_BODY = struct.Struct("<IIIIQQQQQ")  # magic version page_size flags root sequence freelist high_water_mark txid
_CHECKSUM = struct.Struct("<Q")
META_SIZE = PAGE_HEADER_SIZE + _META_BODY.size + _CHECKSUM.size


class Malformed(ValueError):
    """Bytes that the format does not allow.  Internal: callers that know file and page turn it into CorruptDatabaseError."""


class BucketValue(bytes):
    """The value of an element whose bucket flag is set: bucket header, then the page image if the bucket is inline."""

    __slots__ = ()

    @property
    def root(self) -> int:
        """Id of the root page, 0 for an inline bucket."""
        return int.from_bytes(self[:8], "little")

    @property
    def sequence(self) -> int:
        """The bucket's sequence number."""
        return int.from_bytes(self[8:16], "little")


@dataclass(frozen=True, slots=True)
class Meta:
    """One committed state of a file."""

    page_size: int
    flags: int
    root: int
    sequence: int
    freelist: int
    high_water_mark: int
    txid: int

    def pack(self) -> bytes:
        """The first :data:`META_SIZE` bytes of the meta page this state belongs into (``txid % 2``)."""
        body = _META_BODY.pack(
            MAGIC,
            VERSION,
            self.page_size,
            self.flags,
            self.root,
            self.sequence,
            self.freelist,
            self.high_water_mark,
            self.txid,
        )
        return PAGE_HEADER.pack(self.txid % 2, META, 0, 0) + body + _CHECKSUM.pack(fnv64a(body))


def parse_meta(image: bytes) -> Meta:
    """Read a meta page.  Raises :class:`Malformed` for one that bbolt would not accept either."""
    if len(image) < META_SIZE:
        raise Malformed("too short for a meta page")
    body = image[PAGE_HEADER_SIZE : PAGE_HEADER_SIZE + _META_BODY.size]
    magic, version, page_size, flags, root, sequence, freelist, high_water_mark, txid = _META_BODY.unpack(body)
    if magic != MAGIC:
        raise Malformed("wrong magic number")
    if version != VERSION:
        raise Malformed(f"version {version} instead of {VERSION}")
    if _CHECKSUM.unpack_from(image, META_SIZE - 8)[0] != fnv64a(body):
        raise Malformed("wrong checksum")
    return Meta(page_size, flags, root, sequence, freelist, high_water_mark, txid)


def fnv64a(data: bytes) -> int:
    """FNV-1a with 64 bits, the checksum of meta pages."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFF_FFFF_FFFF_FFFF
    return value


@lru_cache(maxsize=4096)
def _leaf_table(count: int) -> struct.Struct:
    return struct.Struct(f"<{4 * count}I")


@lru_cache(maxsize=4096)
def _branch_table(count: int) -> struct.Struct:
    return struct.Struct("<" + "IIQ" * count)


def _element_starts(positions: Sequence[int], sizes: list[int], table: int, count: int, end: int) -> list[int]:
    """Offsets of the elements' data; ``table`` is where the element table starts, ``end`` where the page ends.

    bbolt lays data out back to back in element order, and then one comparison proves every bound.  Any other layout is
    legal as long as it stays on the page; that the sizes add up to no more than the page keeps a hostile table, in which
    all elements name the same megabytes, from multiplying them.
    """
    table_end = table + ELEMENT_SIZE * count
    packed = list(accumulate(sizes, initial=table_end))
    if packed.pop() > end:
        raise Malformed("elements are larger than their page")
    starts = list(map(add, positions, range(table, table_end, ELEMENT_SIZE)))
    if starts != packed:
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            if start < table_end or start + size > end:
                raise Malformed(f"element {i} lies outside its page")
    return starts


def _check_keys(keys: list[bytes], sizes: Sequence[int]) -> None:
    if min(sizes) == 0:
        raise Malformed(f"element {sizes.index(0)} has an empty key")
    if max(sizes) > MAX_KEY_SIZE:
        raise Malformed(f"element {next(i for i, n in enumerate(sizes) if n > MAX_KEY_SIZE)} has a key that is too long")
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise Malformed("keys are out of order")


def _check_table(count: int, table: int, end: int) -> None:
    if table + ELEMENT_SIZE * count > end:
        raise Malformed("the element table is larger than its page")


def decode_leaf(image: bytes, table: int, count: int, end: int) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of a leaf, strictly ascending.  Values of nested buckets are :class:`BucketValue`.

    ``table`` is the offset of the element table in ``image``: behind the page header, for an inline bucket behind both
    headers.  Raises :class:`Malformed`.
    """
    _check_table(count, table, end)
    if count == 0:
        return [], []
    raw = _leaf_table(count).unpack_from(image, table)
    flags, key_sizes, value_sizes = raw[0::4], raw[2::4], raw[3::4]
    starts = _element_starts(raw[1::4], list(map(add, key_sizes, value_sizes)), table, count, end)
    middles = list(map(add, starts, key_sizes))
    keys = [image[a:b] for a, b in zip(starts, middles, strict=True)]
    values = [image[b : b + n] for b, n in zip(middles, value_sizes, strict=True)]
    _check_keys(keys, key_sizes)
    if any(flags):
        _mark_buckets(flags, values)
    return keys, values


def _mark_buckets(flags: Sequence[int], values: list[bytes]) -> None:
    for i, flag in enumerate(flags):
        if flag == BUCKET_FLAG:
            values[i] = value = BucketValue(values[i])
            if len(value) < (BUCKET_HEADER_SIZE if any(value[:8]) else INLINE_PREFIX):
                raise Malformed(f"element {i} is a bucket of only {len(value)} bytes")
        elif flag:
            raise Malformed(f"element {i} has unknown flags {flag:#x}")


def decode_inline(value: BucketValue) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of an inline bucket.  Raises :class:`Malformed`.

    bbolt's own check passes inline buckets over; all records of a small cache are inline buckets.
    """
    _, flags, count, overflow = PAGE_HEADER.unpack_from(value, BUCKET_HEADER_SIZE)
    if flags != LEAF or overflow:
        raise Malformed("an inline bucket is not one leaf page")
    keys, values = decode_leaf(value, INLINE_PREFIX, count, len(value))
    if BucketValue in set(map(type, values)):
        raise Malformed("a bucket inside an inline bucket")
    return keys, values


def decode_branch(image: bytes, count: int) -> tuple[list[bytes], list[int]]:
    """Keys and child page ids of a branch page.  Raises :class:`Malformed`."""
    _check_table(count, PAGE_HEADER_SIZE, len(image))
    if count == 0:
        raise Malformed("a branch page without children")
    raw = _branch_table(count).unpack_from(image, PAGE_HEADER_SIZE)
    sizes = raw[1::3]
    starts = _element_starts(raw[0::3], list(sizes), PAGE_HEADER_SIZE, count, len(image))
    keys = [image[a : a + n] for a, n in zip(starts, sizes, strict=True)]
    _check_keys(keys, sizes)
    return keys, list(raw[2::3])


def leaf_size(keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    """Bytes of a leaf page with these elements, header included."""
    return PAGE_HEADER_SIZE + ELEMENT_SIZE * len(keys) + sum(map(len, keys)) + sum(map(len, values))


def encode_leaf(keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Element table and data of a leaf page, without its header."""
    count = len(keys)
    key_sizes = list(map(len, keys))
    value_sizes = list(map(len, values))
    table = [0] * (4 * count)
    table[1::4] = _positions(list(map(add, key_sizes, value_sizes)), count)
    table[2::4] = key_sizes
    table[3::4] = value_sizes
    if BucketValue in set(map(type, values)):
        table[0::4] = [BUCKET_FLAG if type(v) is BucketValue else 0 for v in values]
    data = [b""] * (2 * count)
    data[0::2] = keys
    data[1::2] = values
    return b"".join((_leaf_table(count).pack(*table), *data))


def encode_branch(keys: Sequence[bytes], children: Sequence[int]) -> bytes:
    """Element table and keys of a branch page, without its header."""
    count = len(keys)
    sizes = list(map(len, keys))
    table = [0] * (3 * count)
    table[0::3] = _positions(sizes, count)
    table[1::3] = sizes
    table[2::3] = children
    return b"".join((_branch_table(count).pack(*table), *keys))


def _positions(sizes: list[int], count: int) -> list[int]:
    """``pos`` of each element: the distance from its table entry to its data."""
    return list(islice(accumulate((n - ELEMENT_SIZE for n in sizes), initial=ELEMENT_SIZE * count), count))


def encode_page(page_id: int, flags: int, count: int, payload: bytes, page_size: int) -> bytes:
    """A whole page, with as many overflow pages as ``payload`` needs, padded with zeros."""
    total = PAGE_HEADER_SIZE + len(payload)
    pages = -(-total // page_size)
    return b"".join((PAGE_HEADER.pack(page_id, flags, count, pages - 1), payload, bytes(pages * page_size - total)))


def encode_inline(keys: Sequence[bytes], values: Sequence[bytes], sequence: int) -> BucketValue:
    """The value of an inline bucket."""
    return BucketValue(BUCKET_HEADER.pack(0, sequence) + PAGE_HEADER.pack(0, LEAF, len(keys), 0) + encode_leaf(keys, values))


def encode_bucket(root: int, sequence: int) -> BucketValue:
    """The value of a bucket with a root page of its own."""
    return BucketValue(BUCKET_HEADER.pack(root, sequence))


def empty_image(page_size: int) -> bytes:
    """The four pages that bbolt writes into a file of 0 bytes: two metas, an empty freelist, an empty root leaf."""
    metas = (Meta(page_size, 0, 3, 0, 2, 4, txid).pack().ljust(page_size, b"\0") for txid in (0, 1))
    return b"".join((*metas, encode_page(2, FREELIST, 0, b"", page_size), encode_page(3, LEAF, 0, b"", page_size)))
