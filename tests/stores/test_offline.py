"""The offline stores: what each verb does to the files, byte for byte."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from asyncmig.bolt import Db, dump, verify_pages
from asyncmig.bolt.format import encode_inline
from asyncmig.errors import BucketError, DatabaseError, LayoutError, StoreError
from asyncmig.layouts import opening
from asyncmig.layouts.detect import find_layout
from asyncmig.stores.offline import OfflineFiles, codec, offline_stores
from asyncmig.stores.ports import HEAD_SIZE, ContentInfo, Kind, Lease, Protected, Resource, SnapshotInfo, Stores
from tests.caches import ROOT, TIME, Snapshot, V1Cache, digest, sample_cache
from tests.clock import SAFETY

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


def open_stores(files: OfflineFiles, snapshotter: str = "overlayfs") -> Stores:
    return offline_stores(files, snapshotter, content_directory=Path(files.metadata_path).parent / "content")


@pytest.fixture
def stores(files: OfflineFiles) -> Stores:
    return open_stores(files)


def read(db: Db | None, *path: bytes) -> dict[bytes, bytes | None]:
    assert db is not None
    with db.view() as tx:
        bucket = tx.path_bucket(*path)
        assert bucket is not None
        return dict(bucket.items())


SNAPSHOTS = (b"v1", b"buildkit", b"snapshots", b"overlayfs")
BLOBS = (b"v1", b"buildkit", b"content", b"blob")
LEASES = (b"v1", b"buildkit", b"leases")
BACKEND = (b"v1", b"snapshots")


async def test_stat(stores: Stores) -> None:
    assert await stores.snapshots.stat_many(["view", "missing", "b", "mutable"]) == [
        SnapshotInfo("view", Kind.VIEW, "b", TIME),
        None,
        SnapshotInfo("b", Kind.COMMITTED, "a", TIME),
        SnapshotInfo("mutable", Kind.ACTIVE, "c", TIME),
    ]
    assert await stores.snapshots.stat_many([]) == []


async def test_views(stores: Stores) -> None:
    assert await stores.snapshots.views() == [SnapshotInfo("view", Kind.VIEW, "b", TIME)]


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
    assert [view.name for view in await open_stores(files).snapshots.views()] == ["one/with/slashes"]
    assert await open_stores(files, "native").snapshots.views() == []
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
    assert [view.name for view in await open_stores(files).snapshots.views()] == ["a", "b"]
    files.close()
    with Db.open(paths[0], writable=True) as db, db.update() as tx:
        tx.create_path(*SNAPSHOTS, b"b").delete_bucket(b"labels")
        tx.create_path(*SNAPSHOTS, b"b").put(b"labels", b"no bucket")
    files = OfflineFiles.open(*paths, namespace="buildkit", writable=False)
    with pytest.raises(StoreError, match=r"containerdmeta\.db: snapshot b: labels is a value"):
        await open_stores(files).snapshots.views()
    files.close()


async def test_info(stores: Stores) -> None:
    assert await stores.content.info_many([digest("blob b"), digest("nowhere")]) == [
        ContentInfo(digest("blob b"), 100, TIME),
        None,
    ]


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
    metadata_fd, real, syncs = files.metadata.fd, os.fdatasync, []

    def failing(fd: int) -> None:
        syncs.append(fd)
        if syncs.count(metadata_fd) == 2:  # the first one is of the state before
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
    await open_stores(files).snapshots.remove_label_many(["a"], ROOT)
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


@pytest.mark.parametrize(
    "wrong",
    [
        Lease(""),
        Lease("i" * 32_769),
        Lease("x", {"l" * 32_769: ""}),
        Lease("x", {"": "v"}),
        Lease("x", {}, (Resource("content", ""), Resource("content", "c"))),
        Lease("x", {}, (Resource("content", "c" * 32_769),)),
        Lease("x", {}, (Resource("snapshots/overlayfs", ""),)),
        Lease("x", {}, (Resource("snapshots/overlayfs", "s" * 40_000),)),
        Lease("x", {}, (Resource("snapshots/", "s"),)),
    ],
)
async def test_a_lease_with_a_name_that_bolt_cannot_hold(
    wrong: Lease, stores: Stores, files: OfflineFiles, worker: Path
) -> None:
    """It is refused, as by containerd; written all the same, it would be a database that nobody can open."""
    assert files.metadata is not None
    for _ in range(2 if wrong.resources else 1):  # the second time it is there already, without resources
        before = (worker / "containerdmeta.db").read_bytes()
        with pytest.raises(BucketError, match=r"a key of \d+ bytes; 1 to 32768 are allowed"):
            await stores.leases.protect_many([Lease("first"), wrong])
        assert (worker / "containerdmeta.db").read_bytes() == before
        await stores.leases.protect_many([Lease("x")])
    assert files.metadata.pages is not None
    verify_pages(files.metadata.pages, lost_pages=True)


@pytest.mark.parametrize("first", ["a value", "a bucket"])
async def test_labels_that_are_a_value_are_none(first: str, stores: Stores, files: OfflineFiles) -> None:
    """Whatever labels of the same bytes are in another lease."""
    labels = encode_inline([b"l"], [b"v"], 0)
    assert files.metadata is not None
    with files.metadata.update() as tx:
        for name, is_bucket in ((b"1", first == "a bucket"), (b"2", first != "a bucket")):
            lease = tx.create_path(*LEASES, name)
            if is_bucket:
                lease.create_bucket(b"labels").put(b"l", b"v")
            else:
                lease.put(b"labels", bytes(labels))
    found = {lease.id: lease.labels for lease in await stores.leases.list_all()}
    assert found == ({"1": {}, "2": {"l": "v"}} if first == "a value" else {"1": {"l": "v"}, "2": {}})


async def test_many_of_each_kind_in_one_transaction(stores: Stores, files: OfflineFiles, worker: Path) -> None:
    assert files.metadata is not None
    assert files.metadata.pages is not None
    before = files.metadata.pages.meta.txid
    leases = [Lease(f"{i:05}", {"l": "v"}, (Resource("snapshots/overlayfs", f"{i:05}"),)) for i in range(3000)]
    assert all(made.is_new for made in await stores.leases.protect_many(leases))
    assert files.metadata.pages.meta.txid == before + 1
    assert await stores.leases.list_many([lease.id for lease in leases]) == leases


async def test_what_is_gone_counts_as_dealt_with(files: OfflineFiles, tmp_path: Path) -> None:
    done: list[int] = []
    stores = offline_stores(files, "overlayfs", done.append, content_directory=tmp_path)
    assert await stores.snapshots.remove_label_many(["a", "nowhere", "b"], ROOT) == [True, False, True]
    assert await stores.content.remove_label_many([digest("blob a"), digest("nowhere")], ROOT) == [True, False]
    assert sum(done) == 3 + 2


async def test_missing_files_are_empty_stores(tmp_path: Path) -> None:
    files = OfflineFiles.open(tmp_path / "none.db", tmp_path / "none", namespace="buildkit", writable=True)
    stores = open_stores(files)
    assert await stores.snapshots.stat_many([]) == []
    with pytest.raises(LayoutError, match=r"none\.db: missing; this cache is not complete"):
        await stores.snapshots.stat_many(["a"])
    assert await stores.snapshots.views() == []
    assert await stores.content.info_many([digest("a")]) == [None]
    assert await stores.leases.list_many(["a"]) == [None]
    assert await stores.leases.protect_many([]) == []
    assert await stores.snapshots.list_all() == []
    assert await stores.content.list_all() == []
    assert await stores.content.head_many([BLOB]) == [None]
    assert await stores.leases.list_all() == []
    assert await stores.snapshots.set_label_many([("a", "1")], "l") == [False]
    await stores.leases.delete_many(["a"])
    await stores.leases.remove_resources_many([Lease("a", {}, (Resource("content", digest("a")),))])
    with pytest.raises(StoreError, match="does not exist"):
        await stores.leases.protect_many([Lease("a")])
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_calls_without_items_write_nothing(stores: Stores, worker: Path) -> None:
    before = (worker / "containerdmeta.db").read_bytes()
    await stores.snapshots.remove_label_many([], ROOT)
    await stores.content.remove_label_many([], ROOT)
    await stores.leases.protect_many([])
    await stores.snapshots.set_label_many([], "l")
    await stores.content.set_label_many([], "l")
    await stores.leases.delete_many([])
    await stores.leases.remove_resources_many([])
    await stores.leases.delete_many(["nowhere"])
    await stores.leases.remove_resources_many([Lease("nowhere", {}, (Resource("content", digest("a")),))])
    assert (worker / "containerdmeta.db").read_bytes() == before


# -- listing everything


@pytest.mark.parametrize("rooted", [False, True])
async def test_listing_passes_over_what_containerd_never_writes(rooted: bool, tmp_path: Path) -> None:
    cache = sample_cache()
    worker = cache.write(tmp_path / "worker")
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        snapshots, blobs = tx.create_path(*SNAPSHOTS), tx.create_path(*BLOBS)
        leases = tx.create_path(*LEASES)
        for bucket in (snapshots, blobs, leases):
            bucket.put(b"a value", b"where an entry should be")
            bucket.create_bucket(b"an empty entry")
        for number, shape in enumerate((b"name", b"parent", b"labels")):
            odd = snapshots.create_bucket(b"odd " + shape)
            odd.put(b"name", f"buildkit/{number + 1}/{list(cache.snapshots)[number]}".encode())
            if shape == b"labels":
                odd.put(shape, b"a value where a bucket should be")
            else:
                odd.delete(shape)
                odd.create_bucket(shape)
        snapshots.create_bucket(b"nested label").put(b"name", b"buildkit/1/a")
        tx.create_path(*SNAPSHOTS, b"nested label", b"labels", ROOT.encode())
        snapshots.create_bucket(b"empty label").put(b"name", b"buildkit/1/a")
        tx.create_path(*SNAPSHOTS, b"empty label", b"labels").put(ROOT.encode(), b"")
        tx.create_path(*BLOBS, digest("odd size").encode(), b"size")
        tx.create_path(*BLOBS, digest("odd labels").encode()).put(b"labels", b"a value")
        tx.create_path(*BLOBS, b"sha256:ABC", b"labels").put(ROOT.encode(), b"1")
        leases.create_bucket(b"odd lease").put(b"snapshots", b"a value")
        tx.create_path(*LEASES, b"odd lease", b"labels", b"nested")
    files = OfflineFiles.open(
        worker / "containerdmeta.db", worker / "snapshots" / "metadata.db", namespace="buildkit", writable=False
    )
    stores = open_stores(files)
    found = {info.name: info.root for info in await stores.snapshots.list_all(rooted=rooted)}
    bare = {"odd parent": None, "odd labels": None, "nested label": None}
    assert found == {**dict.fromkeys(cache.snapshots, TIME), "empty label": "", **({} if rooted else bare)}
    blobs_found = {info.digest: info.size for info in await stores.content.list_all(rooted=rooted)}
    bare_blobs = {digest("odd size"): 0, digest("odd labels"): 0}
    assert blobs_found == {**dict.fromkeys(cache.blobs, 100), **({} if rooted else bare_blobs)}
    assert await stores.leases.list_all() == [Lease("an empty entry"), Lease("odd lease", {"nested": ""})]
    files.close()


async def test_listing_is_in_the_order_of_containerds_walk(stores: Stores) -> None:
    names = [info.name for info in await stores.snapshots.list_all()]
    assert names == sorted(names)
    digests = [info.digest for info in await stores.content.list_all()]
    assert digests == sorted(digests)


async def test_resources_that_no_migration_makes_are_read_and_taken(stores: Stores, files: OfflineFiles) -> None:
    """A lease that still holds an ingest is not empty."""
    await stores.leases.protect_many([Lease("x", {"labels": "1"})])
    assert files.metadata is not None
    with files.metadata.update() as tx:
        for kind in (b"ingests", b"images"):
            tx.create_path(*LEASES, b"x", kind).put(b"r", b"")
    held = (Resource("ingests", "r"), Resource("images", "r"))
    assert await stores.leases.list_all() == [Lease("x", {"labels": "1"}, held)]
    with files.metadata.update() as tx:
        tx.create_path(*LEASES, b"x", b"images", b"a bucket")
    odd = (Resource("images", "a bucket"), Resource("images", ""))
    await stores.leases.remove_resources_many([Lease("x", {}, odd)])
    assert await stores.leases.list_all() == [Lease("x", {"labels": "1"}, (held[0], odd[0], held[1]))]
    with files.metadata.update() as tx:
        tx.create_path(*LEASES, b"x", b"images").delete_bucket(b"a bucket")
    with pytest.raises(StoreError, match="can't hold a resource of type labels"):
        await stores.leases.remove_resources_many([Lease("x", {}, (*held, Resource("labels", "labels")))])
    assert await stores.leases.list_all() == [Lease("x", {"labels": "1"}, held)], "all or nothing"
    await stores.leases.remove_resources_many([Lease("x", {}, held)])
    assert await stores.leases.list_all() == [Lease("x", {"labels": "1"})]


# -- heads of blobs


@pytest.fixture
def blob(worker: Path) -> Path:
    """The file of a blob of 100 bytes."""
    return worker / "content" / "blobs" / BLOB.digest.replace(":", "/")


BLOB = ContentInfo(digest("blob a"), 100)
HEAD = b"blob a".ljust(HEAD_SIZE, b"\0")


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def put_blob(content: Path, name: str, data: bytes) -> Path:
    path = content / "blobs" / name.replace(":", "/")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("in_containerd", [False, True])
async def test_the_content_store_is_where_the_layout_says(in_containerd: bool, tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    content, root = worker / "content", None
    if in_containerd:
        root = tmp_path / "containerd"
        content = root / "io.containerd.content.v1.content"
        for target, source in (
            ("io.containerd.metadata.v1.bolt/meta.db", "containerdmeta.db"),
            ("io.containerd.snapshotter.v1.overlayfs", "snapshots"),
            ("io.containerd.content.v1.content", "content"),
        ):
            os.renames(worker / source, root / target)
    layout = find_layout(worker, containerd_root=root)
    assert layout.content_directory == str(content)
    async with opening.open_stores(layout, writable=False, concurrency=1, patience=0, progress=lambda _: None) as opened:
        assert await opened.stores.content.head_many([BLOB]) == [HEAD]


async def test_the_head_of_a_blob(stores: Stores, blob: Path) -> None:
    assert await stores.content.head_many([BLOB]) == [HEAD]
    put(blob, b"short")
    assert await stores.content.head_many([BLOB, ContentInfo(BLOB.digest, 5)]) == [None, b"short"]
    put(blob, b"")
    assert await stores.content.head_many([BLOB, ContentInfo(BLOB.digest, 0)]) == [None, b""]
    put(blob, bytes(101))
    assert await stores.content.head_many([BLOB]) == [None]


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
async def test_blobs_of_other_algorithms(algorithm: str, stores: Stores, worker: Path) -> None:
    name = f"{algorithm}:{hashlib.new(algorithm, b'x').hexdigest()}"
    put_blob(worker / "content", name, b"x")
    assert await stores.content.head_many([ContentInfo(name, 1)]) == [b"x"]


def as_link(path: Path) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_bytes(bytes(100))
    path.symlink_to(elsewhere)


def as_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def as_directory(path: Path) -> None:
    path.mkdir()


def as_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("make", [as_link, as_link_to_itself, as_directory, as_socket, os.mkfifo])
async def test_what_is_no_file_of_the_store_is_not_read(make: Callable[[Path], object], stores: Stores, blob: Path) -> None:
    os.unlink(blob)
    make(blob)
    with anyio.fail_after(SAFETY):  # opening a pipe must not wait for a writer
        infos = [BLOB, ContentInfo(BLOB.digest, os.lstat(blob).st_size), ContentInfo(BLOB.digest, 0)]
        assert await stores.content.head_many(infos) == [None, None, None]


async def test_a_device_is_not_read(stores: Stores, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one would be taken for a blob of no bytes; none can be made here without being root."""
    device = os.stat_result((stat.S_IFCHR | 0o600, *os.stat("/dev/null")[1:6], 0, 0, 0, 0))
    put(blob, b"")
    monkeypatch.setattr("asyncmig.stores.offline.content.os.fstat", lambda _: device)
    assert await stores.content.head_many([ContentInfo(BLOB.digest, 0)]) == [None]


async def test_a_digest_does_not_lead_out_of_the_store(stores: Stores, blob: Path) -> None:
    (blob.parent / "file").write_bytes(b"x")
    (blob.parent.parent / ("0" * 64)).write_bytes(b"x")
    names = [
        "sha256:file", "sha256:../sha256/file", f"..:{'0' * 64}", f".:{'0' * 64}", f"sha256:{'0' * 64}\n", "sha256:", "",
        f"sha256:{'0' * 63}\0", BLOB.digest.upper(), f"/{blob}", "a\udcff:b",
    ]  # fmt: skip
    assert await stores.content.head_many([ContentInfo(name, 1) for name in names]) == [None] * len(names)


@pytest.mark.parametrize("call", ["open", "fstat", "pread"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EUCLEAN, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM])
async def test_a_blob_that_cannot_be_read_is_not_taken_for_missing(
    call: str, code: int, stores: Stores, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(f"asyncmig.stores.offline.content.os.{call}", failing)
    remedy = "; check the disk" if code == errno.EIO else ""
    with pytest.raises(StoreError, match=rf"{blob}: cannot read: {os.strerror(code)}{remedy}"):
        await stores.content.head_many([BLOB])
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_blob_that_shrinks_while_it_is_read(stores: Stores, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncmig.stores.offline.content.os.pread", lambda *_: bytes(10))
    assert await stores.content.head_many([BLOB]) == [None]


# -- setting labels


async def test_setting_a_label_of_a_snapshot(stores: Stores, files: OfflineFiles) -> None:
    before = read(files.metadata, *SNAPSHOTS, b"a")
    assert await stores.snapshots.set_label_many([("a", "old"), ("missing", "1"), ("a", "new")], "l") == [True, False, True]
    after = read(files.metadata, *SNAPSHOTS, b"a")
    assert after[b"updatedat"] != before[b"updatedat"]
    assert {k: v for k, v in after.items() if k != b"updatedat"} == {k: v for k, v in before.items() if k != b"updatedat"}
    assert read(files.metadata, *SNAPSHOTS, b"a", b"labels") == {ROOT.encode(): TIME.encode(), b"l": b"new"}
    # The snapshotter's own database gets a new time and an empty bucket, but not the label.
    assert read(files.backend, *BACKEND, b"buildkit/1/a", b"labels") == {}
    assert read(files.backend, *BACKEND, b"buildkit/1/a")[b"updatedat"] == after[b"updatedat"]


@pytest.mark.parametrize("label", ["containerd.io/snapshot/l", "containerd.io/snapshot.ref"])
async def test_labels_that_the_snapshotter_inherits(label: str, stores: Stores, files: OfflineFiles) -> None:
    assert await stores.snapshots.set_label_many([("a", "1")], label) == [True]
    assert read(files.backend, *BACKEND, b"buildkit/1/a", b"labels") == {label.encode(): b"1"}
    assert await stores.snapshots.remove_label_many(["a"], label) == [True]
    assert read(files.backend, *BACKEND, b"buildkit/1/a", b"labels") == {}


async def test_setting_a_label_of_a_blob(stores: Stores, files: OfflineFiles) -> None:
    path = (*BLOBS, digest("blob a").encode())
    before = read(files.metadata, *path)
    assert await stores.content.set_label_many([(digest("blob a"), "1"), (digest("nowhere"), "1")], ROOT) == [True, False]
    after = read(files.metadata, *path)
    assert after[b"updatedat"] != before[b"updatedat"]
    assert (after[b"createdat"], after[b"size"]) == (before[b"createdat"], before[b"size"])
    uncompressed = digest("diff a").encode()
    assert read(files.metadata, *path, b"labels") == {ROOT.encode(): b"1", b"containerd.io/uncompressed": uncompressed}


async def test_a_label_that_containerd_refuses(stores: Stores, files: OfflineFiles) -> None:
    longest = "x" * (4096 - len("l"))
    assert await stores.snapshots.set_label_many([("a", longest)], "l") == [True]
    assert await stores.content.set_label_many([(digest("blob a"), longest)], "l") == [True]
    for store, name in ((stores.snapshots, "b"), (stores.content, digest("blob b"))):
        with pytest.raises(StoreError, match="label l: name and value have 4097 bytes"):
            await store.set_label_many([(name, "1"), (name, longest + "x")], "l")
    assert read(files.metadata, *SNAPSHOTS, b"b", b"labels") == {ROOT.encode(): TIME.encode()}


# -- all or nothing

Verb = Callable[[Stores], Awaitable[object]]
MANY = [Lease(f"{i:03}", {}, (Resource("snapshots/overlayfs", "a"),)) for i in range(100)]
CHANGES: dict[str, Verb] = {
    "set labels of snapshots": lambda s: s.snapshots.set_label_many([(n, "1") for n in "abcd"], "l"),
    "set labels of blobs": lambda s: s.content.set_label_many([(digest(f"blob {n}"), "1") for n in "abd"], "l"),
    "delete leases": lambda s: s.leases.delete_many([lease.id for lease in MANY]),
    "take resources": lambda s: s.leases.remove_resources_many(MANY),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_one_transaction_that_takes_effect_as_a_whole_or_not_at_all(change: str, files: OfflineFiles) -> None:
    cancelled: list[bool] = []

    def cancel_at_the_end(_: int) -> None:  # of the loop, before the commit
        if not cancelled:
            cancelled.append(True)
            anyio.from_thread.run(cancel)

    async def cancel() -> None:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(10):  # turns of the event loop in which the cancellation arrives
                await anyio.lowlevel.checkpoint()

    def state() -> list[str]:
        assert files.metadata is not None
        assert files.backend is not None
        return [*dump(files.metadata), *dump(files.backend)]

    directory = Path(files.metadata_path).parent / "content"
    await open_stores(files).leases.protect_many(MANY)
    before = state()
    with anyio.CancelScope() as scope:
        await CHANGES[change](offline_stores(files, "overlayfs", cancel_at_the_end, content_directory=directory))
    assert scope.cancelled_caught
    assert state() == before

    assert files.metadata is not None
    assert files.metadata.pages is not None
    transaction = files.metadata.pages.meta.txid
    await CHANGES[change](open_stores(files))
    assert files.metadata.pages.meta.txid == transaction + 1
    assert state() != before


async def test_taking_the_last_resource_leaves_the_buckets_as_containerd_does(stores: Stores, files: OfflineFiles) -> None:
    held = (Resource("snapshots/overlayfs", "x"), Resource("content", digest("b")))
    await stores.leases.protect_many([Lease("x", {"l": "v"}, held)])
    await stores.leases.remove_resources_many([Lease("x", {}, held)])
    assert read(files.metadata, *LEASES, b"x", b"content") == {}
    assert read(files.metadata, *LEASES, b"x", b"snapshots", b"overlayfs") == {}
    assert set(read(files.metadata, *LEASES, b"x")) == {b"createdat", b"labels", b"content", b"snapshots"}


async def test_many_leases_are_deleted_and_the_file_is_sound(stores: Stores, files: OfflineFiles) -> None:
    names = [f"{i:05}" for i in range(3000)]
    await stores.leases.protect_many([Lease(name, {"l": "v"}, (Resource("content", digest(name)),)) for name in names])
    await stores.leases.delete_many(names[::2])
    assert [lease.id for lease in await stores.leases.list_all()] == names[1::2]
    await stores.leases.remove_resources_many([Lease(name, {}, (Resource("content", digest(name)),)) for name in names])
    assert not any(lease.resources for lease in await stores.leases.list_all())
    assert files.metadata is not None
    assert files.metadata.pages is not None
    verify_pages(files.metadata.pages)


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
