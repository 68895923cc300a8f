"""Damaged files: the kinds of damage that a mutation of a sound file can do."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

from asyncmig.bolt.format import (
    BRANCH,
    BUCKET_FLAG,
    BUCKET_HEADER_SIZE,
    ELEMENT_SIZE,
    FREELIST,
    LEAF,
    NO_FREELIST,
    PAGE_HEADER,
    PAGE_HEADER_SIZE,
    Meta,
    fnv64a,
    parse_meta,
)
from tests.bolt.helpers import Model, apply_to_tx, new_db, open_bucket, random_history, updating


class Image:
    """The bytes of a file, and where things are in it."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        first = parse_meta(data)
        self.page_size = size = first.page_size
        second = parse_meta(data[size:])
        self.meta = max(first, second, key=lambda m: m.txid)
        self.slot = self.meta.txid % 2
        self.pages = list(range(2, self.meta.high_water_mark))
        tree = walk_tree_pages(data, self.meta)
        self.branches = [p for p in tree if self.header(p)[1] == BRANCH]
        self.leaves = [p for p in tree if self.header(p)[1] == LEAF]
        self.freelist = self.meta.freelist if self.meta.freelist != NO_FREELIST else None

    def copy(self) -> Image:
        """The same, to be changed."""
        clone = object.__new__(Image)
        clone.__dict__.update(self.__dict__)
        clone.data = bytearray(self.data)
        return clone

    def header(self, page: int) -> tuple[int, int, int, int]:
        """Id, flags, count and overflow of a page."""
        page_id, flags, count, overflow = PAGE_HEADER.unpack_from(self.data, page * self.page_size)
        return page_id, flags, count, overflow

    def set_header(self, page: int, **fields: int) -> None:
        """Change ``id``, ``flags``, ``count`` or ``overflow``."""
        old = dict(zip(("id", "flags", "count", "overflow"), self.header(page), strict=True))
        PAGE_HEADER.pack_into(self.data, page * self.page_size, *(old | fields).values())

    def element(self, page: int, i: int) -> int:
        """Offset of an element of a page's table."""
        return page * self.page_size + PAGE_HEADER_SIZE + ELEMENT_SIZE * i

    def leaf_element(self, page: int, i: int) -> tuple[int, int, int, int]:
        """Flags, pos, key size, value size."""
        flags, pos, key_size, value_size = struct.unpack_from("<IIII", self.data, self.element(page, i))
        return flags, pos, key_size, value_size

    def value_at(self, page: int, i: int) -> tuple[int, int]:
        """Offset and size of a leaf element's value."""
        _, pos, key_size, value_size = self.leaf_element(page, i)
        return self.element(page, i) + pos + key_size, value_size

    def buckets(self, page: int) -> list[int]:
        """The elements of a leaf that are nested buckets."""
        return [i for i in range(self.header(page)[2]) if self.leaf_element(page, i)[0] == BUCKET_FLAG]

    def inline_buckets(self) -> list[tuple[int, int]]:
        """``(page, element)`` of all inline buckets that have keys."""
        found = []
        for page in self.leaves:
            for i in self.buckets(page):
                at, size = self.value_at(page, i)
                if size > BUCKET_HEADER_SIZE + PAGE_HEADER_SIZE and not any(self.data[at : at + 8]):
                    found.append((page, i))
        return found

    def put(self, form: str, offset: int, *values: int) -> None:
        """Overwrite little-endian numbers."""
        struct.pack_into("<" + form, self.data, offset, *values)

    def page_bytes(self, page: int) -> bytes:
        """One page without its overflow pages."""
        return bytes(self.data[page * self.page_size : (page + 1) * self.page_size])

    def set_page(self, page: int, content: bytes) -> None:
        """Overwrite one page."""
        self.data[page * self.page_size : (page + 1) * self.page_size] = content

    def set_meta(self, slot: int, version: int = 2, **fields: int) -> None:
        """Change a meta page and make its checksum right."""
        at = slot * self.page_size + PAGE_HEADER_SIZE
        old = parse_meta(bytes(self.data[slot * self.page_size :]))
        values = {name: getattr(old, name) for name in Meta.__slots__} | fields
        body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, version, *values.values())
        self.data[at : at + len(body) + 8] = body + fnv64a(body).to_bytes(8, "little")


def walk_tree_pages(data: bytes, meta: Meta) -> list[int]:
    """All branch and leaf pages of a sound file, in ascending order."""
    found, todo, size = [], [meta.root], meta.page_size
    while todo:
        page = todo.pop()
        found.append(page)
        _, flags, count, _ = PAGE_HEADER.unpack_from(data, page * size)
        for i in range(count):
            at = page * size + PAGE_HEADER_SIZE + ELEMENT_SIZE * i
            if flags == BRANCH:
                todo.append(struct.unpack_from("<IIQ", data, at)[2])
                continue
            element_flags, pos, key_size, _ = struct.unpack_from("<IIII", data, at)
            if element_flags == BUCKET_FLAG and (root := int.from_bytes(data[at + pos + key_size :][:8], "little")):
                todo.append(root)
    return sorted(found)


def flip_bits(r: random.Random, image: Image) -> None:
    for _ in range(r.choice([1, 1, 3])):
        image.data[r.randrange(len(image.data))] ^= 1 << r.randrange(8)


def set_bytes(r: random.Random, image: Image) -> None:
    count = r.randrange(1, 64)
    at = r.randrange(len(image.data) - count)
    image.data[at : at + count] = bytes([r.randrange(256)]) * count


def page_header(r: random.Random, image: Image) -> None:
    page, field = r.choice(image.pages), r.choice(["id", "flags", "count", "overflow"])
    last = image.pages[-1]
    value = r.choice([0, 1, 2, 3, FREELIST, page + 1, 0xFFFF, r.randrange(1 << 16), last + 1, last + 6])
    if field == "overflow":
        value = r.choice([value, 0xFFFFFFFF, last - page])
    image.set_header(page, **{field: value})


def leaf_element(r: random.Random, image: Image) -> None:
    page = r.choice(image.leaves)
    if count := image.header(page)[2]:
        value = r.choice([0, 1, 2, 15, 16, 0xFFFFFFFF, 0x7FFFFFFF, r.randrange(1 << 13), image.page_size])
        image.put("I", image.element(page, r.randrange(count)) + 4 * r.randrange(4), value)


def branch_element(r: random.Random, image: Image) -> None:
    page = r.choice(image.branches)
    at = image.element(page, r.randrange(image.header(page)[2]))
    if r.random() < 0.6:
        child = r.choice([0, 1, page, r.choice(image.pages), image.pages[-1] + 4, 1 << 40, (1 << 64) - 1])
        image.put("Q", at + 8, child)
    else:
        image.put("I", at + 4 * r.randrange(2), r.choice([0, 1, 0xFFFFFFFF, r.randrange(8192)]))


def swap_pages(r: random.Random, image: Image) -> None:
    a, b = r.choice(image.pages), r.choice(image.pages)
    first, second = image.page_bytes(a), image.page_bytes(b)
    image.set_page(a, second)
    image.set_page(b, first)
    if r.random() < 0.5:
        image.set_header(a, id=a)
        image.set_header(b, id=b)


def copy_page(r: random.Random, image: Image) -> None:
    source, target = r.choice(image.pages), r.choice(image.pages)
    image.set_page(target, image.page_bytes(source))
    image.set_header(target, id=target)


def zeros(r: random.Random, image: Image) -> None:
    image.set_page(r.choice(image.pages), bytes(image.page_size))


def ones(r: random.Random, image: Image) -> None:
    image.set_page(r.choice(image.pages), b"\xff" * image.page_size)


def truncate(r: random.Random, image: Image) -> None:
    size, whole = image.page_size, len(image.data)
    high_water_mark = image.meta.high_water_mark
    ends = [0, 10, 100, size, 2 * size, 2 * size + 100, r.randrange(whole), whole - size, (high_water_mark - 1) * size]
    del image.data[r.choice(ends) :]


def meta_field(r: random.Random, image: Image) -> None:
    meta, slot, some = image.meta, image.slot, r.choice(image.pages)
    end = meta.high_water_mark
    match r.randrange(9):
        case 0:
            image.set_meta(slot, root=r.choice([0, 1, end, end + 9, 1 << 50, some]))
        case 1:
            image.set_meta(slot, freelist=r.choice([0, 1, meta.root, end, 1 << 50, some, NO_FREELIST]))
        case 2:
            image.set_meta(slot, high_water_mark=r.choice([0, 2, end - 1, end + 1, 1 << 40, (1 << 64) - 1]))
        case 3:
            image.set_meta(slot, page_size=r.choice([0, 1, 512, 1024, 4096, 8192, 65536, 4095, 0xFFFFFFFF]))
        case 4:
            image.data[slot * image.page_size + 16 + r.randrange(64)] ^= 1
        case 5:
            for each in (0, 1):
                image.data[each * image.page_size + 16 + r.randrange(64)] ^= 1
        case 6:
            image.set_meta(slot, version=r.choice([1, 3]))
        case 7:
            image.set_meta(1 - slot, txid=meta.txid + 5)
        case 8:
            image.set_meta(slot, txid=(1 << 64) - 1)


def freelist(r: random.Random, image: Image) -> None:
    if image.freelist is None:
        return
    at, count = image.freelist * image.page_size, image.header(image.freelist)[2]
    if not count or r.random() < 0.3:
        image.put("H", at + 10, r.choice([0, max(count - 1, 0), count + 1, 0xFFFF, 511, 512]))
    else:
        page = r.choice([0, 1, image.meta.root, r.choice(image.pages), image.meta.high_water_mark, 1 << 45])
        image.put("Q", at + 16 + 8 * r.randrange(count), page)


def inline_bucket(r: random.Random, image: Image) -> None:
    page, i = r.choice(image.inline_buckets())
    at = image.value_at(page, i)[0]
    offset = r.choice([0, 8, 16, 24, 26, 28, 32, 36, 40, 44])
    image.put("H", at + offset, r.choice([0, 1, 2, 3, 0xFFFF, r.randrange(1 << 16)]))


def bucket_root(r: random.Random, image: Image) -> None:
    page = r.choice([p for p in image.leaves if image.buckets(p)])
    at = image.value_at(page, r.choice(image.buckets(page)))[0]
    image.put("Q", at, r.choice([0, 1, page, image.meta.root, r.choice(image.pages), r.choice(image.leaves), 1 << 60]))


Mutation = Callable[[random.Random, Image], None]

MUTATIONS: list[Mutation] = [
    flip_bits,
    set_bytes,
    page_header,
    page_header,
    leaf_element,
    leaf_element,
    leaf_element,
    branch_element,
    branch_element,
    swap_pages,
    copy_page,
    zeros,
    ones,
    truncate,
    meta_field,
    meta_field,
    freelist,
    inline_bucket,
    bucket_root,
]


def mutate(r: random.Random, sound: Image) -> tuple[str, bytes]:
    """A damaged copy and the names of what was done to it: one mutation, sometimes two."""
    image = sound.copy()
    mutation = r.choice(MUTATIONS)
    mutation(r, image)
    names = mutation.__name__
    if len(image.data) == len(sound.data) and r.random() < 0.15:
        second = r.choice([flip_bits, set_bytes, page_header, swap_pages, truncate])
        second(r, image)
        names += " " + second.__name__
    return names, bytes(image.data)


def sample(path: Path, page_size: int, *, freelist: bool) -> Image:
    """A small file with everything in it: branches, inline and nested buckets, overflow pages, free pages."""
    r = random.Random(page_size)
    new_db(path, page_size, freelist=freelist)
    model = Model()
    with updating(path) as tx:
        big = tx.create_path(b"big")
        for i in range(page_size // 40):
            big.put(b"key%04d" % i + b"." * r.randrange(60), b"v" * r.randrange(200))
        records = tx.create_path(b"records")
        for i in range(30):
            record = records.create_bucket(b"record%02d" % i)
            record.set_sequence(i % 3)
            for k in range(r.randrange(5)):
                record.put(b"field%d" % k, b"x" * r.randrange(30))
        tx.create_path(b"deep", b"er", b"still").put(b"overflow", b"o" * (2 * page_size))
    for _ in range(2):
        with updating(path) as tx:
            for op in random_history(r, model, 30):
                if len(op.value) < 4 * page_size:
                    apply_to_tx(tx, op)
    with updating(path) as tx:
        big = open_bucket(tx, b"big")
        for i in range(10, 25):
            for key in [k for k, _ in big.items() if k.startswith(b"key%04d" % i)]:
                big.delete(key)
    return Image(path.read_bytes())
