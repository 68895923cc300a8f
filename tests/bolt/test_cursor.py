"""Cursors, over buckets of every size and while the bucket changes."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncmig.bolt import Bucket, Cursor
from tests.bolt.helpers import height, new_db, open_bucket, updating, viewing

SIZES = [0, 1, 2, 20, 300, 3000]
"""Empty, inline, one leaf, a branch, several levels."""


def key_of(i: int) -> bytes:
    return b"k%06d" % (2 * i)


@pytest.fixture(params=["committed", "in memory", "half of it changed"], name="bucket_of")
def _bucket_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    """A function that makes a bucket with as many keys; pages come from the file, or are nodes that were changed."""
    open_transactions = []

    def make(size: int) -> Bucket:
        path = new_db(tmp_path / f"db{size}", 1024)
        if request.param != "in memory":
            with updating(path) as tx:
                bucket = tx.create_path(b"b")
                for i in range(size):
                    bucket.put(key_of(i), b"%d" % i)
            assert height(path, b"b") == {0: 0, 1: 0, 2: 0, 20: 0, 300: 1, 3000: 2}[size]
        context = viewing(path) if request.param == "committed" else updating(path)
        tx = context.__enter__()
        open_transactions.append(context)
        if request.param == "committed":
            return open_bucket(tx, b"b")
        bucket = tx.create_path(b"b")
        step = 1 if request.param == "in memory" else 2
        for i in range(0, size, step):
            bucket.put(key_of(i), b"%d" % i)
        return bucket

    yield make
    for context in open_transactions:
        context.__exit__(None, None, None)


def make(bucket_of: object, size: int) -> Bucket:
    assert callable(bucket_of)
    bucket = bucket_of(size)
    assert isinstance(bucket, Bucket)
    return bucket


def forwards(cursor: Cursor) -> list[bytes]:
    keys = []
    item = cursor.first()
    while item:
        keys.append(item[0])
        item = cursor.next()
    return keys


def backwards(cursor: Cursor) -> list[bytes]:
    keys = []
    item = cursor.last()
    while item:
        keys.append(item[0])
        item = cursor.prev()
    return keys


@pytest.mark.parametrize("size", SIZES)
def test_forwards_and_backwards(bucket_of: object, size: int) -> None:
    bucket = make(bucket_of, size)
    keys = [key_of(i) for i in range(size)]
    cursor = bucket.cursor()
    assert forwards(cursor) == keys
    assert backwards(cursor) == keys[::-1]
    assert list(bucket.items()) == [(k, b"%d" % i) for i, k in enumerate(keys)]


@pytest.mark.parametrize("size", SIZES)
def test_seek(bucket_of: object, size: int) -> None:
    bucket = make(bucket_of, size)
    cursor = bucket.cursor()
    for number in random.Random(1).sample(range(-1, 2 * size + 2), min(200, 2 * size + 3)):
        i = min(max(0, -(-number // 2)), size)  # keys have even numbers
        sought = b"k%06d" % number if number >= 0 else b""
        assert cursor.seek(sought) == ((key_of(i), b"%d" % i) if i < size else None)
        assert cursor.prev() == ((key_of(i - 1), b"%d" % (i - 1)) if i else None)


def test_a_random_walk(bucket_of: object) -> None:
    size, rng = 300, random.Random(2)
    cursor = make(bucket_of, size).cursor()
    cursor.first()
    at = 0
    for _ in range(3000):
        step = rng.choice([1, 1, -1])
        item = cursor.next() if step > 0 else cursor.prev()
        if 0 <= at + step < size:
            at += step
            assert item == (key_of(at), b"%d" % at)
        else:
            assert item is None  # and the cursor stays


def test_a_new_cursor(bucket_of: object) -> None:
    bucket = make(bucket_of, 20)
    assert bucket.cursor().next() == (key_of(0), b"0")
    assert bucket.cursor().prev() is None


def test_at_the_ends_the_cursor_stays(bucket_of: object) -> None:
    cursor = make(bucket_of, 300).cursor()
    cursor.last()
    assert [cursor.next(), cursor.next(), cursor.prev()] == [None, None, (key_of(298), b"298")]
    cursor.first()
    assert [cursor.prev(), cursor.prev(), cursor.next()] == [None, None, (key_of(1), b"1")]


def test_an_empty_bucket(bucket_of: object) -> None:
    cursor = make(bucket_of, 0).cursor()
    for call in (cursor.first, cursor.last, cursor.next, cursor.prev, cursor.last, cursor.next, cursor.first, cursor.prev):
        assert call() is None
    assert cursor.seek(b"k") is None
    assert cursor.next() is None
    assert cursor.prev() is None


def test_a_nested_bucket_has_no_value(tmp_path: Path) -> None:
    with updating(new_db(tmp_path / "db")) as tx:
        bucket = tx.create_path(b"b")
        bucket.put(b"a", b"v")
        bucket.create_bucket(b"b")
        assert list(bucket.items()) == [(b"a", b"v"), (b"b", None)]
        assert bucket.cursor().seek(b"b") == (b"b", None)


# -- while the bucket changes


@pytest.fixture(params=[1, 300, 3000])
def changing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bucket, int]]:
    """A bucket from the file, in a write transaction, and the number of its keys."""
    path = new_db(tmp_path / "db", 1024)
    with updating(path) as tx:
        for i in range(request.param):
            tx.create_path(b"b").put(key_of(i), b"%d" % i)
    with updating(path) as tx:
        yield open_bucket(tx, b"b"), request.param


def test_deleting_everything_on_the_way(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    cursor, seen = bucket.cursor(), []
    item = cursor.first()
    while item:
        seen.append(item[0])
        bucket.delete(item[0])
        item = cursor.next()
    assert seen == [key_of(i) for i in range(size)]
    assert [cursor.first(), cursor.last(), cursor.next(), cursor.prev()] == [None] * 4


def test_deleting_everything_on_the_way_back(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    cursor, seen = bucket.cursor(), []
    item = cursor.last()
    while item:
        seen.append(item[0])
        bucket.delete(item[0])
        item = cursor.prev()
    assert seen == [key_of(i) for i in reversed(range(size))]
    assert list(bucket.items()) == []


def test_a_bucket_emptied_behind_the_cursors_back(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    cursor = bucket.cursor()
    cursor.seek(key_of(size // 2))
    for i in range(size):
        bucket.delete(key_of(i))
    assert cursor.last() is None
    assert cursor.next() is None
    assert cursor.prev() is None
    bucket.put(b"a", b"new")
    bucket.put(b"z", b"new")
    assert cursor.next() == (b"z", b"new")
    assert cursor.prev() == (b"a", b"new")


def test_deleting_every_other_key(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    for i, (key, _) in enumerate(bucket.items()):
        if i % 2:
            bucket.delete(key)
    assert [k for k, _ in bucket.items()] == [key_of(i) for i in range(0, size, 2)]


def test_inserting_before_and_behind_the_cursor(changing: tuple[Bucket, int]) -> None:
    """What is inserted behind the current key is met, what is inserted before it is not."""
    bucket, size = changing
    seen = []
    for key, _ in bucket.items():
        seen.append(key)
        if int(key[1:]) % 2 == 0:
            bucket.put(b"k%06d" % (int(key[1:]) + 1), b"behind")
            bucket.put(b"a" + key, b"before")
    assert seen == [b"k%06d" % i for i in range(2 * size)]


def test_overwriting_shows_the_new_value(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    cursor = bucket.cursor()
    cursor.first()
    bucket.put(key_of(size - 1), b"new")
    assert cursor.last() == (key_of(size - 1), b"new")
    bucket.put(key_of(0), b"also new")
    assert cursor.first() == (key_of(0), b"also new")


def test_next_and_prev_after_the_current_key_is_gone(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    middle = size // 2
    for move in ("next", "prev"):
        cursor = bucket.cursor()
        assert cursor.seek(key_of(middle)) is not None
        bucket.delete(key_of(middle))
        expected = middle + (1 if move == "next" else -1)
        item = cursor.next() if move == "next" else cursor.prev()
        assert item == ((key_of(expected), b"%d" % expected) if 0 <= expected < size else None)
        bucket.put(key_of(middle), b"%d" % middle)


def test_random_changes_against_a_sorted_list(changing: tuple[Bucket, int]) -> None:
    bucket, size = changing
    rng = random.Random(size)
    keys = [key_of(i) for i in range(size)]
    cursor = bucket.cursor()
    item = cursor.first()
    current = keys[0]
    assert item == (current, b"0")
    for _ in range(1500):
        x = rng.random()
        number = rng.randrange(2 * size + 20)
        key = b"k%06d" % number
        at = bisect_left(keys, key)
        present = at < len(keys) and keys[at] == key
        if x < 0.35:
            bucket.put(key, b"v")
            if not present:
                keys.insert(at, key)
        elif x < 0.6:
            bucket.delete(key)
            if present:
                del keys[at]
        else:
            at = bisect_left(keys, current)
            here = at < len(keys) and keys[at] == current
            step = rng.choice([1, -1])
            target = at + here if step > 0 else at - 1
            item = cursor.next() if step > 0 else cursor.prev()
            assert (item and item[0]) == (keys[target] if 0 <= target < len(keys) else None)
            if item:
                current = item[0]
    assert forwards(cursor) == keys
