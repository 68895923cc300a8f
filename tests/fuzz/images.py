"""Bolt files out of inputs: a sound file and what is done to it, or the bytes of a file themselves.

Mutations of the bytes of a file seldom get behind the checksum of its meta pages or the first page header.  So an input names
one of a few sound files, and then changes: each is seven bytes long, and aims at a field of the format.
"""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from asyncmig.bolt.format import MAX_UINT64, NO_FREELIST, Meta
from tests.bolt.mutate import Image, sample
from tests.caches import sample_cache
from tests.fuzz.source import Source
from tests.torture.campaign import scratch_base

RAW = 0xFF
"""First byte of an input that is the bytes of a file."""

_META_FIELDS = [name for name in Meta.__slots__ if name != "flags"]
_NUMBERS = [
    0, 1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 63, 64, 255, 256, 511, 512, 1000, 1023, 1024, 4095, 4096, 8192, 32767, 32768, 32769,
    0xFFFE, 0xFFFF, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 2, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60,
    1 << 63, MAX_UINT64 - 1, MAX_UINT64,
]  # fmt: skip


@cache
def sound() -> list[Image]:
    """The sound files, always the same."""
    with tempfile.TemporaryDirectory(dir=scratch_base()) as name:
        directory = Path(name)
        cache_file = directory / "cache"
        sample_cache().write_metadata(cache_file, page_size=1024)
        return [
            sample(directory / "listed", 1024, freelist=True),
            sample(directory / "unlisted", 1024, freelist=False),
            sample(directory / "usual", 4096, freelist=True),
            Image(cache_file.read_bytes()),
        ]


def image_of(data: bytes) -> bytes:
    """The bytes of the file that an input stands for."""
    if data[:1] == bytes([RAW]):
        return data[1:]
    source = Source(data)
    return changed(source.pick(sound()), Source(source.rest()))


def changed(base: Image, source: Source) -> bytes:
    """A file with the changes that ``source`` says."""
    image = base.copy()
    while not source.is_empty:
        change = source.pick(_CHANGES)
        # What was changed before may have led out of the file.
        try:
            change(image, Source(source.take(6)))
        except (struct.error, IndexError, ValueError, ZeroDivisionError):
            continue
    return bytes(image.data)


def _number(image: Image, source: Source) -> int:
    """A number that means something: at a border, a page of the file, or any."""
    match source.number() % 4:
        case 0:
            return source.pick(_NUMBERS)
        case 1:
            return source.pick([*image.pages, image.meta.high_water_mark, image.meta.high_water_mark + 1])
        case _:
            return source.number(2)


def _byte(image: Image, source: Source) -> None:
    image.data[source.number(3) % len(image.data)] ^= source.number() or 1


def _header(image: Image, source: Source) -> None:
    page = source.pick(image.pages)
    image.set_header(page, **{source.pick(["id", "flags", "count", "overflow"]): _number(image, source)})


def _leaf(image: Image, source: Source) -> None:
    page, i = source.pick(image.leaves), source.number()
    at = image.element(page, i % max(1, image.header(page)[2]))
    image.put("I", at + 4 * source.pick(range(4)), _number(image, source) & 0xFFFF_FFFF)


def _branch(image: Image, source: Source) -> None:
    page, i = source.pick(image.branches or image.pages), source.number()
    at = image.element(page, i % max(1, image.header(page)[2]))
    match source.number() % 4:
        case 0:
            image.put("I", at, _number(image, source) & 0xFFFF_FFFF)
        case 1:
            image.put("I", at + 4, _number(image, source) & 0xFFFF_FFFF)
        case _:
            image.put("Q", at + 8, _number(image, source))


def _meta(image: Image, source: Source) -> None:
    slot = (image.slot + source.number()) % 2
    image.set_meta(slot, **{source.pick(_META_FIELDS): _number(image, source)})


def _bad_meta(image: Image, source: Source) -> None:
    slot = (image.slot + source.number()) % 2
    image.data[slot * image.page_size + source.number() % 80] ^= source.number() or 1


def _freelist(image: Image, source: Source) -> None:
    page = image.freelist if image.freelist not in (None, NO_FREELIST) else source.pick(image.pages)
    assert page is not None
    at, number = source.number() % 20, _number(image, source)
    image.put("Q", page * image.page_size + 16 + 8 * at, number)


def _copy(image: Image, source: Source) -> None:
    page, target = source.pick(image.pages), source.pick(image.pages)
    image.set_page(target, image.page_bytes(page))
    if source.number() % 4:
        image.set_header(target, id=target)


def _value(image: Image, source: Source) -> None:
    """Somewhere in the first bytes of a value: for a nested bucket its root page, or the header of its inline page."""
    page, i = source.pick(image.leaves), source.number()
    at, size = image.value_at(page, i % max(1, image.header(page)[2]))
    image.put("H", at + source.number() % max(1, min(size, 64)), _number(image, source) & 0xFFFF)


def _key(image: Image, source: Source) -> None:
    page, i = source.pick(image.leaves), source.number() % 64
    _, pos, size, _ = image.leaf_element(page, i % max(1, image.header(page)[2]))
    image.data[image.element(page, i % max(1, image.header(page)[2])) + pos + source.number() % max(1, size)] = source.number()


def _truncate(image: Image, source: Source) -> None:
    if source.number() % 8 == 0:  # once in a while: little is left to do behind it
        del image.data[source.number(3) % len(image.data) :]


# Inputs of the corpus name a change by its place: another one goes to the end.
_CHANGES: list[Callable[[Image, Source], None]] = [
    _byte, _header, _header, _leaf, _leaf, _leaf, _branch, _branch, _meta, _bad_meta, _freelist, _freelist, _copy, _value,
    _value, _key, _truncate,
]  # fmt: skip


def seeds() -> list[bytes]:
    """Inputs to begin with: the sound files, and a few changes to each."""
    r = random.Random(1)
    bases = [bytes([i]) for i in range(len(sound()))]
    few = [base + r.randbytes(7 * r.choice([1, 1, 1, 2, 3])) for base in bases for _ in range(12)]
    smallest = min(sound(), key=lambda image: len(image.data))
    return [*bases, *few, bytes([RAW]), bytes([RAW]) + bytes(smallest.data)]
