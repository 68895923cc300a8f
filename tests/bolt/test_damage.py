"""Each class of damage, done on purpose: what the check says of it, and that no hostile file costs more than it should."""

from __future__ import annotations

import errno
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from asyncmig.bolt import BucketValue, Db, check, dump, format, pagefile, walk
from asyncmig.bolt.format import (
    BRANCH,
    FREELIST,
    LEAF,
    MAX_TREE_DEPTH,
    NO_FREELIST,
    PAGE_HEADER_SIZE,
    Meta,
    encode_branch,
    encode_bucket,
    encode_inline,
    encode_leaf,
    encode_page,
)
from asyncmig.errors import CorruptDatabaseError, DatabaseError
from tests.bolt.helpers import assert_sound, new_db, updating, viewing
from tests.bolt.mutate import Image, sample

Damage = Callable[[Image], int | None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return sample(tmp_path_factory.mktemp("sample") / "db", 1024, freelist=True)


# Each function damages the file and returns the page that the check is to name.


def file_of_one_page(image: Image) -> int | None:
    del image.data[image.page_size :]
    return 0


def last_page_missing(image: Image) -> int:
    del image.data[(image.meta.high_water_mark - 1) * image.page_size :]
    return image.slot


def both_checksums_wrong(image: Image) -> None:
    for slot in (0, 1):
        image.data[slot * image.page_size + 16 + 20] ^= 1


def no_magic(image: Image) -> None:
    for slot in (0, 1):
        image.data[slot * image.page_size + 16] ^= 1


def version_3(image: Image) -> None:
    for slot in (0, 1):
        image.set_meta(slot, version=3)


def set_newest_meta(**fields: int) -> Damage:
    def damage(image: Image) -> int:
        # The other one goes: it would have to be at the page size the first one states.
        image.data[(1 - image.slot) * image.page_size + 16] ^= 1
        image.set_meta(image.slot, **fields)
        return image.slot

    return damage


def page_size_that_is_no_power_of_two(image: Image) -> int:
    image.set_meta(0, page_size=1000, txid=1 << 40)
    return 0


def two_pages_in_each_others_place(image: Image) -> int:
    a, b = image.leaves[:2]
    image.set_header(a, id=b)
    return a


def header_of_a_leaf(**fields: int) -> Damage:
    def damage(image: Image) -> int:
        page = image.leaves[0]
        image.set_header(page, **fields)
        return page

    return damage


def big_leaf(image: Image) -> int:
    """A leaf below a branch, with some plain keys."""
    return next(p for p in image.leaves if image.header(p)[2] > 3 and not image.buckets(p))


def leaf_element_number(field: str, value: int | Callable[[Image, int], int]) -> Damage:
    def damage(image: Image) -> int:
        page = big_leaf(image)
        number = value if isinstance(value, int) else value(image, page)
        image.put("I", image.element(page, 2) + 4 * ["flags", "pos", "key", "value"].index(field), number)
        return page

    return damage


def sizes_that_wrap_around(image: Image) -> int:
    page = big_leaf(image)
    _, pos, _, _ = image.leaf_element(page, 2)
    image.put("II", image.element(page, 2) + 4, (pos + (1 << 31)) & 0xFFFFFFFF, 1 << 31)
    return page


def keys_changed(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Damage:
    def damage(image: Image) -> int:
        page = big_leaf(image)
        spans = []
        for i in (1, 2):
            _, pos, size, _ = image.leaf_element(page, i)
            spans.append((image.element(page, i) + pos, size))
        size = min(size for _, size in spans)
        old = [bytes(image.data[at : at + size]) for at, _ in spans]
        for (at, _), new, i in zip(spans, change(*old), (1, 2), strict=True):
            image.data[at : at + size] = new
            image.put("I", image.element(page, i) + 8, size)
        return page

    return damage


def leaf_in_a_tree(image: Image) -> int:
    """A leaf that is the second child of a branch."""
    page = int.from_bytes(image.data[image.element(image.branches[0], 1) + 8 :][:8], "little")
    assert image.header(page)[1] == LEAF
    return page


def first_byte_of_key(which: str, byte: int) -> Damage:
    def damage(image: Image) -> int:
        page = leaf_in_a_tree(image)
        i = 0 if which == "first" else image.header(page)[2] - 1
        image.data[image.element(page, i) + image.leaf_element(page, i)[1]] = byte
        return page

    return damage


def branch_without_children(image: Image) -> int:
    image.set_header(image.branches[0], count=0)
    return image.branches[0]


def branch_table_past_the_page(image: Image) -> int:
    image.set_header(image.branches[0], count=60000)
    return image.branches[0]


def empty_leaf_below_a_branch(image: Image) -> int:
    page = leaf_in_a_tree(image)
    image.set_header(page, count=0)
    return page


def child_twice(image: Image) -> int:
    branch = image.branches[0]
    first = bytes(image.data[image.element(branch, 0) + 8 :][:8])
    at = image.element(branch, 1) + 8
    image.data[at : at + 8] = first
    return int.from_bytes(first, "little")


def child_that_is_no_page(image: Image) -> int:
    image.put("Q", image.element(image.branches[0], 1) + 8, 1 << 60)
    return 1 << 60


def child_that_is_the_freelist(image: Image) -> int:
    assert image.freelist is not None
    image.put("Q", image.element(image.branches[0], 1) + 8, image.freelist)
    return image.freelist


def bucket_of_15_bytes(image: Image) -> int:
    page = next(p for p in image.leaves if image.buckets(p))
    image.put("I", image.element(page, image.buckets(page)[0]) + 12, 15)
    return page


def inline(offset: int, form: str, value: int) -> Damage:
    """Overwrite a number of an inline bucket, ``offset`` bytes behind the start of its value."""

    def damage(image: Image) -> int:
        page, i = next((p, i) for p, i in image.inline_buckets() if image.value_at(p, i)[1] > 80)
        image.put(form, image.value_at(page, i)[0] + offset, value)
        return page

    return damage


def inline_bucket_of_31_bytes(image: Image) -> int:
    page, i = image.inline_buckets()[0]
    image.put("I", image.element(page, i) + 12, 31)
    return page


def inline_keys_unsorted(image: Image) -> int:
    for page, i in image.inline_buckets():
        at, _ = image.value_at(page, i)
        if int.from_bytes(image.data[at + 26 : at + 28], "little") > 1:
            pos = int.from_bytes(image.data[at + 36 : at + 40], "little")
            image.data[at + 32 + pos] = 0xFE
            return page
    raise AssertionError


def free_page(i: int, value: int | Callable[[Image], int]) -> Damage:
    def damage(image: Image) -> int:
        assert image.freelist is not None
        assert image.header(image.freelist)[2] > 3
        number = value if isinstance(value, int) else value(image)
        image.put("Q", image.freelist * image.page_size + PAGE_HEADER_SIZE + 8 * i, number)
        return image.freelist

    return damage


def first_free_page(image: Image) -> int:
    assert image.freelist is not None
    return int.from_bytes(image.data[image.freelist * image.page_size + PAGE_HEADER_SIZE :][:8], "little")


def freelist_header(**fields: int) -> Damage:
    def damage(image: Image) -> int:
        assert image.freelist is not None
        image.set_header(image.freelist, **fields)
        return image.freelist

    return damage


def freelist_of_2_to_the_63(image: Image) -> int:
    free_page(0, 1 << 63)(image)
    return freelist_header(count=0xFFFF)(image) or 0


def free_page_in_use(image: Image) -> int:
    free_page(0, image.leaves[0])(image)
    return image.leaves[0]


def free_page_lost(image: Image) -> int:
    assert image.freelist is not None
    count = image.header(image.freelist)[2]
    last = image.freelist * image.page_size + PAGE_HEADER_SIZE + 8 * (count - 1)
    freelist_header(count=count - 1)(image)
    return int.from_bytes(image.data[last : last + 8], "little")


CASES: list[tuple[str, Damage, str]] = [
    ("1 file of one page", file_of_one_page, "the file is truncated"),
    ("1 last page missing", last_page_missing, r"the file is truncated: \d+ pages of 1024 bytes in use, \d+ bytes present"),
    ("2 both checksums", both_checksums_wrong, "both meta pages are unusable: wrong checksum"),
    ("2 magic", no_magic, "both meta pages are unusable: wrong magic"),
    ("2 version", version_3, "version 3 instead of 2"),
    ("2 page size", page_size_that_is_no_power_of_two, "page size 1000 is not a power of two"),
    ("2 root 1", set_newest_meta(root=1), "root page 1 is not between 2 and"),
    ("2 root past the end", set_newest_meta(root=1 << 40), "root page 1099511627776 is not between"),
    ("2 freelist 0", set_newest_meta(freelist=0), "freelist page 0 is not between"),
    ("2 freelist past the end", set_newest_meta(freelist=1 << 40), "freelist page 1099511627776 is not between"),
    ("2 no pages", set_newest_meta(high_water_mark=0), "root page .* is not between 2 and the high water mark 0"),
    ("2 endless file", set_newest_meta(high_water_mark=(1 << 64) - 1), "the file is truncated"),
    ("2 last transaction", set_newest_meta(txid=(1 << 64) - 1), "transaction id cannot be raised"),
    ("3 wrong place", two_pages_in_each_others_place, "its header says page"),
    ("3 no type", header_of_a_leaf(flags=0), "type 0x0 where a branch or leaf page should be"),
    ("3 two types", header_of_a_leaf(flags=BRANCH | LEAF), "type 0x3 where"),
    ("3 meta page in a tree", header_of_a_leaf(flags=4), "type 0x4 where"),
    ("3 unknown bit", header_of_a_leaf(flags=0x8002), "type 0x8002 where"),
    ("3 overflow", header_of_a_leaf(overflow=0xFFFFFFFF), "4294967295 overflow pages reach past the high water mark"),
    ("4 too many elements", header_of_a_leaf(count=0xFFFF), "the element table is larger than its page"),
    ("4 branch table", branch_table_past_the_page, "the element table is larger than its page"),
    ("4 value size", leaf_element_number("value", 0xFFFFFFFF), "elements are larger than their page"),
    ("4 value past the page", leaf_element_number("pos", 1020), "element 2 lies outside its page"),
    ("4 pos in the table", leaf_element_number("pos", 16), "element 2 lies outside its page"),
    ("4 pos of 4 GB", leaf_element_number("pos", 0xFFFFFFFF), "element 2 lies outside its page"),
    ("4 wraparound", sizes_that_wrap_around, "elements are larger than their page"),
    ("4 empty key", leaf_element_number("key", 0), "element 2 has an empty key"),
    ("5 unsorted", keys_changed(lambda a, b: (b, a)), "keys are out of order"),
    ("5 duplicate", keys_changed(lambda a, b: (a, a)), "keys are out of order"),
    ("5 below the branch key", first_byte_of_key("first", 0x01), "is below its branch key"),
    ("5 not below the next", first_byte_of_key("last", 0xFE), "is not below the next branch key"),
    ("5 no children", branch_without_children, "a branch page without children"),
    ("5 empty leaf", empty_leaf_below_a_branch, "an empty leaf below a branch page"),
    ("5 child twice", child_twice, "is not below the next branch key|referenced twice"),
    ("5 child no page", child_that_is_no_page, "page id is not between 2 and the high water mark"),
    ("5 freelist as a child", child_that_is_the_freelist, "type 0x10 where a branch or leaf page should be"),
    ("6 flags 2", leaf_element_number("flags", 2), "element 2 has unknown flags 0x2"),
    ("6 flags 3", leaf_element_number("flags", 3), "element 2 has unknown flags 0x3"),
    ("7 bucket too short", bucket_of_15_bytes, r"element \d+ is a bucket of only 15 bytes"),
    ("7 inline too short", inline_bucket_of_31_bytes, r"element \d+ is a bucket of only 31 bytes"),
    ("7 inline branch", inline(24, "H", BRANCH), "inline bucket .* is not one leaf page"),
    ("7 inline overflow", inline(28, "I", 1), "inline bucket .* is not one leaf page"),
    ("7 inline table", inline(26, "H", 1000), "inline bucket .* element table is larger than its page"),
    ("7 inline pos", inline(36, "I", 1000), "inline bucket .* element 0 lies outside its page"),
    ("7 inline value", inline(44, "I", 1 << 31), "inline bucket .* elements are larger than their page"),
    ("7 inline unsorted", inline_keys_unsorted, "inline bucket .* keys are out of order"),
    ("7 inline flags", inline(32, "I", 4), "inline bucket .* element 0 has unknown flags"),
    ("7 inline bucket in it", inline(32, "I", 1), "inline bucket .*(a bucket inside an inline bucket|bucket of only)"),
    ("8 freelist is a leaf", freelist_header(flags=LEAF), "type 0x2 where the freelist should be"),
    ("8 freelist has two types", freelist_header(flags=FREELIST | LEAF), "type 0x12 where the freelist should be"),
    ("8 freelist too long", freelist_header(count=500), "500 free pages do not fit on the freelist page"),
    ("8 freelist of 2^63", freelist_of_2_to_the_63, "9223372036854775808 free pages do not fit"),
    ("8 free page 1", free_page(0, 1), "free page 1 is not between 2 and the high water mark"),
    ("8 free page past the end", free_page(1, 1 << 60), "free page 1152921504606846976 is not between"),
    ("8 free twice", free_page(1, first_free_page), "a page is on the freelist twice"),
    ("8 free and in use", free_page_in_use, "on the freelist although it is in use"),
    ("8 lost", free_page_lost, "neither in use nor on the freelist"),
]


@pytest.mark.parametrize(("damage", "cause"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_check_names_the_page_and_the_cause(tmp_path: Path, sound: Image, damage: Damage, cause: str) -> None:
    image, path = sound.copy(), tmp_path / "db"
    page = damage(image)
    path.write_bytes(image.data)
    result = check(path)
    assert not result.clean
    named = [str(f) for f in result.findings if f.page == page]
    assert named, [str(f) for f in result.findings]
    assert re.search(cause, named[0]), named
    if damage is free_page_lost:
        return  # does no harm
    remedy = "restore db from a backup|this is about free pages, not about data"
    with pytest.raises(CorruptDatabaseError, match=rf"is corrupt \(.*\); ({remedy})"), Db.open(path) as db:
        list(dump(db))


# -- files made to be expensive


def craft(path: Path, pages: dict[int, bytes], *, root: int, end: int, page_size: int = 1024) -> Path:
    """A file of these page images (those missing are zero), without a freelist."""
    data = bytearray(end * page_size)
    for txid in (0, 1):
        meta = Meta(page_size, 0, root, 0, NO_FREELIST, end, txid).pack()
        data[txid * page_size : txid * page_size + len(meta)] = meta
    for page, image in pages.items():
        data[page * page_size : page * page_size + len(image)] = image
    path.write_bytes(data)
    return path


def leaf(page: int, entries: dict[bytes, bytes], page_size: int = 1024) -> bytes:
    keys = sorted(entries)
    return encode_page(page, LEAF, len(keys), encode_leaf(keys, [entries[k] for k in keys]), page_size)


def branch(page: int, children: dict[bytes, int], page_size: int = 1024) -> bytes:
    keys = sorted(children)
    return encode_page(page, BRANCH, len(keys), encode_branch(keys, [children[k] for k in keys]), page_size)


def delete_all_buckets(path: Path) -> None:
    with updating(path) as tx:
        for name in [k for k, v in tx.root.items() if v is None]:
            tx.delete_bucket(name)


@contextmanager
def at_most(monkeypatch: pytest.MonkeyPatch, *, megabytes: float) -> Iterator[None]:
    """Neither may more bytes be read from the file, nor more memory be in use at a time."""
    read = 0
    pread = os.pread

    def counting(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        data = pread(fd, count, offset)
        read += len(data)
        assert read < megabytes * 1e6, "read too much"
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", counting)
        tracemalloc.start()
        try:
            yield
            assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
        finally:
            tracemalloc.stop()


def test_elements_that_all_name_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, size = 60000, 1 << 20
    table = bytearray(16 * count)
    for i in range(count):
        # Each key, and each value, is what follows the table: half a megabyte of zeros, 60 000 times.
        table[16 * i : 16 * i + 16] = b"".join(n.to_bytes(4, "little") for n in (0, 16 * (count - i), 1, size // 2))
    page = encode_page(2, LEAF, count, bytes(table).ljust(size * 2, b"\0"), 4096)
    path = craft(tmp_path / "db", {2: page}, root=2, end=2 + len(page) // 4096, page_size=4096)
    with at_most(monkeypatch, megabytes=20):
        assert [str(f) for f in check(path).findings] == ["page 2: elements are larger than their page"]


def test_pages_that_all_claim_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = 2000
    pages = {page: leaf(page, {b"k%05d" % page: b""}) for page in range(3, end)}
    for page in list(pages):
        header = bytearray(pages[page])
        header[12:16] = (end - 1 - page).to_bytes(4, "little")
        pages[page] = bytes(header)
    # Descending, so that none is known yet when it claims all the others.
    top = leaf(2, {b"%05d" % (end - page): encode_bucket(page, 0) for page in range(end - 20, end)})
    path = craft(tmp_path / "db", pages | {2: top}, root=2, end=end)
    with at_most(monkeypatch, megabytes=5):
        assert "referenced twice" in str(check(path).findings)
    keys = {b"k%05d" % page: page for page in range(500, end, 50)}
    path = craft(tmp_path / "db2", pages | {2: branch(2, keys)}, root=2, end=end)
    with at_most(monkeypatch, megabytes=5):
        assert "referenced twice" in str(check(path).findings)


def test_overflow_past_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = bytearray(leaf(2, {b"k": b"v"}))
    page[12:16] = b"\xff\xff\xff\xff"
    path = craft(tmp_path / "db", {2: bytes(page)}, root=2, end=3)
    with at_most(monkeypatch, megabytes=1):
        assert "overflow" in str(check(path).findings)


# -- holes: they claim any size and take nothing on disk


def with_holes(path: Path, pages: dict[int, bytes], *, end: int, page_size: int = 1024) -> Path:
    """The same as :func:`craft`, with the missing pages as a hole.  The root is page 2."""
    craft(path, {}, root=2, end=2, page_size=page_size)
    with path.open("r+b") as file:
        for txid in (0, 1):
            file.seek(txid * page_size)
            file.write(Meta(page_size, 0, 2, 0, NO_FREELIST, end, txid).pack())
        for page, image in pages.items():
            file.seek(page * page_size)
            file.write(image)
        file.truncate(end * page_size)
    return path


HOLLOW = "pages of 1024 bytes in use, but nearly all of the file is a hole: they were never written"


def test_a_file_of_a_terabyte_that_is_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_holes(tmp_path / "db", {2: leaf(2, {b"k": b"v"})}, end=1 << 30)
    with at_most(monkeypatch, megabytes=1):
        assert [str(f) for f in check(path).findings] == [f"page 1: 1073741824 {HOLLOW}"]
        with pytest.raises(CorruptDatabaseError, match=rf"db: page 1 is corrupt \(1073741824 {HOLLOW}"):
            Db.open(path)


def test_a_file_whose_free_pages_are_holes_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What :func:`rebuild` makes of a database that had shrunk."""
    path = with_holes(tmp_path / "db", {2: leaf(2, {b"k": b"v"})}, end=1 << 18)
    with at_most(monkeypatch, megabytes=2):
        assert check(path).clean


def test_what_is_on_disk_decides_how_many_pages_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagefile, "_FEW_PAGES", 0)
    in_use = dict.fromkeys(range(3, 67), b"\1" * 1024)
    path = with_holes(tmp_path / "db", {2: leaf(2, {b"k": b"v"}), **in_use}, end=1 << 13)
    assert check(path).clean
    too_many = with_holes(tmp_path / "db2", {2: leaf(2, {b"k": b"v"}), **in_use}, end=1 << 14)
    assert HOLLOW in str(check(too_many).findings)
    # A file system that compresses has less on disk, one that writes later, or over a network, may have nothing yet.
    monkeypatch.setattr(pagefile, "status", lambda fd, path: SimpleNamespace(st_size=os.fstat(fd).st_size, st_blocks=1))
    assert check(path).clean
    assert HOLLOW in str(check(too_many).findings)


def test_where_holes_cannot_be_told_they_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, offset: int, how: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    path = with_holes(tmp_path / "db", {2: leaf(2, {b"k": b"v"})}, end=1 << 21)
    assert HOLLOW in str(check(path).findings)
    monkeypatch.setattr(os, "lseek", unsupported)
    assert check(path).clean


def test_overflow_pages_that_are_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = bytearray(leaf(2, {b"k": b"v"}))
    page[12:16] = ((1 << 19) - 3).to_bytes(4, "little")
    path = with_holes(tmp_path / "db", {2: bytes(page)}, end=1 << 19)
    with at_most(monkeypatch, megabytes=3):
        assert str(check(path).findings[0]) == "page 2: most of its 524285 overflow pages are a hole: they were never written"
        with (
            viewing(path) as tx,
            pytest.raises(CorruptDatabaseError, match=r"page 2 is corrupt \(most of its 524285 overflow pages"),
        ):
            tx.root.get(b"k")


def test_a_page_of_many_megabytes_is_read(tmp_path: Path) -> None:
    path = new_db(tmp_path / "db")
    value = b"v" * (65 << 20)
    with updating(path) as tx:
        tx.root.create_bucket(b"b").put(b"k", value)
    with viewing(path) as tx:
        bucket = tx.bucket(b"b")
        assert bucket is not None
        assert bucket.get(b"k") == value
    assert check(path).clean


@pytest.mark.parametrize("at", ["reading", "decoding", "decoding one page", "walking", "marking"])
def test_a_lack_of_memory_names_the_file(at: str, sound: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NoReturn:
        raise MemoryError

    path = tmp_path / "db"
    path.write_bytes(sound.data)
    match at:
        case "reading":
            monkeypatch.setattr(os, "pread", fail)
        case "decoding":
            monkeypatch.setattr(format, "decode_leaf", fail)
        case "decoding one page":
            monkeypatch.setattr(format, "decode_small_leaf", fail)
        case "walking":
            monkeypatch.setattr(walk, "bytearray", fail, raising=False)
        case "marking":
            monkeypatch.setattr(walk, "any", fail, raising=False)
    with pytest.raises(DatabaseError, match=rf"{path}: not enough memory for a file with {len(sound.data)} bytes"):
        check(path)


def test_bucket_in_itself(tmp_path: Path) -> None:
    """The root of the bucket is the page that it stands in."""
    for root_of_bucket in (2, 3):
        path = craft(
            tmp_path / "db",
            {2: leaf(2, {b"b": encode_bucket(3, 0)}), 3: leaf(3, {b"in": encode_bucket(root_of_bucket, 0)})},
            root=2,
            end=4,
        )
        assert [str(f) for f in check(path).findings] == [f"page {root_of_bucket}: referenced twice"]
        with pytest.raises(CorruptDatabaseError, match="referenced twice"), Db.open(path) as db:
            next(dump(db))
        before = path.read_bytes()
        with pytest.raises(CorruptDatabaseError, match="twice"):
            delete_all_buckets(path)
        assert path.read_bytes() == before


def test_buckets_that_share_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 levels of two buckets each, that share their content: 2^200 paths in 200 pages."""
    pages = {
        page: leaf(page, {name: encode_bucket(page + 1, 0) if page < 201 else b"" for name in (b"a", b"b")})
        for page in range(2, 202)
    }
    pages[201] = leaf(201, {b"end": b""})
    path = craft(tmp_path / "db", pages, root=2, end=202)
    with at_most(monkeypatch, megabytes=4):
        assert all(f.cause == "referenced twice" for f in check(path).findings)
        assert len(check(path).findings) == 199
        with pytest.raises(CorruptDatabaseError, match="referenced twice"):
            delete_all_buckets(path)


def test_buckets_that_share_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 buckets with a root page each, above the same 400 leaves."""
    count = 400
    leaves = range(10 + count, 10 + 2 * count)
    keys = {b"k%03d" % i: page for i, page in enumerate(leaves)}
    pages = {page: leaf(page, {key: b""}, 16384) for key, page in keys.items()}
    pages |= {10 + i: branch(10 + i, keys, 16384) for i in range(count)}
    pages[2] = leaf(2, {b"top": encode_bucket(3, 0)}, 16384)
    pages[3] = leaf(3, {b"%03d" % i: encode_bucket(10 + i, 0) for i in range(count)}, 16384)
    path = craft(tmp_path / "db", pages, root=2, end=10 + 2 * count, page_size=16384)
    with at_most(monkeypatch, megabytes=40):
        assert "referenced twice" in str(check(path).findings)
        with pytest.raises(CorruptDatabaseError, match="referenced twice"):
            delete_all_buckets(path)


@pytest.mark.parametrize("children", [1, 2])
def test_branch_that_is_its_own_child(tmp_path: Path, children: int) -> None:
    page = branch(3, {b"a": 3} if children == 1 else {b"a": 3, b"b": 3})
    path = craft(tmp_path / "db", {2: leaf(2, {b"b": encode_bucket(3, 0)}), 3: page}, root=2, end=4)
    assert {str(f) for f in check(path).findings} >= {"page 3: referenced twice"}
    with viewing(path) as tx:
        bucket = tx.bucket(b"b")
        assert bucket is not None
        for call in (lambda: bucket.get(b"a"), lambda: list(bucket.items()), lambda: bucket.cursor().last()):
            with pytest.raises(CorruptDatabaseError, match=r"levels deep|is not below the next branch key|below its branch"):
                call()


@pytest.mark.parametrize("levels", [MAX_TREE_DEPTH, MAX_TREE_DEPTH + 1])
def test_tree_that_is_too_deep(tmp_path: Path, levels: int) -> None:
    pages = {3 + i: branch(3 + i, {b"k": 4 + i}) for i in range(levels)}
    pages[3 + levels] = leaf(3 + levels, {b"k": b"v"})
    pages[2] = leaf(2, {b"b": encode_bucket(3, 0)})
    path = craft(tmp_path / "db", pages, root=2, end=4 + levels)
    if levels == MAX_TREE_DEPTH:
        assert check(path).clean
    else:
        assert str(check(path).findings[0]) == f"page {3 + levels}: the tree is more than 40 levels deep"
        with pytest.raises(CorruptDatabaseError, match="levels deep"):
            delete_all_buckets(path)


def test_deeply_nested_buckets(tmp_path: Path) -> None:
    """Deeper than Python's stack."""
    depth = 2500
    names = [b"b"] * depth
    path = new_db(tmp_path / "db", 1024)
    with updating(path) as tx:
        tx.create_path(*names).put(b"k", b"v")
    assert_sound_without_recursion(path, depth)
    with updating(path) as tx:
        parent = tx.path_bucket(*names[:10])
        assert parent is not None
        bucket = tx.path_bucket(*names)
        assert bucket is not None
        bucket.put(b"k", b"w")
        parent.spill_child(b"b")
        bucket = tx.path_bucket(*names)
        assert bucket is not None
        assert bucket.get(b"k") == b"w"
    assert_sound_without_recursion(path, depth)
    delete_all_buckets(path)
    assert_sound(path)


def assert_sound_without_recursion(path: Path, depth: int) -> None:
    result = check(path)
    assert result.clean
    assert result.buckets == depth
    with Db.open(path) as db:
        assert sum(1 for _ in dump(db)) == depth + 1


def test_findings_are_limited(tmp_path: Path) -> None:
    bad = encode_inline([b"a"], [b"b"], 0)
    bad = BucketValue(bad[:24] + b"\1" + bad[25:])
    page = leaf(2, {b"%05d" % i: bad for i in range(1500)})
    path = craft(tmp_path / "db", {2: page}, root=2, end=2 + len(page) // 1024)
    result = check(path)
    assert len(result.findings) == 1000
    assert result.truncated
    path = craft(tmp_path / "db2", {2: leaf(2, {b"%05d" % i: bad for i in range(3)})}, root=2, end=3)
    result = check(path)
    assert len(result.findings) == 3
    assert not result.truncated


def test_the_repr_of_a_huge_key_does_not_make_a_huge_message(tmp_path: Path) -> None:
    bad = encode_inline([b"a"], [b"b"], 0)
    bad = BucketValue(bad[:24] + b"\1" + bad[25:])
    page = leaf(2, {b"\1" * 32768: bad})
    path = craft(tmp_path / "db", {2: page}, root=2, end=2 + len(page) // 1024)
    assert len(str(check(path).findings[0])) < 1000
