"""The offline stores: what each verb does to the files, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncmig.bolt import Db
from asyncmig.errors import DatabaseError, LayoutError, StoreError
from asyncmig.stores.offline import OfflineFiles, codec, offline_stores
from asyncmig.stores.ports import ContentInfo, Kind, Lease, Protected, Resource, SnapshotInfo, Stores
from tests.caches import ROOT, Snapshot, V1Cache, digest, sample_cache

pytestmark = pytest.mark.anyio


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return sample_cache().write(tmp_path / "runc-overlayfs")


@pytest.fixture
def files(worker: Path) -> Iterator[OfflineFiles]:
    opened = OfflineFiles.open(
        worker / "containerdmeta.db", worker / "snapshots" / "metadata.db", namespace="buildkit", writable=True
    )
    yield opened
    opened.close()


@pytest.fixture
def stores(files: OfflineFiles) -> Stores:
    return offline_stores(files, "overlayfs")


def read(db: Db | None, *path: bytes) -> dict[bytes, bytes | None]:
    assert db is not None
    with db.view() as tx:
        bucket = tx.path_bucket(*path)
        assert bucket is not None
        return dict(bucket.items())


SNAPSHOTS = (b"v1", b"buildkit", b"snapshots", b"overlayfs")


async def test_stat(stores: Stores) -> None:
    assert await stores.snapshots.stat_many(["view", "missing", "b", "mutable"]) == [
        SnapshotInfo("view", Kind.VIEW, "b"),
        None,
        SnapshotInfo("b", Kind.COMMITTED, "a"),
        SnapshotInfo("mutable", Kind.ACTIVE, "c"),
    ]
    assert await stores.snapshots.stat_many([]) == []


async def test_views(stores: Stores) -> None:
    assert await stores.snapshots.views() == ["view"]


async def test_views_of_another_namespace_or_snapshotter_are_not_ours(tmp_path: Path) -> None:
    cache = V1Cache(snapshots={"one/with/slashes": Snapshot(Kind.VIEW), "two": Snapshot(Kind.VIEW)})
    worker = cache.write(tmp_path / "worker")
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        other = tx.create_path(b"v1", b"other", b"snapshots", b"overlayfs", b"two")
        other.put(b"name", b"other/9/two")
        other.put(b"labels", b"no bucket, which is not our concern")
        ours = tx.path_bucket(*SNAPSHOTS)
        assert ours is not None
        ours.delete_bucket(b"two")
    with Db.open(worker / "snapshots" / "metadata.db", writable=True) as db, db.update() as tx:
        for name in (b"other/9/two", b"buildkit/2/two"):
            foreign = tx.create_path(b"v1", b"snapshots", name)
            foreign.put(b"kind", bytes([Kind.VIEW.value]))
            foreign.put(b"labels", b"no bucket")
    files = OfflineFiles.open(
        worker / "containerdmeta.db", worker / "snapshots" / "metadata.db", namespace="buildkit", writable=False
    )
    assert await offline_stores(files, "overlayfs").snapshots.views() == ["one/with/slashes"]
    assert await offline_stores(files, "native").snapshots.views() == []
    files.close()


async def test_a_view_whose_backend_name_does_not_tell_its_key(tmp_path: Path) -> None:
    cache = V1Cache(snapshots={"a": Snapshot(Kind.VIEW), "b": Snapshot(Kind.VIEW)})
    worker = cache.write(tmp_path / "worker")
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        entry = tx.path_bucket(*SNAPSHOTS, b"b")
        assert entry is not None
        entry.put(b"name", b"odd")
    with Db.open(worker / "snapshots" / "metadata.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"v1", b"snapshots", b"odd").put(b"kind", bytes([Kind.VIEW.value]))
    paths = (worker / "containerdmeta.db", worker / "snapshots" / "metadata.db")
    files = OfflineFiles.open(*paths, namespace="buildkit", writable=False)
    assert await offline_stores(files, "overlayfs").snapshots.views() == ["a", "b"]
    files.close()
    with Db.open(paths[0], writable=True) as db, db.update() as tx:
        tx.create_path(*SNAPSHOTS, b"b").delete_bucket(b"labels")
        tx.create_path(*SNAPSHOTS, b"b").put(b"labels", b"no bucket")
    files = OfflineFiles.open(*paths, namespace="buildkit", writable=False)
    with pytest.raises(StoreError, match=r"containerdmeta\.db: snapshot b: labels is a value"):
        await offline_stores(files, "overlayfs").snapshots.views()
    files.close()


async def test_info(stores: Stores) -> None:
    assert await stores.content.info_many([digest("blob b"), digest("nowhere")]) == [ContentInfo(digest("blob b"), 100), None]


async def test_removing_a_label_from_a_snapshot(stores: Stores, files: OfflineFiles) -> None:
    before = read(files.metadata, *SNAPSHOTS, b"a")
    assert await stores.snapshots.remove_label_many(["missing", "a"], ROOT) == [False, True]
    after = read(files.metadata, *SNAPSHOTS, b"a")
    assert after[b"updatedat"] != before[b"updatedat"]
    assert {k: v for k, v in after.items() if k != b"updatedat"} == {k: v for k, v in before.items() if k != b"updatedat"}
    assert read(files.metadata, *SNAPSHOTS, b"a", b"labels") == {}, "the emptied bucket stays"
    # The snapshotter's own database gets a new time and an empty bucket, too.
    assert read(files.backend, b"v1", b"snapshots", b"buildkit/1/a", b"labels") == {}
    assert read(files.backend, b"v1", b"snapshots", b"buildkit/1/a")[b"updatedat"] == after[b"updatedat"]


async def test_the_snapshotters_database_is_committed_first(
    stores: Stores, files: OfflineFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containerd.  Where the other commit fails, the label is still there, and the Update can be repeated."""
    assert files.metadata is not None
    metadata_fd, real = files.metadata.fd, os.fdatasync

    def failing(fd: int) -> None:
        if fd == metadata_fd:
            raise OSError(5, "Input/output error")
        real(fd)

    before = read(files.metadata, *SNAPSHOTS, b"a")
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(DatabaseError, match=r"containerdmeta\.db: cannot sync"):
        await stores.snapshots.remove_label_many(["a"], ROOT)
    assert read(files.backend, b"v1", b"snapshots", b"buildkit/1/a", b"labels") == {}
    assert read(files.metadata, *SNAPSHOTS, b"a") == before
    assert ROOT.encode() in read(files.metadata, *SNAPSHOTS, b"a", b"labels")


async def test_removing_a_label_from_a_blob_keeps_the_others(stores: Stores, files: OfflineFiles) -> None:
    assert await stores.content.remove_label_many([digest("blob a"), digest("nowhere")], ROOT) == [True, False]
    path = (b"v1", b"buildkit", b"content", b"blob", digest("blob a").encode())
    assert read(files.metadata, *path, b"labels") == {b"containerd.io/uncompressed": digest("diff a").encode()}
    assert read(files.metadata, *path)[b"size"] == codec.encode_varint(100)


async def test_removing_a_label_that_is_not_there_makes_the_bucket_as_containerd_does(tmp_path: Path) -> None:
    cache = V1Cache(snapshots={"a": Snapshot(labels={})})
    worker = cache.write(tmp_path / "worker")
    paths = (worker / "containerdmeta.db", worker / "snapshots" / "metadata.db")
    files = OfflineFiles.open(*paths, namespace="buildkit", writable=True)
    assert b"labels" not in read(files.metadata, *SNAPSHOTS, b"a")
    await offline_stores(files, "overlayfs").snapshots.remove_label_many(["a"], ROOT)
    assert read(files.metadata, *SNAPSHOTS, b"a", b"labels") == {}
    files.close()


async def test_leases_are_made_with_labels_and_resources(stores: Stores, files: OfflineFiles) -> None:
    wanted = Lease("x", {"l": "v"}, (Resource("snapshots/overlayfs", "x"), Resource("content", digest("b"))))
    assert [made.is_new for made in await stores.leases.protect_many([wanted, Lease("y")])] == [True, True]
    found = await stores.leases.list_many(["x", "y", "z"])
    assert found[0] is not None
    assert (found[0].labels, set(found[0].resources)) == (wanted.labels, set(wanted.resources))
    assert found[1:] == [Lease("y"), None]
    stored = read(files.metadata, b"v1", b"buildkit", b"leases", b"x")
    assert set(stored) == {b"createdat", b"labels", b"content", b"snapshots"}, "a lease has no updatedat"
    assert set(read(files.metadata, b"v1", b"buildkit", b"leases", b"y")) == {b"createdat"}


async def test_an_existing_lease_keeps_its_labels_and_gets_the_resources(stores: Stores) -> None:
    await stores.leases.protect_many([Lease("x", {"l": "1"})])
    more = Lease("x", {"l": "2"}, (Resource("content", digest("b")),))
    assert await stores.leases.protect_many([more]) == [Protected(is_new=False, confirmed=False)]
    assert await stores.leases.list_many(["x"]) == [Lease("x", {"l": "1"}, more.resources)]


async def test_a_resource_of_a_type_that_containerd_refuses(stores: Stores, worker: Path, files: OfflineFiles) -> None:
    with pytest.raises(StoreError, match="can't hold a resource of type nonsense"):
        await stores.leases.protect_many([Lease("x", {}, (Resource("nonsense", "x"),))])
    assert await stores.leases.list_many(["x"]) == [None]


async def test_many_of_each_kind_in_one_transaction(stores: Stores, files: OfflineFiles, worker: Path) -> None:
    assert files.metadata is not None
    assert files.metadata.pages is not None
    before = files.metadata.pages.meta.txid
    leases = [Lease(f"{i:05}", {"l": "v"}, (Resource("snapshots/overlayfs", f"{i:05}"),)) for i in range(3000)]
    assert all(made.is_new for made in await stores.leases.protect_many(leases))
    assert files.metadata.pages.meta.txid == before + 1
    assert await stores.leases.list_many([lease.id for lease in leases]) == leases


async def test_missing_files_are_empty_stores(tmp_path: Path) -> None:
    files = OfflineFiles.open(tmp_path / "none.db", tmp_path / "none", namespace="buildkit", writable=True)
    stores = offline_stores(files, "overlayfs")
    assert await stores.snapshots.stat_many([]) == []
    with pytest.raises(LayoutError, match=r"none\.db: missing; this cache is not complete"):
        await stores.snapshots.stat_many(["a"])
    assert await stores.snapshots.views() == []
    assert await stores.content.info_many([digest("a")]) == [None]
    assert await stores.leases.list_many(["a"]) == [None]
    assert await stores.leases.protect_many([]) == []
    with pytest.raises(StoreError, match="does not exist"):
        await stores.leases.protect_many([Lease("a")])
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_calls_without_items_write_nothing(stores: Stores, worker: Path) -> None:
    before = (worker / "containerdmeta.db").read_bytes()
    await stores.snapshots.remove_label_many([], ROOT)
    await stores.content.remove_label_many([], ROOT)
    await stores.leases.protect_many([])
    assert (worker / "containerdmeta.db").read_bytes() == before


@pytest.mark.parametrize(
    ("unix_ns", "encoded"),
    [(1_577_934_245_123_456_789, "010000000ed59f54a5075bcd15ffff"), (0, "010000000e7791f70000000000ffff")],
)
def test_times(unix_ns: int, encoded: str) -> None:
    assert codec.encode_time(unix_ns).hex() == encoded


@pytest.mark.parametrize(
    ("number", "encoded"), [(0, "00"), (3, "06"), (4, "08"), (31, "3e"), (300, "d804"), (4096, "8040"), (-1, "01")]
)
def test_varints(number: int, encoded: str) -> None:
    assert codec.encode_varint(number).hex() == encoded
    assert codec.decode_varint(bytes.fromhex(encoded)) == number
