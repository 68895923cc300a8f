"""Mutated files: whatever the bytes are, every call ends, with a result or with the right error."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

from asyncmig.bolt import Bucket, BucketBuilder, Db, PageFile, check, dump, rebuild
from asyncmig.errors import DatabaseError
from tests.bolt.mutate import Image, mutate, sample

SECONDS_PER_FILE = 120
MAX_KEYS = 4_000
"""Keys a reader visits before it takes the nesting for endless; the sample has about a thousand."""

SAMPLES = {"1 KB pages": (1024, True), "1 KB pages, no freelist": (1024, False), "4 KB pages": (4096, True)}


class _TooManyKeys(Exception):
    pass


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A hang is a failure."""

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {SECONDS_PER_FILE} seconds")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(scope="module")
def sample_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Image]:
    @cache
    def make(name: str) -> Image:
        page_size, freelist = SAMPLES[name]
        return sample(tmp_path_factory.mktemp("sample") / "db", page_size, freelist=freelist)

    return make


def read_everything(path: Path) -> int:
    """Walk all buckets with cursors, forwards and backwards, without checking the file first."""
    count = 0
    with Db.open(path) as db, db.view() as tx:
        todo: list[Bucket] = [tx.root]
        while todo:
            bucket = todo.pop()
            forwards = []
            for key, value in bucket.items():
                count += 1
                if count > MAX_KEYS:
                    raise _TooManyKeys
                forwards.append(key)
                if value is None:
                    child = bucket.bucket(key)
                    assert child is not None, "a search does not find a bucket that the cursor has found"
                    todo.append(child)
                else:
                    assert bucket.get(key) == value, "a search does not find a key that the cursor has found"
            cursor, backwards = bucket.cursor(), []
            item = cursor.last()
            while item:
                backwards.append(item[0])
                item = cursor.prev()
            assert backwards == forwards[::-1]
    return count


def write_something(path: Path, rng: random.Random) -> None:
    """A transaction with every kind of change, in buckets that are there."""
    with Db.open(path, writable=True) as db, db.update() as tx:
        for name in [k for k, v in tx.root.items() if v is None]:
            bucket = tx.bucket(name)
            assert bucket is not None
            if rng.random() < 0.3:
                tx.delete_bucket(name)
                continue
            items = list(bucket.items())
            for key, value in rng.sample(items, min(len(items), rng.choice([1, 10, 1000]))):
                if value is not None:
                    bucket.delete(key)
                elif rng.random() < 0.3:
                    bucket.delete_bucket(key)
                else:
                    bucket.create_bucket_if_not_exists(key).put(b"new", b"v" * rng.choice([0, 10, 1000]))
            bucket.put(b"a new key", b"value")
            bucket.set_sequence(bucket.sequence ^ 1)


def rebuild_something(path: Path, target: Path, name: bytes) -> None:
    def fill(builder: BucketBuilder) -> None:
        for i in range(50):
            builder.put(b"%04d" % i, b"built")

    with open(path, "rb") as source, open(target, "wb") as out:
        rebuild(PageFile(source.fileno(), str(path)), out.fileno(), str(target), {name: fill})


def is_sound(path: Path) -> bool:
    """Whether the check finds nothing that does harm, as lost pages do not."""
    return all(f.cause == "neither in use nor on the freelist" for f in check(path).findings)


def try_everything(path: Path, rng: random.Random) -> bool:
    """Every way to use a file.  Returns whether it is sound to the check; then everything must work."""
    signal.alarm(SECONDS_PER_FILE)
    sound = is_sound(path)

    @contextmanager
    def may_be_refused() -> Iterator[None]:
        try:
            yield
        except (DatabaseError, _TooManyKeys):
            assert not sound

    refused = True
    with may_be_refused(), Db.open(path) as db:
        lines = list(dump(db))
        refused = False
        assert all(line.startswith('{"p":[') for line in lines)
    assert refused != sound, "dump refuses what check finds, and nothing else"
    with may_be_refused():
        read_everything(path)
    if path.stat().st_size:
        with may_be_refused():
            target = path.with_name("rebuilt")
            rebuild_something(path, target, rng.choice([b"big", b"records"]))
            # Only what is kept is looked at, and all of that: what comes out is sound even if the rest was not.
            assert check(target).clean
    with may_be_refused():
        write_something(path, rng)
        if sound:
            assert is_sound(path)
    signal.alarm(0)
    return sound


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("seed", range(10))
def test_mutated_files(tmp_path: Path, sample_of: Callable[[str], Image], name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    sound, path = sample_of(name), tmp_path / "db"
    clean = 0
    for number in range(70):
        kind, data = mutate(rng, sound)
        path.write_bytes(data)
        try:
            clean += try_everything(path, rng)
        except Exception as error:
            error.add_note(f"file {number}: {kind}")
            raise
    # A mutation may hit a free page, or the value of a key.
    assert 0 < clean < 35


@pytest.mark.parametrize("name", SAMPLES)
def test_the_sample_itself_is_sound(tmp_path: Path, sample_of: Callable[[str], Image], name: str) -> None:
    path = tmp_path / "db"
    path.write_bytes(sample_of(name).data)
    assert try_everything(path, random.Random(1))
