"""The verbs of the ports against a real containerd: live, and on its files while it is stopped."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from asyncmig.bolt import Db
from asyncmig.errors import ContainerdError
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import ListRequest
from asyncmig.stores.containerd.leases import ContainerdLeases
from asyncmig.stores.containerd.shards import EVERYTHING
from asyncmig.stores.containerd.stores import open_containerd
from asyncmig.stores.offline import OfflineFiles, codec, offline_stores
from asyncmig.stores.ports import GC_ROOT, HEAD_SIZE, ContentInfo, Kind, Lease, Resource, SnapshotInfo, Stores
from tests.caches import TIME, Snapshot, V1Cache, digest, sample_cache
from tests.conftest import copy_tree
from tests.interop.containerd import Containerd
from tests.interop.livecache import build_cache
from tests.interop.test_containerd_live import META
from tests.states import dump_lines
from tests.stores.containerd.test_ports import LEASE_IDS

pytestmark = pytest.mark.anyio

SNAPSHOTTER = "overlayfs"
BACKEND = Path(f"io.containerd.snapshotter.v1.{SNAPSHOTTER}") / "metadata.db"
CONTENT = "io.containerd.content.v1.content"
LATER = "2021-01-01T00:00:00Z"


@asynccontextmanager
async def live(daemon: Containerd) -> AsyncIterator[Stores]:
    async with open_containerd(
        str(daemon.address), namespace="buildkit", snapshotter=SNAPSHOTTER, concurrency=8, patience=300
    ) as running:
        yield running.stores


@asynccontextmanager
async def offline(root: Path) -> AsyncIterator[Stores]:
    files = OfflineFiles.open(root / META, root / BACKEND, namespace="buildkit", writable=True)
    try:
        yield offline_stores(files, SNAPSHOTTER, content_directory=root / CONTENT)
    finally:
        files.close()


@asynccontextmanager
async def stopped(daemon: Containerd) -> AsyncIterator[None]:
    daemon.stop()
    yield
    daemon.start()


def write_blob(daemon: Containerd, data: bytes) -> ContentInfo:
    name = f"sha256:{sha256(data).hexdigest()}"
    daemon.write_blob(name, data, {GC_ROOT: TIME})
    return ContentInfo(name, len(data), TIME)


def file_of(root: Path, blob: ContentInfo) -> Path:
    return root / CONTENT / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")


# -- heads of blobs


async def test_heads_of_blobs_of_every_size(daemon: Containerd) -> None:
    datas = [bytes(i % 251 for i in range(size)) for size in (1, 63, 64, 65, 4095, 4096, 4097, 70_000)]
    blobs = [write_blob(daemon, data) for data in datas]
    expected = [data[:HEAD_SIZE] for data in datas]
    nowhere = ContentInfo(digest("nowhere"), 10)
    async with live(daemon) as stores:
        assert await stores.content.head_many([*blobs, nowhere, ContentInfo("no digest", 1)]) == [*expected, None, None]
    async with stopped(daemon), offline(daemon.root) as stores:
        assert await stores.content.head_many([*blobs, nowhere, ContentInfo("no digest", 1)]) == [*expected, None, None]


async def test_heads_of_data_that_is_not_what_the_database_says(daemon: Containerd) -> None:
    """All that Info knows is that there should be 5,000 or 50 bytes."""
    for size in (5_000, 50):
        names = "missing", "empty", "a byte short", "head only", "longer", "good"
        blobs = {name: write_blob(daemon, name.encode().ljust(size)) for name in names}
        os.unlink(file_of(daemon.root, blobs["missing"]))
        lengths = {"empty": 0, "a byte short": size - 1, "head only": min(HEAD_SIZE, size - 1), "longer": size + 1}
        for name, length in lengths.items():
            os.truncate(file_of(daemon.root, blobs[name]), length)
        async with live(daemon) as stores:
            assert await stores.content.info_many([blob.digest for blob in blobs.values()]) == list(blobs.values())
            found = dict(zip(names, await stores.content.head_many(list(blobs.values())), strict=True))
            good = b"good".ljust(size)[:HEAD_SIZE]
            # Not told, before some version of 2.x: containerd reads no further than the size in its database.
            assert found.pop("longer") in (b"longer".ljust(size)[:HEAD_SIZE], None)
            assert found == {**dict.fromkeys(found, None), "good": good}
        async with stopped(daemon), offline(daemon.root) as stores:
            found = dict(zip(names, await stores.content.head_many(list(blobs.values())), strict=True))
            assert found == {**dict.fromkeys(names, None), "good": good}


async def test_a_blob_of_no_bytes(daemon: Containerd) -> None:
    """None can be written through this API, so that a size is taken from a blob in the database."""
    blob = write_blob(daemon, b"x")
    path = file_of(daemon.root, blob)
    nothing = ContentInfo(blob.digest, 0, TIME)
    async with live(daemon) as stores:
        assert await stores.content.head_many([nothing]) == [None]
    async with stopped(daemon):
        os.truncate(path, 0)
        with Db.open(daemon.root / META, writable=True) as db, db.update() as tx:
            entry = tx.path_bucket(b"v1", b"buildkit", b"content", b"blob", blob.digest.encode())
            assert entry is not None
            entry.put(b"size", codec.encode_varint(0))
    async with live(daemon) as stores:
        assert await stores.content.info_many([blob.digest]) == [nothing]
        assert await stores.content.head_many([nothing]) == [b""]
        os.unlink(path)
        assert await stores.content.head_many([nothing]) == [None]


async def test_a_blob_that_is_a_directory_is_trouble_of_containerds(daemon: Containerd) -> None:
    blob = write_blob(daemon, b"x")
    path = file_of(daemon.root, blob)
    os.unlink(path)
    os.mkdir(path)
    async with live(daemon) as stores:
        with pytest.raises(ContainerdError, match=r"read blob sha256:.*is a directory"):
            await stores.content.head_many([blob])
    async with stopped(daemon), offline(daemon.root) as stores:
        assert await stores.content.head_many([blob]) == [None]


# -- listing everything


def cache() -> V1Cache:
    made = sample_cache()
    made.snapshots["bare"] = Snapshot(labels={})
    made.snapshots["labelled"] = Snapshot(labels={"other": "1"})
    made.view("bare view", "a")
    made.snapshots["bare view"].labels = {}
    made.blobs[digest("blob b")].pop(GC_ROOT)
    return made


async def test_everything_is_listed(daemon: Containerd, tmp_path: Path) -> None:
    made = cache()
    build_cache(daemon, made, tmp_path / f"containerd-{SNAPSHOTTER}", snapshotter=SNAPSHOTTER)
    daemon.prepare("native", "elsewhere", "", {GC_ROOT: TIME})
    daemon.write_blob(digest("blob b"), b"blob b", {GC_ROOT: TIME}, namespace="moby")
    snapshots = [SnapshotInfo(n, s.kind, s.parent, s.labels.get(GC_ROOT)) for n, s in sorted(made.snapshots.items())]
    blobs = [ContentInfo(name, 6, labels.get(GC_ROOT)) for name, labels in sorted(made.blobs.items())]

    async def check(stores: Stores) -> None:
        assert await stores.snapshots.list_all() == snapshots
        assert await stores.snapshots.list_all(rooted=True) == [info for info in snapshots if info.root]
        assert await stores.snapshots.views() == [info for info in snapshots if info.kind is Kind.VIEW]
        assert await stores.content.list_all() == blobs
        assert await stores.content.list_all(rooted=True) == [info for info in blobs if info.root]

    async with live(daemon) as stores:
        await check(stores)
    async with stopped(daemon), offline(daemon.root) as stores:
        await check(stores)


async def test_all_leases_in_one_answer_and_in_many(daemon: Containerd) -> None:
    names = {*LEASE_IDS, *(f"sha256:{i:064}" for i in range(20))}
    held = (Resource("content", digest("x")), Resource("snapshots/overlayfs", "x"))
    expected = {name: Lease(name, {"n": "1"}, held) for name in names}
    async with live(daemon) as stores:
        await stores.leases.protect_many(list(expected.values()))
        found = await stores.leases.list_all()
        assert len(found) == len(names)
        assert {lease.id: lease for lease in found} == expected

        port = stores.leases
        assert isinstance(port, ContainerdLeases)
        in_shards = await port._bridge.run(lambda: ids_in_shards(port))
        assert sorted(in_shards) == sorted(names)
    async with stopped(daemon), offline(daemon.root) as stores:
        assert {lease.id: lease for lease in await stores.leases.list_all()} == expected


async def ids_in_shards(port: ContainerdLeases) -> list[str]:
    """As if containerd sent but one lease in a message: its regular expressions against ours."""
    found: list[str] = []
    todo = [EVERYTHING]
    while todo:
        shard = todo.pop()
        reply = await port._client.call(port._client.leases.list, ListRequest(filters=shard.filters()))
        if len(reply.leases) > 1:
            todo.extend(shard.halves())
        else:
            found.extend(lease.id for lease in reply.leases)
    return found


# -- writing: live and offline, the same databases

Change = Callable[[Stores], Awaitable[object]]
HELD = (Resource("content", digest("blob a")), Resource("snapshots/overlayfs", "a"), Resource("snapshots/native", "a"))
LEASES = [Lease("x", {"l": "v"}, HELD), Lease("y", {}, HELD), Lease("z")]


async def set_labels(stores: Stores) -> None:
    values = [("a", LATER), ("bare", LATER), ("nowhere", LATER), ("view", ""), ("labelled", "")]
    assert await stores.snapshots.set_label_many(values, GC_ROOT) == [True, True, False, True, True]
    assert await stores.snapshots.set_label_many([("b", "1")], "containerd.io/snapshot/inherited") == [True]
    values = [(digest("blob a"), LATER), (digest("blob b"), LATER), (digest("nowhere"), LATER), (digest("blob d"), "")]
    assert await stores.content.set_label_many(values, GC_ROOT) == [True, True, False, True]


async def delete_leases(stores: Stores) -> None:
    await stores.leases.delete_many(["x", "nowhere", "z"])


async def take_resources(stores: Stores) -> None:
    missing = Resource("content", digest("nowhere"))
    taken = [Lease("x", {}, HELD), Lease("y", {}, (HELD[0], missing)), Lease("z", {}, HELD), Lease("nowhere", {}, HELD)]
    await stores.leases.remove_resources_many(taken)


@pytest.mark.parametrize("change", [set_labels, delete_leases, take_resources])
async def test_live_and_offline_leave_the_same(change: Change, daemon: Containerd, tmp_path: Path) -> None:
    build_cache(daemon, cache(), tmp_path / f"containerd-{SNAPSHOTTER}", snapshotter=SNAPSHOTTER)
    async with live(daemon) as stores:
        await stores.leases.protect_many(LEASES)
    daemon.stop()
    before = dump_lines(daemon.root / META)
    root = copy_tree(daemon.root, tmp_path / "root")
    daemon.start()
    async with live(daemon) as stores:
        await change(stores)
    daemon.stop()
    async with offline(root) as stores:
        await change(stores)
    assert dump_lines(root / META) != before
    for path in (META, BACKEND):
        assert without_times(daemon.root / path) == without_times(root / path), path


def without_times(path: Path) -> list[dict[str, Any]]:
    """The dump of a database, but for what is called a time of creation or update."""
    times = ("createdat", "updatedat")
    entries = map(json.loads, dump_lines(path))
    return [{"p": entry["p"], "k": entry["k"]} if entry.get("k") in times else entry for entry in entries]


async def test_containerd_takes_what_was_edited(daemon: Containerd, tmp_path: Path) -> None:
    """What only a deleted lease held goes with the next collection, and what was labelled offline stays."""
    build_cache(daemon, cache(), tmp_path / f"containerd-{SNAPSHOTTER}", snapshotter=SNAPSHOTTER)
    async with stopped(daemon), offline(daemon.root) as stores:
        await stores.leases.protect_many([Lease("x", {}, (Resource("snapshots/overlayfs", "labelled"),))])
        await stores.leases.protect_many([Lease("y", {}, (Resource("content", digest("blob b")),))])
        await stores.snapshots.set_label_many([("bare", LATER)], GC_ROOT)
        await stores.leases.delete_many(["x"])
        await stores.leases.remove_resources_many([Lease("y", {}, (Resource("content", digest("blob b")),))])
    assert daemon.leases() == {"y": {}}
    assert daemon.labels("snapshot", "bare", snapshotter=SNAPSHOTTER) == {GC_ROOT: LATER}
    daemon.collect_garbage()
    snapshots, blobs = daemon.snapshots(SNAPSHOTTER), daemon.blobs()
    assert "bare" in snapshots
    assert snapshots.isdisjoint({"labelled", "bare view"})
    assert blobs == {digest("blob a"), digest("blob d")}
