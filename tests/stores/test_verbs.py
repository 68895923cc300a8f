"""What every adapter makes of the same verbs: stores in memory, in files, and behind a server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from asyncmig.stores.memory import MemoryStores
from asyncmig.stores.offline import OfflineFiles, offline_stores
from asyncmig.stores.ports import GC_ROOT, HEAD_SIZE, ContentInfo, Kind, Lease, Resource, SnapshotInfo, Stores
from tests.caches import TIME, Snapshot, V1Cache, digest, sample_cache
from tests.stores.containerd.conftest import stores_of
from tests.stores.containerd.fake import FakeContainerd

pytestmark = pytest.mark.anyio

DATA = bytes(range(100))
SHORT = digest("blob d")
"""A blob of whose data a byte is missing."""
HELD = (Resource("content", digest("blob a")), Resource("snapshots/overlayfs", "a"), Resource("snapshots/overlayfs", "b"))
LATER = "2021-01-01T00:00:00Z"


def cache() -> V1Cache:
    """The sample, and what has lost its label or its data, or never was in the snapshotter's database."""
    made = sample_cache()
    made.snapshots["bare"] = Snapshot(labels={})
    made.snapshots["labelled"] = Snapshot(labels={"other": "1"})
    made.snapshots["half"] = Snapshot(in_backend=False)
    made.view("bare view", "a")
    made.snapshots["bare view"].labels = {}
    made.blobs[digest("blob b")].pop(GC_ROOT)
    made.data.update({digest("blob a"): DATA, SHORT: DATA})
    del made.data[digest("blob b")]
    return made


def state() -> MemoryStores:
    made = cache().in_memory()
    made.blobs[SHORT].data = DATA[:-1]
    return made


@asynccontextmanager
async def in_memory(_: Path) -> AsyncIterator[Stores]:
    yield state().stores()


@asynccontextmanager
async def in_files(directory: Path) -> AsyncIterator[Stores]:
    worker = cache().write(directory / "runc-overlayfs")
    os.truncate(worker / "content" / "blobs" / SHORT.replace(":", "/"), len(DATA) - 1)
    files = OfflineFiles.open(
        worker / "containerdmeta.db", worker / "snapshots" / "metadata.db", namespace="buildkit", writable=True
    )
    try:
        yield offline_stores(files, "overlayfs", content_directory=worker / "content")
    finally:
        files.close()


@asynccontextmanager
async def behind_a_server(_: Path) -> AsyncIterator[Stores]:
    with (
        tempfile.TemporaryDirectory(prefix="ctd-") as directory,
        FakeContainerd(Path(directory) / "containerd.sock", state()) as fake,
    ):
        async with stores_of(fake) as stores:
            yield stores


Opened = Callable[[], AbstractAsyncContextManager[Stores]]


@pytest.fixture(params=[in_memory, in_files, behind_a_server], ids=lambda way: str(way.__name__))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    return lambda: request.param(tmp_path)


async def rooted(stores: Stores) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """The roots among snapshots and blobs."""
    snapshots = await stores.snapshots.list_all(rooted=True)
    blobs = await stores.content.list_all(rooted=True)
    return {info.name: info.root for info in snapshots}, {info.digest: info.root for info in blobs}


ROOTED_SNAPSHOTS = {"a", "b", "c", "d", "mutable", "mutable-root", "view"}


async def test_all_snapshots(opened: Opened) -> None:
    async with opened() as stores:
        found = {info.name: info for info in await stores.snapshots.list_all()}
        assert set(found) == {*ROOTED_SNAPSHOTS, "bare", "labelled", "bare view"}
        assert found["d"] == SnapshotInfo("d", Kind.COMMITTED, "b", TIME)
        assert found["mutable-root"] == SnapshotInfo("mutable-root", Kind.ACTIVE, "", TIME)
        assert found["bare view"] == SnapshotInfo("bare view", Kind.VIEW, "a", None)
        assert found["labelled"] == SnapshotInfo("labelled", Kind.COMMITTED, "", None)
        assert await stores.snapshots.stat_many(["d", "bare view"]) == [found["d"], found["bare view"]]
        some = await stores.snapshots.list_all(rooted=True)
        assert {info.name: info for info in some} == {name: found[name] for name in ROOTED_SNAPSHOTS}
        assert {info.name: info for info in await stores.snapshots.views()} == {n: found[n] for n in ("view", "bare view")}


async def test_all_blobs(opened: Opened) -> None:
    names = [digest(f"blob {name}") for name in ("a", "b", "d")]
    expected = [ContentInfo(names[0], 100, TIME), ContentInfo(names[1], 100, None), ContentInfo(names[2], 100, TIME)]
    async with opened() as stores:
        assert sorted(await stores.content.list_all(), key=str) == sorted(expected, key=str)
        assert await stores.content.info_many(names) == expected
        some = await stores.content.list_all(rooted=True)
        assert sorted(some, key=str) == sorted([expected[0], expected[2]], key=str)


async def test_heads(opened: Opened) -> None:
    a, b, d = (ContentInfo(digest(f"blob {name}"), 100) for name in "abd")
    async with opened() as stores:
        assert await stores.content.head_many([d, a, b, ContentInfo(digest("nowhere"), 100), a]) == [
            None, DATA[:HEAD_SIZE], None, None, DATA[:HEAD_SIZE],
        ]  # fmt: skip
        # Not the size that the caller goes by, whatever the store believes.
        assert await stores.content.head_many([ContentInfo(a.digest, 101), ContentInfo(d.digest, 0)]) == [None, None]
        assert await stores.content.head_many([ContentInfo("../../../etc/passwd", 1), ContentInfo("sha256:", 0)]) == [
            None,
            None,
        ]
        assert await stores.content.head_many([]) == []


async def test_setting_a_label(opened: Opened) -> None:
    async with opened() as stores:
        await stores.snapshots.list_all()  # an adapter may remember which labels there were
        await stores.content.list_all()
        values = [("bare", LATER), ("nowhere", LATER), ("a", LATER)]
        assert await stores.snapshots.set_label_many(values, GC_ROOT) == [True, False, True]
        values = [(digest("blob b"), LATER), (digest("nowhere"), LATER)]
        assert await stores.content.set_label_many(values, GC_ROOT) == [True, False]
        snapshots, blobs = await rooted(stores)
        assert snapshots == {**dict.fromkeys(ROOTED_SNAPSHOTS, TIME), "bare": LATER, "a": LATER}
        assert blobs == {digest("blob a"): TIME, digest("blob b"): LATER, digest("blob d"): TIME}


async def test_a_label_that_was_set_can_be_removed(opened: Opened) -> None:
    async with opened() as stores:
        await stores.snapshots.list_all()
        await stores.content.list_all()
        await stores.snapshots.set_label_many([("bare", LATER)], GC_ROOT)
        await stores.content.set_label_many([(digest("blob b"), LATER)], GC_ROOT)
        assert await stores.snapshots.remove_label_many(["bare", "a"], GC_ROOT) == [True, True]
        assert await stores.content.remove_label_many([digest("blob b"), digest("blob a")], GC_ROOT) == [True, True]
        snapshots, blobs = await rooted(stores)
        assert set(snapshots) == ROOTED_SNAPSHOTS - {"a"}
        assert set(blobs) == {digest("blob d")}


async def test_setting_one_label_keeps_the_others_and_an_empty_value_removes_it(opened: Opened) -> None:
    async with opened() as stores:
        assert await stores.snapshots.set_label_many([("a", "1")], "mine") == [True]
        assert await stores.snapshots.set_label_many([("b", "")], GC_ROOT) == [True]
        assert await stores.content.set_label_many([(digest("blob a"), "1")], "mine") == [True]
        snapshots, blobs = await rooted(stores)
        assert set(snapshots) == ROOTED_SNAPSHOTS - {"b"}
        assert blobs[digest("blob a")] == TIME


async def test_all_leases(opened: Opened) -> None:
    async with opened() as stores:
        assert await stores.leases.list_all() == []
        await stores.leases.protect_many([Lease("x", {"l": "v"}, HELD), Lease("y")])
        found = {lease.id: lease for lease in await stores.leases.list_all()}
        assert set(found) == {"x", "y"}
        assert found["y"] == Lease("y")
        assert (found["x"].labels, set(found["x"].resources)) == ({"l": "v"}, set(HELD))


async def test_deleting_leases(opened: Opened) -> None:
    async with opened() as stores:
        await stores.leases.delete_many(["x"])
        await stores.leases.protect_many([Lease(name, {}, HELD) for name in ("x", "y", "z")])
        await stores.leases.delete_many(["x", "nowhere", "z", "x"])
        await stores.leases.delete_many([])
        assert [lease.id for lease in await stores.leases.list_all()] == ["y"]
        assert await stores.leases.list_many(["x", "y", "z"]) != [None, None, None]


async def test_taking_resources_from_leases(opened: Opened) -> None:
    other = Resource("snapshots/native", "a")
    async with opened() as stores:
        await stores.leases.remove_resources_many([Lease("x", {}, HELD)])
        await stores.leases.protect_many([Lease("x", {"l": "v"}, HELD), Lease("y", {}, HELD)])
        taken = [Lease("x", {}, HELD[:2]), Lease("y", {}, (other,)), Lease("nowhere", {}, HELD), Lease("y")]
        await stores.leases.remove_resources_many(taken)
        await stores.leases.remove_resources_many(taken)
        found = {lease.id: lease for lease in await stores.leases.list_all()}
        assert found["x"] == Lease("x", {"l": "v"}, HELD[2:])
        assert set(found["y"].resources) == set(HELD)
        await stores.leases.remove_resources_many([Lease("x", {}, HELD)])
        assert await stores.leases.list_many(["x"]) == [Lease("x", {"l": "v"})], "an empty lease is still one"


Verb = Callable[[Stores], Awaitable[object]]


@pytest.mark.parametrize(
    ("verb", "calls"),
    [
        (lambda stores: stores.content.list_all(rooted=True), ["list content"]),
        (lambda stores: stores.content.head_many([ContentInfo(digest("blob a"), 1)]), ["read content"]),
        (lambda stores: stores.content.set_label_many([(digest("blob a"), "1")], "l"), ["update content"]),
        (lambda stores: stores.snapshots.list_all(), ["list snapshots"]),
        (lambda stores: stores.snapshots.set_label_many([("a", "1"), ("b", "1")], "l"), ["update snapshot"] * 2),
        (lambda stores: stores.leases.list_all(), ["list leases", "list"]),
        (lambda stores: stores.leases.remove_resources_many([Lease("x", {}, HELD)]), ["delete resource"] * 3),
        (lambda stores: stores.leases.delete_many(["x", "y"]), ["delete lease"] * 2),
    ],
)
async def test_each_call_in_memory_passes_the_hook(verb: Verb, calls: list[str]) -> None:
    memory, passed = cache().in_memory(), []
    await memory.stores().leases.protect_many([Lease("x", {}, HELD)])

    async def on_call(name: str, _: str) -> None:
        passed.append(name)

    memory.on_call = on_call
    await verb(memory.stores())
    assert passed == calls
