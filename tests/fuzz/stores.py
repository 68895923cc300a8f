"""Target: databases of a containerd that are sound as files and hold what no containerd writes."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path

import anyio

import asyncmig
from asyncmig.bolt import Bucket, Db, check
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.errors import AsyncmigError, BucketError
from tests.caches import marked_cache
from tests.fuzz.files import directory
from tests.fuzz.source import Source

DATABASES = ["containerdmeta.db", "snapshots/metadata.db", "metadata.db"]
_VALUES = [
    b"", b"\0", b"\x01", b"\xff", b"\xff" * 9, b"\xff" * 10 + b"\1", b"\x80" * 20, b"a", b"buildkit/1/a", b"buildkit/x/a",
    b"//", b"v1",
    b"\1" + bytes(14), b"\2" + bytes(14), b"\1" + b"\xff" * 14, b"\1" * 15, b"\1" * 16, b"2020-01-02T03:04:05Z", b"\x06",
    b"\x03", b"b",
    b"sha256:" + b"0" * 64, b"\xed\xa0\x80", b"overlayfs", b"x" * 3000,
]  # fmt: skip
_NAMES = [
    b"name", b"parent", b"labels", b"createdat", b"updatedat", b"id", b"kind", b"size", b"version", b"snapshots",
    b"content", b"leases",
    b"blob", b"ingests", b"a", b"new", b"\xff", b"containerd.io/gc.root", b"buildkit", b"overlayfs", b"children",
    b"parents", b"_main",
    b"_index", b"k" * 1000,
]  # fmt: skip


@cache
def _template() -> Path:
    return marked_cache().write(directory() / "template" / "runc-overlayfs", page_size=1024)


def stores(data: bytes) -> None:
    """A plan, a migration, a verification and a rollback end with a result or an error of ours, and leave sound files."""
    source = Source(data)
    upstream = source.number() % 2
    root = directory() / "stores"
    shutil.rmtree(root, ignore_errors=True)
    worker = root / "runc-overlayfs"
    shutil.copytree(_template(), worker)
    for _ in range(8):
        if source.is_empty:
            break
        _change(worker / source.pick(DATABASES), source)
    options = asyncmig.Options(semantics="upstream") if upstream else asyncmig.Options(max_dropped=100)
    original = (worker / "metadata.db").read_bytes()
    done = set()
    for verb in (asyncmig.plan, asyncmig.migrate, asyncmig.verify, asyncmig.rollback):
        try:
            anyio.run(verb, worker, options)
            done.add(verb)
        except AsyncmigError as error:
            assert str(error).isprintable(), str(error)
            half_way = (asyncmig.IncompleteMigrationError, asyncmig.IncompleteRollbackError)
            assert not isinstance(error, half_way), "all that can fail is to fail before anything is changed"
            before = asyncmig.plan if verb is asyncmig.migrate else asyncmig.migrate
            assert before not in done, f"{verb.__name__} fails, though {before.__name__} did not: {error}"
    assert (worker / "metadata.db").read_bytes() == original
    for name in DATABASES:
        assert check(worker / name).clean, name
    new = worker / "metadata_v2.db"
    if new.exists():
        with MetadataDb.open(new) as database:
            database.check()


def _change(path: Path, source: Source) -> None:
    """One change, anywhere in the tree."""
    with Db.open(path, writable=True) as db, db.update() as tx:
        bucket = tx.root
        for _ in range(source.number() % 8):
            names = [key for key, value in bucket.items() if value is None]
            if not names:
                break
            child = bucket.bucket(source.pick(names))
            assert child is not None
            bucket = child
        keys = [key for key, _ in bucket.items()]
        key = source.pick(keys) if keys and source.number() % 4 else source.pick(_NAMES)
        try:
            _set(bucket, key, source)
        except BucketError:
            return


def _set(bucket: Bucket, key: bytes, source: Source) -> None:
    how = source.number() % 8
    if how < 6 and bucket.bucket(key) is not None:
        if how % 2 == 0 and bucket is not bucket.tx.root:
            bucket.delete_bucket(key)
        return
    if how in (0, 1):
        bucket.delete(key)
        bucket.create_bucket(key).put(source.pick(_NAMES), source.pick(_VALUES))
    elif how == 2:
        bucket.delete(key)
    else:
        bucket.put(key, source.pick(_VALUES) if source.number() % 4 else source.text()[:50])


def seeds() -> list[bytes]:
    r = random.Random(6)
    return [b"", b"\1", *(r.randbytes(r.choice([10, 20, 50])) for _ in range(40))]
