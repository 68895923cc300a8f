"""The tenth difference: no empty bucket of labels stays behind, in files."""

from __future__ import annotations

from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options
from asyncmig.bolt import Bucket, Db
from asyncmig.migration.semantics import HARDENED, Semantics
from tests.caches import sample_cache

pytestmark = pytest.mark.anyio


def empty_labels(path: Path, *place: bytes) -> int:
    """How many entries of a bucket have a bucket of labels with nothing in it."""
    with Db.open(path) as db, db.view() as tx:
        bucket = tx.path_bucket(*place)
        assert bucket is not None
        labels = [tx.path_bucket(*place, name, b"labels") for name, value in bucket.items() if value is None]
        return sum(1 for found in labels if isinstance(found, Bucket) and not list(found.items()))


async def test_empty_buckets_of_labels(semantics: Semantics, tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker, Options(semantics=semantics.name))
    metadata, backend = worker / "containerdmeta.db", worker / "snapshots" / "metadata.db"
    in_metadata = empty_labels(metadata, b"v1", b"buildkit", b"snapshots", b"overlayfs")
    in_backend = empty_labels(backend, b"v1", b"snapshots")
    assert (in_metadata, in_backend) == ((0, 0) if semantics is HARDENED else (7, 7))
    assert (await asyncmig.verify(worker)).findings == [] or semantics is not HARDENED
    await asyncmig.rollback(worker)
    with Db.open(metadata) as db, db.view() as tx:
        labels = tx.path_bucket(b"v1", b"buildkit", b"snapshots", b"overlayfs", b"a", b"labels")
        assert labels is not None
        assert labels.get(b"containerd.io/gc.root")
