"""Headers, element tables and meta pages as bytes."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from asyncmig.bolt import format
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
    encode_small_leaf,
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


def test_nothing_is_kept_of_large_branches() -> None:
    """A hostile file may have as many of them as it likes, each with another number of children."""
    keys = [b"%06d" % i for i in range(30_000)]
    tracemalloc.start()
    try:
        payload = b""
        for count in range(25_000, 25_010):
            payload = encode_branch(keys[:count], range(count))
            assert decode_branch(bytes(PAGE_HEADER_SIZE) + payload, count) == (keys[:count], list(range(count)))
        del payload
        assert tracemalloc.get_traced_memory()[0] < 1e6
    finally:
        tracemalloc.stop()


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


# -- layouts and tables that are shared


@pytest.fixture
def no_layouts() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    """Empty all caches of the module."""
    for layouts in format._layouts.values():
        layouts.clear()
    format._tables.clear()


Outcome = str | tuple[list[bytes], list[bytes], list[type]]


def outcome(image: bytes, table: int, count: int, end: int) -> Outcome:
    """What becomes of a leaf: keys, values and their types, or the error."""
    try:
        keys, values = decode_leaf(image, table, count, end)
    except Malformed as error:
        return str(error)
    return keys, values, [type(value) for value in values]


def plain_outcome(image: bytes, table: int, count: int, end: int) -> Outcome:
    """The same by the letter of the format."""
    if table + 16 * count > end:
        return "the element table is larger than its page"
    rows = [struct.unpack_from("<4I", image, table + 16 * i) for i in range(count)]
    starts = [table + 16 * i + row[1] for i, row in enumerate(rows)]
    keys = [image[a : a + row[2]] for a, row in zip(starts, rows, strict=True)]
    raw = [image[a + row[2] : a + row[2] + row[3]] for a, row in zip(starts, rows, strict=True)]
    error = next(plain_errors(rows, starts, keys, raw, table + 16 * count, end), None)
    if error:
        return error
    types: list[type] = [BucketValue if row[0] else bytes for row in rows]
    return keys, [kind(value) for kind, value in zip(types, raw, strict=True)], types


def plain_errors(
    rows: list[tuple[int, ...]], starts: list[int], keys: list[bytes], values: list[bytes], table_end: int, end: int
) -> Iterator[str]:
    """What is wrong, in the order in which it is to be found."""
    if table_end + sum(row[2] + row[3] for row in rows) > end:
        yield "elements are larger than their page"
    for i, (start, row) in enumerate(zip(starts, rows, strict=True)):
        if start < table_end or start + row[2] + row[3] > end:
            yield f"element {i} lies outside its page"
    yield from (f"element {i} has an empty key" for i, row in enumerate(rows) if row[2] == 0)
    yield from (f"element {i} has a key that is too long" for i, row in enumerate(rows) if row[2] > 32768)
    yield from (f"element {i} has unknown flags {row[0]:#x}" for i, row in enumerate(rows) if row[0] > 1)
    if any(a >= b for a, b in pairwise(keys)):
        yield "keys are out of order"
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        if row[0] and len(value) < (16 if any(value[:8]) else 32):
            yield f"element {i} is a bucket of only {len(value)} bytes"


def random_leaf(rng: random.Random) -> tuple[bytes, int, int, int]:
    """A leaf as decode_leaf() takes it; the element tables of many are the same, and some are damaged."""
    count = rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 32, 33])
    shape = random.Random(rng.randrange(6))
    keys = [b"%c%d" % (97 + i // 10, i % 10) + b"k" * shape.randrange(3) for i in range(count)]
    values: list[bytes] = [rng.randbytes(shape.choice([0, 1, 20])) for _ in keys]
    for i in range(count):
        if shape.random() < 0.1:
            values[i] = BucketValue(rng.choice([bytes(16), b"\1" * 16, bytes(32)]))
    if rng.random() < 0.2 and count > 1:
        i = rng.randrange(count - 1)
        keys[i] = rng.choice([keys[i + 1], keys[i][::-1], b"z" * len(keys[i])])
    table = rng.choice([PAGE_HEADER_SIZE, INLINE_PREFIX])
    image = bytearray(bytes(table) + encode_leaf(keys, values))
    if rng.random() < 0.4 and count:
        # From few places and values, so that the same damage comes again.
        at = table + 16 * rng.randrange(min(count, 3)) + 4 * rng.randrange(4)
        old = int.from_bytes(image[at : at + 4], "little")
        new = rng.choice([0, 1, old + 1, max(old - 1, 0), old + 3, 2, 16, 40000, 0xFFFFFFFF])
        image[at : at + 4] = new.to_bytes(4, "little")
    if rng.random() < 0.5:
        image += bytes(rng.choice([1, 30, 500]))
    if rng.random() < 0.1:
        del image[-rng.choice([1, 5, 20]) :]
    image = image.ljust(table, b"\0")
    return bytes(image), table, rng.choice([count] * 9 + [count + 1]), len(image)


@pytest.mark.usefixtures("no_layouts")
def test_leaves_are_the_same_whatever_was_decoded_before() -> None:
    rng = random.Random(1)
    leaves = [random_leaf(rng) for _ in range(6000)]
    warm = [outcome(*leaf) for leaf in leaves]
    again = [outcome(*leaf) for leaf in reversed(leaves)][::-1]
    assert sum(layout is not None for layouts in format._layouts.values() for layout in layouts.values()) > 100
    plain = [plain_outcome(*leaf) for leaf in leaves]
    assert warm == plain
    assert again == plain
    assert len({text for text in plain if isinstance(text, str)}) > 15
    assert sum(not isinstance(text, str) for text in plain) > 1000
    for leaf, expected in zip(leaves[:1500], plain, strict=False):
        forget()
        assert outcome(*leaf) == expected


@pytest.mark.usefixtures("no_layouts")
def test_elements_that_overlap_on_a_page_that_is_too_small_for_them() -> None:
    """On a larger one they may; that one was met must not make a difference."""
    table = struct.pack("<8I", 0, 32, 1, 40, 0, 17, 1, 40)
    large = bytes(PAGE_HEADER_SIZE) + table + b"ab" + b"v" * 80
    small = large[: PAGE_HEADER_SIZE + 32 + 60]
    for _ in range(3):
        assert not isinstance(outcome(large, PAGE_HEADER_SIZE, 2, len(large)), str)
        assert outcome(small, PAGE_HEADER_SIZE, 2, len(small)) == "elements are larger than their page"


@pytest.mark.usefixtures("no_layouts")
def test_a_table_that_is_cut_off_is_not_taken_for_a_shorter_one() -> None:
    three = bytes(PAGE_HEADER_SIZE) + encode_leaf([b"a", b"b", b"c"], [b""] * 3)
    for _ in range(3):
        assert not isinstance(outcome(three, PAGE_HEADER_SIZE, 3, len(three)), str)
        for end in (len(three), len(three) - 3):
            cut = three[:end]
            for count in (4, 5, 32, 33):
                assert outcome(cut, PAGE_HEADER_SIZE, count, end) == "the element table is larger than its page"


@pytest.mark.usefixtures("no_layouts")
def test_keys_that_another_thread_has_met_meanwhile() -> None:
    """It may decode a leaf with the same layout between any two steps."""

    class Changing(tuple[bytes, ...]):
        def __eq__(self, other: object) -> bool:
            layout.known_keys = (b"x", b"y")
            return super().__eq__(other)

        __hash__ = tuple.__hash__

    image = bytes(PAGE_HEADER_SIZE) + encode_leaf([b"a", b"b"], [b"1", b"2"])
    for _ in range(2):
        decode_leaf(image, PAGE_HEADER_SIZE, 2, len(image))
    (layout,) = filter(None, format._layouts[PAGE_HEADER_SIZE].values())
    layout.known_keys = Changing(layout.known_keys)
    assert decode_leaf(image, PAGE_HEADER_SIZE, 2, len(image)) == ([b"a", b"b"], [b"1", b"2"])
    assert layout.known_keys == (b"x", b"y")


@pytest.mark.usefixtures("no_layouts")
def test_several_threads_decode_at_once() -> None:
    rng = random.Random(2)
    leaves = [random_leaf(rng) for _ in range(1000)]
    expected = [plain_outcome(*leaf) for leaf in leaves]

    def decode_all(seed: int) -> bool:
        order = random.Random(seed).sample(range(len(leaves)), len(leaves))
        return all(outcome(*leaves[i]) == expected[i] for i in order)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(decode_all, range(8)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.usefixtures("no_layouts")
def test_layouts_do_not_keep_what_a_hostile_file_is_made_of() -> None:
    for i in range(40):
        keys = [b"%d" % n + b"k" * (30_000 + i) for n in range(2)]
        image = bytes(PAGE_HEADER_SIZE) + encode_leaf(keys, [b"", b""])
        for _ in range(3):
            assert decode_leaf(image, PAGE_HEADER_SIZE, 2, len(image))[0] == keys
    layouts = [layout for layout in format._layouts[PAGE_HEADER_SIZE].values() if layout]
    assert len(layouts) == 40
    assert sum(len(key) for layout in layouts for key in layout.known_keys) < 1000


@pytest.mark.usefixtures("no_layouts")
def test_there_are_not_more_layouts_and_tables_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "_MOST_LAYOUTS", 5)
    for i in range(40):
        payload = encode_leaf([b"a" * (i + 1), b"b"], [b"v", b"w"])
        image = bytes(PAGE_HEADER_SIZE) + payload
        for _ in range(3):
            assert decode_leaf(image, PAGE_HEADER_SIZE, 2, len(image)) == ([b"a" * (i + 1), b"b"], [b"v", b"w"])
        assert len(format._layouts[PAGE_HEADER_SIZE]) <= 5
        assert len(format._tables) <= 5


@pytest.mark.usefixtures("no_layouts")
def test_who_gets_keys_and_values_from_decode_leaf_may_change_them() -> None:
    image = bytes(PAGE_HEADER_SIZE) + encode_leaf([b"a", b"b"], [b"1", b"2"])
    for _ in range(4):
        keys, values = decode_leaf(image, PAGE_HEADER_SIZE, 2, len(image))
        assert (keys, values) == ([b"a", b"b"], [b"1", b"2"])
        keys.clear()
        values[0] = b"changed"


@pytest.mark.usefixtures("no_layouts")
def test_tables_are_the_same_whatever_was_encoded_before() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        count = rng.choice([0, 1, 2, 3, 32, 33])
        keys = [b"%02d" % i + b"k" * rng.randrange(2) for i in range(count)]
        values = [rng.choice([b"", b"v" * 16, BucketValue(b"v" * 16)]) for _ in keys]
        payload, nested = encode_small_leaf(keys, values)
        at, table, data = 16 * count, b"", b""
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            table += struct.pack("<4I", type(value) is BucketValue, at - 16 * i, len(key), len(value))
            at += len(key) + len(value)
            data += key + value
        assert payload == table + data
        assert nested == (BucketValue in map(type, values))
