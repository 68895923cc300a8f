"""Healthy caches that newer daemons have worked with: merges, diffs, and records that share a snapshot.

The states are made by hand, as moby/buildkit ``cache/manager.go``, ``cache/refs.go`` and ``cache/blobs.go`` write them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import asyncmig
from asyncmig.bolt import Db
from asyncmig.migration.chains import blob_chain_id, chain_id
from asyncmig.stores.offline import codec
from asyncmig.stores.ports import Kind
from tests.audit.edits import FLAT, LEASES, META, SNAPSHOTS, drop, lease, put
from tests.caches import Snapshot, V1Cache, digest, sample_cache, value

pytestmark = pytest.mark.anyio


async def migrated(tmp_path: Path, *, cache: V1Cache | None = None) -> Path:
    worker = (cache or sample_cache()).write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker)
    return worker


def record(worker: Path, name: str, values: Mapping[str, object], *, held: tuple[str, ...] = ()) -> None:
    """A record as newer daemons make one, with its lease."""
    for key, content in {"cache.createdAt": 1, "snapshot.committed": True, "cache.snapshot": name, **values}.items():
        put(name, key, value(content) if content is not None else b"")(worker)
    lease(name, FLAT, held or (name,))(worker)


def layer(diff: str, blob: str) -> dict[str, object]:
    return {
        "cache.blob": blob,
        "cache.diffID": diff,
        "cache.blobsize": 100,
        "cache.mediatype": "application/vnd.oci.image.layer.v1.tar",
    }


def add_snapshot(worker: Path, name: str, parent: str) -> None:
    number = 100 + len(name)
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        entry = tx.create_path(*map(str.encode, SNAPSHOTS), name.encode())
        entry.put(b"name", f"buildkit/{number}/{name}".encode())
        entry.put(b"parent", parent.encode())
    with Db.open(worker / "snapshots/metadata.db", writable=True) as db, db.update() as tx:
        entry = tx.create_path(b"v1", b"snapshots", f"buildkit/{number}/{name}".encode())
        entry.put(b"id", codec.encode_uvarint(number))
        entry.put(b"kind", bytes([Kind.COMMITTED.value]))
    (worker / f"snapshots/snapshots/{number}/fs").mkdir(parents=True)


async def findings(worker: Path) -> set[tuple[str, str]]:
    return {(finding.code, finding.name) for finding in (await asyncmig.verify(worker)).findings}


MERGE = {"cache.mergeParents": ["b", "d"]}
DIFF = {"cache.lowerDiffParent": "b", "cache.upperDiffParent": "d"}


@pytest.mark.parametrize("parents", [MERGE, DIFF, {"cache.upperDiffParent": "a"}, {"cache.lowerDiffParent": "a"}])
@pytest.mark.parametrize("committed", [True, None], ids=["committed", "v0.10.0"])
async def test_a_merge_or_diff_has_no_snapshot_until_one_is_needed(
    parents: dict[str, object], committed: bool | None, tmp_path: Path
) -> None:
    worker = await migrated(tmp_path)
    record(worker, "composed", {**parents, "snapshot.committed": committed})
    result = await asyncmig.verify(worker)
    assert result.findings == []
    assert result.counts.mutable == 2  # as before


@pytest.mark.parametrize("parents", [MERGE, DIFF])
async def test_its_snapshot_is_looked_at_once_it_is_there(parents: dict[str, object], tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    record(worker, "composed", parents)
    add_snapshot(worker, "composed", "b")
    assert await findings(worker) == set()
    shutil.rmtree(worker / "snapshots/snapshots/108")
    assert await findings(worker) == {("directory-missing", "composed")}
    (worker / "snapshots/snapshots/108/fs").mkdir(parents=True)
    drop(*LEASES, name="composed", database=META)(worker)
    assert await findings(worker) == {("lease-missing", "composed")}


async def test_a_layer_on_a_merge_and_a_holder(tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    record(worker, "composed", MERGE)
    add_snapshot(worker, "composed", "b")
    record(worker, "on it", {"cache.parent": "composed"})
    add_snapshot(worker, "on it", "composed")
    for key, text in {"chainid:": digest("x"), "blobchainid:": digest("y")}.items():  # as computed over the merge's layers
        name = {"chainid:": "cache.chainID", "blobchainid:": "cache.blobChainID"}[key]
        put("on it", name, value(text, key + text))(worker)
        with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
            tx.create_path(b"_index").put(f"{key}{text}::on it".encode(), b"")
    assert await findings(worker) == set()


async def test_a_cache_whose_other_records_are_all_merges_is_not_the_wrong_place(tmp_path: Path) -> None:
    worker = await migrated(tmp_path, cache=V1Cache())
    for name in ("m1", "m2"):
        record(worker, name, {"cache.mergeParents": ["lazy"]})
    record(worker, "lazy", {**layer(digest("diff"), digest("remote")), "cache.blobonly": True})
    assert await findings(worker) == set()


async def test_a_merge_of_a_record_that_is_not_there_is_still_found(tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    record(worker, "composed", {"cache.mergeParents": ["b", "nobody"]})
    assert await findings(worker) == {("parent-missing", "composed")}


# -- records that share a snapshot, because their layers are the same (GetByBlob)


async def test_the_blob_of_a_record_that_uses_anothers_snapshot_may_be_remote(tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    diff, remote = digest("diff a"), digest("another compression of a")
    record(worker, "pulled", {**layer(diff, remote), "cache.snapshot": "a", "cache.blobonly": False}, held=("a",))
    assert await findings(worker) == set()
    put("pulled", "cache.snapshot", value("pulled"))(worker)
    assert ("blob-missing", "pulled") in await findings(worker)


async def test_the_snapshot_of_the_same_layer_will_do_as_parent(tmp_path: Path) -> None:
    """The parent was pulled, the child's snapshot is built on that of a local build whose layers are the same."""
    cache = V1Cache()
    cache.layer("local")
    cache.layer("child", "local")
    cache.snapshots["pulled"] = Snapshot()
    cache.records["pulled"] = dict(cache.records["local"])
    cache.index.append(next(iter(cache.index)).replace("::local", "::pulled"))
    worker = await migrated(tmp_path, cache=cache)
    put("child", "cache.parent", value("pulled"))(worker)
    assert await findings(worker) == set()
    for key in ("chainID", "blobChainID"):
        put("pulled", f"cache.{key}", b"")(worker)
    assert ("parent-mismatch", "child") in await findings(worker)


# -- chain IDs of a layer that was exported as a diff first


async def test_a_layer_that_a_diff_consists_of(tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    blob, diff = digest("blob d"), digest("diff d")
    with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
        entries = tx.create_path(b"_index")
        for key in [key for key, _ in entries.items() if key.endswith(b"::d") and b"chainid:" in key]:
            entries.delete(key)
        for name, text in (("chainID", chain_id(diff, "")), ("blobChainID", blob_chain_id(blob, diff, ""))):
            index = f"{name.lower()}:{text}"
            tx.create_path(b"_main", b"d").put(f"cache.{name}".encode(), value(text, index))
            entries.put(f"{index}::d".encode(), b"")
    assert await findings(worker) == {("chain-wrong", "d")}
    record(worker, "composed", DIFF)
    assert await findings(worker) == set()
