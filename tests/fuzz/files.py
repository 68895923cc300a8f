"""Targets: the page reader, the check, and edits of damaged files."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from asyncmig.bolt import Bucket, BucketValue, CheckResult, Db, PageFile, check, dump, rebuild, verify_pages
from asyncmig.errors import BucketError, CorruptDatabaseError, DatabaseError
from tests.bolt.helpers import Model, Operation, apply_to_model, apply_to_tx, bucket_contents
from tests.fuzz.guided import SCRATCH
from tests.fuzz.images import RAW, changed, image_of, sound
from tests.fuzz.source import Source
from tests.torture.campaign import scratch_base

MAX_KEYS = 4_000
"""Keys that are read before the nesting is taken for endless: without a check first, buckets may contain each other."""


class _Enough(Exception):
    pass


@cache
def directory() -> Path:
    """A directory for the files of this process."""
    base = os.environ.get(SCRATCH) or scratch_base()
    holder = tempfile.TemporaryDirectory(prefix="asyncmig-fuzz-", dir=base, ignore_cleanup_errors=True)
    atexit.register(holder.cleanup)
    return Path(holder.name)


def write(data: bytes, name: str = "db") -> Path:
    """A file of these bytes."""
    path = directory() / name
    path.write_bytes(data)
    return path


# -- the reader


def reader(data: bytes) -> None:
    """All ways to read a file that was not checked, and whether they agree."""
    path = write(image_of(data))
    with _damage_allowed(), Db.open(path) as db:
        if db.pages is not None:
            for page in range(db.pages.high_water_mark if db.pages.high_water_mark < 4096 else 0):
                _single_leaf(db.pages, page)
        with _damage_allowed(), db.view() as tx:
            _read_all(tx.root)
        with _damage_allowed():
            for _ in dump(db):
                pass


@contextmanager
def _damage_allowed() -> Iterator[None]:
    with suppress(DatabaseError, _Enough):
        yield


def _single_leaf(pages: PageFile, page_id: int) -> None:
    """The short way for buckets of one page finds what the long one does."""
    try:
        short = pages.single_leaf(page_id)
    except CorruptDatabaseError as error:
        short_error = str(error)
        try:
            pages.leaf(pages.tree_page(page_id)[0])
        except CorruptDatabaseError as long_error:
            assert str(long_error) == short_error
            return
        raise AssertionError("the long way finds nothing wrong") from None
    if short is not None:
        page, is_leaf = pages.tree_page(page_id)
        assert is_leaf
        assert (list(short[0]), list(short[1])) == pages.leaf(page)


def _read_all(root: Bucket) -> None:
    count = 0
    todo = [root]
    while todo:
        bucket = todo.pop()
        forwards = []
        for key, value in bucket.items():
            count += 1
            if count > MAX_KEYS:
                raise _Enough
            forwards.append((key, value))
            if value is None:
                child = bucket.bucket(key)
                assert child is not None, "a search does not find a bucket that the cursor has found"
                todo.append(child)
            else:
                assert bucket.get(key) == value, "a search does not find a key that the cursor has found"
                assert bucket.value(key) == value
        entries = [(key, None if type(value) is BucketValue else value) for key, value in bucket.entries()]
        assert entries == forwards
        _read_backwards(bucket, forwards)


def _read_backwards(bucket: Bucket, forwards: list[tuple[bytes, bytes | None]]) -> None:
    cursor, backwards = bucket.cursor(), []
    item = cursor.last()
    while item:
        backwards.append(item)
        item = cursor.prev()
    assert backwards == forwards[::-1]


# -- the check


def checker(data: bytes) -> None:
    """The check says the same whichever way it is asked; what it calls clean can be dumped and rebuilt."""
    path = write(image_of(data))
    result = check(path)
    assert check(path).findings == result.findings
    try:
        db = Db.open(path)
    except CorruptDatabaseError:
        assert not result.clean
        return
    with db:
        lines = _dumped(db, result)
        if db.pages is None:
            assert result.clean
            return
        assert _first_finding(db.pages, lost_pages=True) == (str(result.findings[0]) if result.findings else None)
        if lines is None:
            return
        assert len(lines) == result.keys + result.buckets
        if result.clean:
            _rebuilt(db.pages, lines)


def _first_finding(pages: PageFile, *, lost_pages: bool) -> str | None:
    try:
        verify_pages(pages, lost_pages=lost_pages)
    except CorruptDatabaseError as error:
        return error.detail if error.page is None else f"page {error.page}: {error.detail}"
    return None


def is_harmless(result: CheckResult) -> bool:
    """Whether nothing is wrong but pages that are neither free nor in use."""
    return not result.truncated and all(f.cause == "neither in use nor on the freelist" for f in result.findings)


def _dumped(db: Db, result: CheckResult) -> list[str] | None:
    try:
        lines = list(dump(db))
    except CorruptDatabaseError:
        assert not is_harmless(result), "a file without findings can't be dumped"
        return None
    assert is_harmless(result) or result.truncated, "a file with findings can be dumped"
    return lines


def _rebuilt(pages: PageFile, lines: list[str]) -> None:
    target = directory() / "rebuilt"
    with target.open("wb") as out:
        rebuild(pages, out.fileno(), str(target), {})
    assert check(target).clean
    with Db.open(target) as db:
        assert list(dump(db)) == lines


# -- edits

_KINDS = ["put", "put", "delete", "delete", "mkbucket", "rmbucket", "sequence", "spill"]


def editor(data: bytes) -> None:
    """A write transaction: a sound file stays sound and holds what was put, and of a damaged one no page in use is written."""
    source = Source(data)
    raw = data[:1] == bytes([RAW])
    base = source.pick(sound())
    damage = Source(source.take(7 * (source.number() % 4)))
    path = write(data[1:] if raw else changed(base, damage))
    before = path.read_bytes()
    was_sound = is_harmless(check(path))
    model = _model_of(path) if was_sound else None
    try:
        db = Db.open(path, writable=True)
    except DatabaseError:
        return
    with db:
        allowed = _pages_to_be_written(db)
        committed = _edit(db, model, _models()[sound().index(base)], source)
    if allowed is not None:
        _check_untouched(before, path.read_bytes(), *allowed)
    if was_sound:
        assert is_harmless(check(path)), [str(finding) for finding in check(path).findings[:3]]
        assert _model_of(path) == (model if committed else _model_of(write(before, "before")))


@cache
def _models() -> list[Model]:
    return [_model_of(write(bytes(image.data), "sound")) for image in sound()]


def _model_of(path: Path) -> Model:
    with Db.open(path) as db, db.view() as tx:
        return bucket_contents(tx.root)


def _pages_to_be_written(db: Db) -> tuple[int, set[int]] | None:
    """Page size, and the pages that the committed state has no use for."""
    pages = db.pages
    if pages is None:
        return None
    try:
        free = db._free_pages()
    except DatabaseError:
        free = []
    return pages.page_size, {1 - pages.meta.txid % 2, *free, *range(pages.high_water_mark, -(-pages.size // pages.page_size))}


def _check_untouched(before: bytes, after: bytes, size: int, allowed: set[int]) -> None:
    for page in range(-(-len(before) // size)):
        span = slice(page * size, (page + 1) * size)
        if before[span] != after[span]:
            assert page in allowed, f"page {page} was overwritten"


def _edit(db: Db, model: Model | None, names: Model, source: Source) -> bool:
    """Whether the transaction was committed; ``model``, that of a sound file, then has its changes, too."""
    operations = list(_operations(source, model, model or names))
    try:
        with db.update() as tx:
            for operation in operations:
                apply_to_tx(tx, operation)
            for name in _names(tx.root)[:20]:
                tx.create_path(name).put(b"touched", b"")
                if model is not None:
                    apply_to_model(model, Operation("put", (name,), b"touched", b""))
    except DatabaseError:
        assert model is None, "a sound file cannot be edited"
        return False
    except BucketError:
        return False
    return True


def _names(root: Bucket) -> list[bytes]:
    return [key for key, value in root.items() if value is None]


def _key(source: Source, bucket: Model | None) -> bytes:
    """A key that is there, more often than not."""
    if bucket and bucket.entries and source.number() % 4:
        return source.pick(list(bucket.entries))
    return b"key%04d" % source.number() if source.number() % 2 else source.text()[:200] or b"k"


def _operations(source: Source, model: Model | None, names: Model) -> Iterator[Operation]:
    """Up to 30 operations, on names that are there or not: ``names`` has those that a file without damage has."""
    tops = [b"big", b"records", b"deep", b"_main", b"_index", b"b0", b"b1", b"new"]
    inner = [b"record%02d" % i for i in range(8)] + [b"a", b"er", b"still", b"b1", b"other"]
    for _ in range(30):
        if source.is_empty:
            return
        kind, depth = source.pick(_KINDS), source.number() % 3
        path = (source.pick(tops), *(source.pick(inner) for _ in range(depth)))
        key = _key(source, names.find(path))
        value = bytes([source.number()]) * source.pick([0, 1, 10, 100, 900, 5000])
        operation = Operation(kind, path, key, value, source.number(8))
        if model is not None:
            if not _fits(model, operation):
                continue  # the engine refuses it
            apply_to_model(model, operation)
        yield operation


def _fits(model: Model, operation: Operation) -> bool:
    """Whether there are buckets, or nothing, where the operation needs buckets, and no bucket where it needs a key."""
    bucket: Model | bytes | None = model
    for name in operation.path:
        bucket = bucket.entries.get(name) if isinstance(bucket, Model) else None
        if isinstance(bucket, bytes):
            return False
    entry = bucket.entries.get(operation.key) if isinstance(bucket, Model) else None
    return operation.kind not in ("put", "delete") or not isinstance(entry, Model)
