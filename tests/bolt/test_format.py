"""Headers, element tables and meta pages as bytes."""

from __future__ import annotations

import struct

import pytest

from asyncmig.bolt.format import (
    FREELIST,
    INLINE_PREFIX,
    LEAF,
    META_SIZE,
    PAGE_HEADER_SIZE,
    BucketValue,
    Malformed,
    Meta,
    decode_branch,
    decode_inline,
    decode_leaf,
    empty_image,
    encode_branch,
    encode_bucket,
    encode_inline,
    encode_leaf,
    encode_page,
    fnv64a,
    leaf_size,
    parse_meta,
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_fnv64a(data: bytes, expected: int) -> None:
    """The published test vectors of FNV-1a."""
    assert fnv64a(data) == expected


META = Meta(page_size=4096, flags=0, root=3, sequence=9, freelist=2, high_water_mark=4, txid=1)


def test_meta_layout() -> None:
    image = META.pack()
    assert len(image) == META_SIZE == 80
    assert image[:16] == struct.pack("<QHHI", 1, 4, 0, 0)
    assert image[16:72] == struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, 4096, 0, 3, 9, 2, 4, 1)
    assert parse_meta(image) == META
    assert parse_meta(image + bytes(100)) == META


@pytest.mark.parametrize(
    ("at", "cause"),
    [
        (16, "wrong magic number"),
        (20, "version 3 instead of 2"),
        (24, "wrong checksum"),
        (71, "wrong checksum"),
        (79, "checksum"),
    ],
)
def test_damaged_meta(at: int, cause: str) -> None:
    image = bytearray(META.pack())
    image[at] ^= 1
    with pytest.raises(Malformed, match=cause):
        parse_meta(bytes(image))


def test_short_meta() -> None:
    with pytest.raises(Malformed, match="too short"):
        parse_meta(META.pack()[:-1])


def test_empty_image() -> None:
    image = empty_image(1024)
    assert len(image) == 4096
    first, second = parse_meta(image), parse_meta(image[1024:])
    assert (first.txid, second.txid) == (0, 1)
    assert (first.root, first.freelist, first.high_water_mark) == (3, 2, 4)
    assert struct.unpack_from("<QHHI", image, 2048) == (2, FREELIST, 0, 0)
    assert struct.unpack_from("<QHHI", image, 3072) == (3, LEAF, 0, 0)


# -- leaves

KEYS, VALUES = [b"a", b"bb", b"c"], [b"", b"value", BucketValue(struct.pack("<QQ", 7, 5))]


def as_page(payload: bytes, page_size: int = 1024) -> bytes:
    return encode_page(9, LEAF, 3, payload, page_size)


def test_leaf_layout() -> None:
    payload = encode_leaf(KEYS, VALUES)
    assert len(payload) + PAGE_HEADER_SIZE == leaf_size(KEYS, VALUES)
    assert struct.unpack_from("<12I", payload) == (0, 48, 1, 0, 0, 33, 2, 5, 1, 24, 1, 16)
    assert payload[48:] == b"a" + b"bbvalue" + b"c" + VALUES[2]


def test_leaf_round_trip() -> None:
    keys, values = decode_leaf(as_page(encode_leaf(KEYS, VALUES)), PAGE_HEADER_SIZE, 3, 1024)
    assert (keys, values) == (KEYS, VALUES)
    assert [type(v) for v in values] == [bytes, bytes, BucketValue]
    assert isinstance(values[2], BucketValue)
    assert (values[2].root, values[2].sequence) == (7, 5)
    assert decode_leaf(as_page(b""), PAGE_HEADER_SIZE, 0, 1024) == ([], [])


def test_elements_need_not_be_packed() -> None:
    """bbolt writes them back to back, but gaps and any other order are legal."""
    table = struct.pack("<8I", 0, 60, 1, 1, 0, 34, 1, 1)
    page = as_page(table + bytes(10) + b"..b2" + bytes(14) + b"a1....")
    start = PAGE_HEADER_SIZE
    image = bytearray(page)
    image[start + 60 : start + 62] = b"a1"
    image[start + 16 + 34 : start + 16 + 36] = b"b2"
    assert decode_leaf(bytes(image), start, 2, 1024) == ([b"a", b"b"], [b"1", b"2"])


LEAF_DAMAGE = [
    ((0, 32, 1, 1, 0, 2, 1, 1), 2, "element 1 lies outside its page"),  # pos inside the table
    ((0, 0, 1, 1, 0, 18, 1, 1), 2, "element 0 lies outside its page"),
    ((0, 32, 1, 1, 0, 1000, 1, 1), 2, "element 1 lies outside its page"),
    ((0, 32, 1, 1, 0, 18, 1, 2000), 2, "elements are larger than their page"),
    ((0, 32, 1, 1, 0, 0xFFFFFFFF, 1, 1), 2, "element 1 lies outside its page"),
    ((0, 32, 0, 1, 0, 17, 1, 1), 2, "element 0 has an empty key"),
    ((0, 32, 1, 1, 0, 16, 1, 1), 2, "keys are out of order"),  # both keys are the same byte
    ((2, 32, 1, 1, 0, 18, 1, 1), 2, "element 0 has unknown flags 0x2"),
    ((0, 32, 1, 1, 1, 18, 1, 1), 2, "element 1 is a bucket of only 1 bytes"),
    ((0, 32, 1, 1, 0, 18, 1, 1), 64, "the element table is larger than its page"),
]


@pytest.mark.parametrize(("table", "count", "cause"), LEAF_DAMAGE)
def test_damaged_leaves(table: tuple[int, ...], count: int, cause: str) -> None:
    page = as_page(struct.pack("<8I", *table) + b"a1b2")
    with pytest.raises(Malformed, match=cause):
        decode_leaf(page, PAGE_HEADER_SIZE, count, 1024)


def test_a_key_that_is_too_long() -> None:
    page = as_page(encode_leaf([b"k" * 32769], [b""]), 65536)
    with pytest.raises(Malformed, match="element 0 has a key that is too long"):
        decode_leaf(page, PAGE_HEADER_SIZE, 1, len(page))


# -- branches


def test_branch_layout_and_round_trip() -> None:
    payload = encode_branch([b"a", b"bcd"], [5, 1 << 40])
    assert struct.unpack_from("<IIQIIQ", payload) == (32, 1, 5, 17, 3, 1 << 40)
    assert payload[32:] == b"abcd"
    assert decode_branch(bytes(PAGE_HEADER_SIZE) + payload, 2) == ([b"a", b"bcd"], [5, 1 << 40])


@pytest.mark.parametrize(
    ("count", "cause"),
    [(0, "a branch page without children"), (3, "the element table is larger than its page"), (0xFFFF, "table is larger")],
)
def test_damaged_branches(count: int, cause: str) -> None:
    with pytest.raises(Malformed, match=cause):
        decode_branch(bytes(PAGE_HEADER_SIZE) + encode_branch([b"a", b"bcd"], [5, 6]), count)


def test_branches_with_unsorted_keys() -> None:
    with pytest.raises(Malformed, match="keys are out of order"):
        decode_branch(bytes(PAGE_HEADER_SIZE) + encode_branch([b"b", b"a"], [5, 6]), 2)


# -- bucket values


def test_bucket_values() -> None:
    value = encode_bucket(7, 5)
    assert value == struct.pack("<QQ", 7, 5)
    assert (value.root, value.sequence) == (7, 5)
    value = encode_inline([b"k"], [b"v"], 6)
    assert value == struct.pack("<QQQHHI", 0, 6, 0, LEAF, 1, 0) + struct.pack("<IIII", 0, 16, 1, 1) + b"kv"
    assert (value.root, value.sequence) == (0, 6)
    assert decode_inline(value) == ([b"k"], [b"v"])
    assert [*map(list, decode_inline(encode_inline([], [], 0)))] == [[], []]


def test_a_bucket_in_an_inline_bucket() -> None:
    value = encode_inline([b"k"], [encode_bucket(7, 0)], 0)
    with pytest.raises(Malformed, match="a bucket inside an inline bucket"):
        decode_inline(value)


@pytest.mark.parametrize(
    ("size", "root", "good"), [(16, 1, True), (15, 1, False), (32, 0, True), (31, 0, False), (7, 0, False)]
)
def test_the_least_size_of_a_bucket_value(size: int, root: int, good: bool) -> None:
    value = BucketValue((root.to_bytes(8, "little") + bytes(24))[:size])
    page = as_page(encode_leaf([b"k"], [value]))
    if good:
        assert decode_leaf(page, PAGE_HEADER_SIZE, 1, 1024)[1] == [value]
    else:
        with pytest.raises(Malformed, match=f"element 0 is a bucket of only {size} bytes"):
            decode_leaf(page, PAGE_HEADER_SIZE, 1, 1024)
    assert INLINE_PREFIX == 32


# -- pages


@pytest.mark.parametrize(("size", "pages"), [(0, 1), (1008, 1), (1009, 2), (2032, 2), (2033, 3)])
def test_overflow_pages(size: int, pages: int) -> None:
    image = encode_page(5, LEAF, 1, b"x" * size, 1024)
    assert len(image) == pages * 1024
    assert struct.unpack_from("<QHHI", image) == (5, LEAF, 1, pages - 1)
    assert image[16:] == (b"x" * size).ljust(pages * 1024 - 16, b"\0")
