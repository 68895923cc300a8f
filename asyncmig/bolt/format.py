"""Constants, headers and element tables of the bbolt file format, version 2.

A file is a sequence of pages.  Pages 0 and 1 are meta pages; the one with the higher transaction id is the committed state.
The others are branch, leaf or freelist pages, each possibly followed by overflow pages.  All numbers are little-endian: bbolt
uses the byte order of its host, and this package does not support big-endian hosts.

Sources: etcd-io/bbolt ``page.go``, ``db.go``, ``bucket.go``, ``node.go``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from operator import add, itemgetter, lt, sub

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
"""The element count of a page has 16 bits; only a page of a megabyte or more can reach this limit."""
MAX_UINT64 = 0xFFFF_FFFF_FFFF_FFFF
MAX_TREE_DEPTH = 40
"""Levels of branch pages.  Each has at least two children in files that bbolt wrote, so 40 is beyond any real file."""

PAGE_HEADER = struct.Struct("<QHHI")  # id, flags, count, overflow
PAGE_HEADER_SIZE = PAGE_HEADER.size
BUCKET_HEADER = struct.Struct("<QQ")  # root page (0: inline), sequence
BUCKET_HEADER_SIZE = BUCKET_HEADER.size
ELEMENT_SIZE = 16
INLINE_PREFIX = BUCKET_HEADER_SIZE + PAGE_HEADER_SIZE

_ELEMENT = struct.Struct("<IIII")  # of a leaf: flags, position, key size, value size
_META_BODY = struct.Struct("<IIIIQQQQQ")  # magic version page_size flags root sequence freelist high_water_mark txid
_CHECKSUM = struct.Struct("<Q")
META_SIZE = PAGE_HEADER_SIZE + _META_BODY.size + _CHECKSUM.size


class Malformed(ValueError):
    """Bytes that the format does not allow.

    Internal: callers that know the file and the page turn it into :class:`CorruptDatabaseError`.
    """


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
        """The first :data:`META_SIZE` bytes of this state's meta page, which is page ``txid % 2``."""
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
    """Read a meta page.  Raises :class:`Malformed` if bbolt would not accept the page either."""
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


def _branch_table(count: int) -> struct.Struct:
    return _remembered_branch_table(count) if count <= _MOST_CHILDREN else _new_branch_table(count)


def _new_branch_table(count: int) -> struct.Struct:
    return struct.Struct("<" + "IIQ" * count)


_MOST_CHILDREN = 1024
"""Remember the struct for a branch page's table if the page has up to so many children, all that 16 KiB can hold.

A struct takes a hundred bytes per child.  For a hostile file with pages of megabytes, all structs would take gigabytes.
"""
_remembered_branch_table = lru_cache(maxsize=_MOST_CHILDREN)(_new_branch_table)


def _element_starts(positions: Sequence[int], sizes: list[int], table: int, count: int, end: int) -> list[int]:
    """Offsets of the elements' data; ``table`` is where the element table starts, ``end`` where the page ends.

    bbolt puts the data of the elements one after the other, in order; then one comparison proves every bound.  Any other
    layout is legal as long as it stays within the page.  The sizes must not add up to more than the page: otherwise a hostile
    table, in which all elements name the same megabytes, would multiply them in memory.
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


def _check_key_sizes(sizes: Sequence[int]) -> None:
    if min(sizes) == 0:
        raise Malformed(f"element {sizes.index(0)} has an empty key")
    if max(sizes) > MAX_KEY_SIZE:
        raise Malformed(f"element {next(i for i, n in enumerate(sizes) if n > MAX_KEY_SIZE)} has a key that is too long")


def _check_order(keys: Sequence[bytes]) -> None:
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise Malformed("keys are out of order")


def _check_table(count: int, table: int, end: int) -> None:
    if table + ELEMENT_SIZE * count > end:
        raise Malformed("the element table is larger than its page")


class _Layout:
    """Where the keys and values of a leaf are, for all leaves with the same element table.

    The records of a cache have few layouts: the same keys, and values of similar length.  What follows from the table alone is
    checked once per layout.  The order of the keys is not checked again if the leaf has the same keys as the leaf before.
    """

    __slots__ = ("buckets", "end", "keys", "known_keys", "values")

    def __init__(self, elements: _Elements, table_end: int) -> None:
        self.keys = itemgetter(*map(slice, elements.starts, elements.middles))
        self.values = itemgetter(*map(slice, elements.middles, elements.ends))
        self.buckets = tuple(elements.buckets)
        # The sizes must not add up to more than the page, see _element_starts; overlapping ones add up to more than their ends.
        self.end = max(table_end + sum(map(sub, elements.ends, elements.starts)), *elements.ends)
        self.known_keys: tuple[bytes, ...] = ()


class _Elements:
    """Where the keys and values of one leaf are: offsets in its image, and which elements are nested buckets."""

    __slots__ = ("buckets", "ends", "middles", "starts")

    def __init__(self, image: bytes, table: int, count: int, end: int) -> None:
        raw = _leaf_table(count).unpack_from(image, table)
        flags, key_sizes, value_sizes = raw[0::4], raw[2::4], raw[3::4]
        self.starts = _element_starts(raw[1::4], list(map(add, key_sizes, value_sizes)), table, count, end)
        _check_key_sizes(key_sizes)
        self.middles = list(map(add, self.starts, key_sizes))
        self.ends = list(map(add, self.middles, value_sizes))
        self.buckets = _bucket_elements(flags) if any(flags) else ()


_MOST_SHARED = 32
"""Leaves with up to so many elements share layouts."""
_MOST_LAYOUTS = 1024
_LARGEST_REMEMBERED = 16384
"""Keep the keys of a leaf with its layout if the leaf has up to so many bytes.

Without this limit, a hostile file could make us keep as much as the file is large.
"""
_layouts: dict[int, dict[bytes, _Layout | None]] = {PAGE_HEADER_SIZE: {}, INLINE_PREFIX: {}}
"""Layouts by the offset of the element table and by the table; ``None`` for a table that was seen once."""


def decode_leaf(image: bytes, table: int, count: int, end: int) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of a leaf, strictly ascending.  Values of nested buckets are :class:`BucketValue`.

    ``table`` is the offset of the element table in ``image``: after the page header, or in an inline bucket after the bucket
    header and the page header.  Raises :class:`Malformed`.
    """
    keys, values = decode_small_leaf(image, table, count, end)
    return list(keys), list(values)


def decode_small_leaf(image: bytes, table: int, count: int, end: int) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """:func:`decode_leaf` for callers that do not change the result."""
    if count < 2:
        return _decode_one(image, table, end) if count else ((), ())
    layout = _shared_layout(image, table, count, end) if count <= _MOST_SHARED else None
    if layout is None:
        return _decode_any(image, table, count, end)
    keys = layout.keys(image)
    known = layout.known_keys  # read once: another thread may change it at any time
    if keys == known:
        keys = known
    else:
        _check_order(keys)
        if layout.end <= _LARGEST_REMEMBERED:
            layout.known_keys = keys
    values = layout.values(image)
    if layout.buckets:
        values = list(values)
        for i in layout.buckets:
            values[i] = _bucket_value(values[i], i)
    return keys, values


def _decode_any(image: bytes, table: int, count: int, end: int) -> tuple[list[bytes], list[bytes]]:
    _check_table(count, table, end)
    elements = _Elements(image, table, count, end)
    keys = [image[a:b] for a, b in zip(elements.starts, elements.middles, strict=True)]
    values = [image[a:b] for a, b in zip(elements.middles, elements.ends, strict=True)]
    _check_order(keys)
    for i in elements.buckets:
        values[i] = _bucket_value(values[i], i)
    return keys, values


def _shared_layout(image: bytes, table: int, count: int, end: int) -> _Layout | None:
    """The layout of a leaf whose table was seen before; ``None`` otherwise.

    Making a layout costs as much as it saves the next two times, so it is made when a table is seen for the second time.
    """
    known = _layouts[table]
    name = image[table : table + ELEMENT_SIZE * count]
    layout = known.get(name)
    if layout is not None:
        return layout if layout.end <= end else None  # decoding it the long way raises the error
    if name in known:
        _check_table(count, table, end)
        known[name] = layout = _Layout(_Elements(image, table, count, end), table + ELEMENT_SIZE * count)
        return layout
    if len(known) >= _MOST_LAYOUTS:
        known.clear()
    known[name] = None
    return None


def _decode_one(image: bytes, table: int, end: int) -> tuple[list[bytes], list[bytes]]:
    """:func:`decode_leaf` for a single element: half of a store's buckets have only one."""
    _check_table(1, table, end)
    flag, position, key_size, value_size = _ELEMENT.unpack_from(image, table)
    start = table + position
    middle = start + key_size
    if table + ELEMENT_SIZE + key_size + value_size > end:
        raise Malformed("elements are larger than their page")
    if position < ELEMENT_SIZE or middle + value_size > end:
        raise Malformed("element 0 lies outside its page")
    if not 0 < key_size <= MAX_KEY_SIZE:
        _check_key_sizes([key_size])
    value = image[middle : middle + value_size]
    if flag:
        _bucket_elements([flag])
        value = _bucket_value(value, 0)
    return [image[start:middle]], [value]


def _bucket_value(value: bytes, i: int) -> BucketValue:
    if len(value) < INLINE_PREFIX and (len(value) < BUCKET_HEADER_SIZE or not any(value[:8])):
        raise Malformed(f"element {i} is a bucket of only {len(value)} bytes")
    return BucketValue(value)


def _bucket_elements(flags: Sequence[int]) -> Sequence[int]:
    """Indices of the elements that are nested buckets."""
    for i, flag in enumerate(flags):
        if flag not in (0, BUCKET_FLAG):
            raise Malformed(f"element {i} has unknown flags {flag:#x}")
    return [i for i, flag in enumerate(flags) if flag]


def decode_inline(value: BucketValue) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Keys and values of an inline bucket.  Raises :class:`Malformed`.

    bbolt's own check skips inline buckets, but all records of a small cache are inline buckets.
    """
    _, flags, count, overflow = PAGE_HEADER.unpack_from(value, BUCKET_HEADER_SIZE)
    if flags != LEAF or overflow:
        raise Malformed("an inline bucket is not one leaf page")
    keys, values = decode_small_leaf(value, INLINE_PREFIX, count, len(value))
    if BucketValue in map(type, values):
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
    _check_key_sizes(sizes)
    _check_order(keys)
    return keys, list(raw[2::3])


def leaf_size(keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    """Bytes of a leaf page with these elements, header included."""
    return PAGE_HEADER_SIZE + ELEMENT_SIZE * len(keys) + sum(map(len, keys)) + sum(map(len, values))


def encode_leaf(keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Element table and data of a leaf page, without its header."""
    return encode_small_leaf(keys, values)[0]


def encode_small_leaf(keys: Sequence[bytes], values: Sequence[bytes]) -> tuple[bytes, bool]:
    """:func:`encode_leaf`, and whether one of the values is a nested bucket."""
    table, nested = _table(keys, values)
    data = [table] * (2 * len(keys) + 1)
    data[1::2] = keys
    data[2::2] = values
    return b"".join(data), nested


_Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[type, ...]]
"""What an element table depends on: sizes of keys and values, and the types of values."""
_tables: dict[_Shape, tuple[bytes, bool]] = {}


def _table(keys: Sequence[bytes], values: Sequence[bytes]) -> tuple[bytes, bool]:
    """The element table, and whether one of the elements is a nested bucket."""
    shape = tuple(map(len, keys)), tuple(map(len, values)), tuple(map(type, values))
    if len(keys) > _MOST_SHARED:
        return _new_table(shape)
    table = _tables.get(shape)
    if table is None:
        if len(_tables) >= _MOST_LAYOUTS:
            _tables.clear()
        table = _tables[shape] = _new_table(shape)
    return table


def _new_table(shape: _Shape) -> tuple[bytes, bool]:
    key_sizes, value_sizes, types = shape
    count = len(key_sizes)
    table = [0] * (4 * count)
    table[1::4] = _positions(list(map(add, key_sizes, value_sizes)), count)
    table[2::4] = key_sizes
    table[3::4] = value_sizes
    if BucketValue in types:
        table[0::4] = [BUCKET_FLAG if kind is BucketValue else 0 for kind in types]
    return _leaf_table(count).pack(*table), BucketValue in types


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


_INLINE_HEADER = struct.Struct("<QQQHHI")


def encode_inline(keys: Sequence[bytes], values: Sequence[bytes], sequence: int) -> BucketValue:
    """The value of an inline bucket."""
    return inline_value(len(keys), encode_leaf(keys, values), sequence)


def inline_value(count: int, payload: bytes, sequence: int) -> BucketValue:
    """The value of an inline bucket whose elements are already encoded."""
    return BucketValue(inline_header(count, sequence) + payload)


def inline_header(count: int, sequence: int) -> bytes:
    """The bytes before the elements of an inline bucket: bucket header and page header."""
    return _INLINE_HEADER.pack(0, sequence, 0, LEAF, count, 0)


def encode_bucket(root: int, sequence: int) -> BucketValue:
    """The value of a bucket with a root page of its own."""
    return BucketValue(BUCKET_HEADER.pack(root, sequence))


def empty_image(page_size: int) -> bytes:
    """The four pages that bbolt writes into a file of 0 bytes: two metas, an empty freelist, an empty root leaf."""
    metas = (Meta(page_size, 0, 3, 0, 2, 4, txid).pack().ljust(page_size, b"\0") for txid in (0, 1))
    return b"".join((*metas, encode_page(2, FREELIST, 0, b"", page_size), encode_page(3, LEAF, 0, b"", page_size)))
