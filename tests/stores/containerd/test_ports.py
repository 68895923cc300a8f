"""The three ports over a server that behaves."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig import IncompleteMigrationError, Options, Outcome, Stage
from asyncmig.errors import ContainerdError
from asyncmig.stores.containerd.snapshots import ContainerdSnapshots
from asyncmig.stores.memory import MemoryBlob, MemoryLease, MemorySnapshot
from asyncmig.stores.ports import ContentInfo, Kind, Lease, Protected, Resource, SnapshotInfo
from tests.caches import ROOT, TIME, V1Cache, digest
from tests.migration.test_offline import Counting
from tests.stores.containerd.conftest import bridge_threads, sockets, stores_of
from tests.stores.containerd.fake import FakeContainerd

pytestmark = pytest.mark.anyio

NEW = Protected(is_new=True, confirmed=True)


async def test_snapshots_are_told_in_order(fake: FakeContainerd) -> None:
    async with stores_of(fake) as stores:
        found = await stores.snapshots.stat_many(["view", "nowhere", "b", "mutable", "b"])
        b = SnapshotInfo("b", Kind.COMMITTED, "a")
        assert found == [
            SnapshotInfo("view", Kind.VIEW, "b"), None, b, SnapshotInfo("mutable", Kind.ACTIVE, "c"), b,
        ]  # fmt: skip
        assert await stores.snapshots.views() == ["view"]
        assert stores.snapshots.snapshotter == "overlayfs"


async def test_blobs_are_told_in_order(fake: FakeContainerd) -> None:
    async with stores_of(fake) as stores:
        names = [digest("blob b"), digest("nowhere"), "no digest", digest("blob a")]
        info = [ContentInfo(names[0], 100), None, None, ContentInfo(names[3], 100)]
        assert await stores.content.info_many(names) == info


async def test_many_objects_are_read_through_lists(fake: FakeContainerd) -> None:
    for i in range(500):
        fake.state.snapshots[f"s{i:04}"] = MemorySnapshot(Kind.COMMITTED)
        fake.state.blobs[digest(f"{i}")] = MemoryBlob(i)
    names = [f"s{i:04}" for i in range(0, 500, 2)]
    async with stores_of(fake) as stores:
        found = await stores.snapshots.stat_many([*names, "nowhere"])
        assert [info and info.name for info in found] == [*names, None]
        infos = await stores.content.info_many([digest(f"{i}") for i in range(500)])
        assert [info and info.size for info in infos] == list(range(500))
    assert fake.calls["Snapshots/List"] == fake.calls["Content/List"] == 1
    # A sample to see whether this is the right place, and what the list did not show.
    assert fake.calls["Snapshots/Stat"] <= 17
    assert fake.calls["Content/Info"] == 0


async def test_few_of_very_many_objects_are_not_read_through_the_whole_list(fake: FakeContainerd) -> None:
    for i in range(5000):
        fake.state.snapshots[f"s{i:04}"] = MemorySnapshot(Kind.COMMITTED)
    names = [f"s{i:04}" for i in range(0, 5000, 50)]
    async with stores_of(fake) as stores:
        found = await stores.snapshots.stat_many(names)
        assert [info and info.name for info in found] == names
    assert 80 < fake.calls["Snapshots/Stat"] < 120, "the list was left when it had cost as much as single calls"


async def test_leases_are_made_with_labels_and_resources(fake: FakeContainerd) -> None:
    resources = (Resource("snapshots/overlayfs", "a"), Resource("content", digest("blob a")))
    async with stores_of(fake) as stores:
        assert not stores.leases.atomic
        assert await stores.leases.protect_many([Lease("x", {"l": "v"}, resources), Lease("y")]) == [NEW, NEW]
        assert fake.state.leases == {"x": MemoryLease({"l": "v"}, set(resources)), "y": MemoryLease({})}
        found = await stores.leases.list_many(["y", "z", "x"])
    assert found[:2] == [Lease("y"), None]
    assert found[2] is not None
    assert (found[2].labels, set(found[2].resources)) == ({"l": "v"}, set(resources))


async def test_an_existing_lease_is_completed_and_not_confirmed(fake: FakeContainerd) -> None:
    fake.state.leases["x"] = MemoryLease({"mine": "1"}, {Resource("content", digest("old"))})
    added = Resource("content", digest("blob a"))
    async with stores_of(fake) as stores:
        made = await stores.leases.protect_many([Lease("x", {"l": "v"}, (added,))])
    assert made == [Protected(is_new=False, confirmed=False)]
    assert fake.state.leases["x"] == MemoryLease({"mine": "1"}, {Resource("content", digest("old")), added})


@pytest.mark.parametrize("limit", [1_000_000, 100, 10, 1])
async def test_more_leases_than_fit_into_a_message_are_asked_for_in_shards(limit: int, fake: FakeContainerd) -> None:
    names = [f"sha256:{sha256(str(i).encode()).hexdigest()}" for i in range(150)]
    names += [sha256(str(i).encode()).hexdigest()[:25] for i in range(150)]
    names += ["a", "ab", "abc", 'qu"ote', "back\\slash", "sp ace", "d.t", "ümlaut", "😀"]
    fake.state.leases.update((name, MemoryLease({"n": name})) for name in names)
    fake.max_leases = limit
    wanted = [*names[::-2], "nowhere", "ab"]
    async with stores_of(fake) as stores:
        found = await stores.leases.list_many(wanted)
    assert [lease and (lease.id, lease.labels) for lease in found] == [
        (name, {"n": name}) if name in names else None for name in wanted
    ]


async def test_a_label_that_was_seen_to_be_absent_costs_no_call(fake: FakeContainerd) -> None:
    fake.state.snapshots["a"].labels = {"other": "1"}
    fake.state.blobs[digest("blob a")].labels.pop(ROOT)
    async with stores_of(fake) as stores:
        await stores.snapshots.stat_many(["a", "b"])
        await stores.snapshots.views()
        await stores.content.info_many([digest("blob a"), digest("blob b")])
        gone = ["a", "b", "view", "nowhere", "c"]
        assert await stores.snapshots.remove_label_many(gone, ROOT) == [True, True, True, False, True]
        assert await stores.content.remove_label_many([digest("blob a"), digest("blob b")], ROOT) == [True, True]
    assert fake.calls["Snapshots/Update"] == 4
    assert fake.calls["Content/Update"] == 1
    assert fake.state.snapshots["a"].labels == {"other": "1"}
    assert fake.state.snapshots["b"].labels == {}
    assert fake.state.snapshots["d"].labels == {ROOT: TIME}, "nobody asked for it"
    assert fake.state.blobs[digest("blob b")].labels == {"containerd.io/uncompressed": digest("diff b")}


async def test_names_that_no_message_can_carry(fake: FakeContainerd) -> None:
    async with stores_of(fake) as stores:
        with pytest.raises(ContainerdError, match=r"stat snapshot bad\\udcff: its API takes no names that are not UTF-8"):
            await stores.snapshots.stat_many(["bad\udcff"])


async def test_calls_are_bounded_and_run_at_a_time(fake: FakeContainerd) -> None:
    running = peak = 0

    async def count(call: str, request: object) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.005)
        running -= 1

    async with stores_of(fake, concurrency=5) as stores:
        fake.before = count
        await stores.leases.protect_many([Lease(f"{i}") for i in range(40)])
    assert peak == 5


async def test_nothing_is_left_behind(fake: FakeContainerd) -> None:
    before = sockets()
    async with stores_of(fake) as stores:
        await stores.snapshots.stat_many(["a"])
    assert not bridge_threads()
    with anyio.fail_after(5):
        while sockets() - before:  # noqa: ASYNC110  the server, in this process, closes its end a moment later
            await anyio.sleep(0.01)


async def test_stages_come_to_what_they_announced(fake: FakeContainerd, worker: Path) -> None:
    progress = Counting()
    await asyncmig.migrate(worker, Options(address=str(fake.address)), progress=progress)
    announced = {stage: total for stage, total in progress.totals.items() if total is not None}
    assert announced[Stage.PROTECT] == 8
    assert announced[Stage.RELEASE] == 6 + 1 + 3
    assert {stage: progress.done[stage] for stage in announced} == announced


async def test_a_containerd_that_knows_no_filters_lists_no_more_views(fake: FakeContainerd) -> None:
    """Before 1.4 it lists every snapshot: all would be taken for views, and lose their labels without a lease."""
    fake.filters_snapshots = False
    async with stores_of(fake) as stores:
        assert await stores.snapshots.views() == ["view"]


async def test_an_empty_cache_touches_nothing_that_is_others(fake: FakeContainerd, tmp_path: Path) -> None:
    worker = tmp_path / "containerd-overlayfs"
    worker.mkdir()
    V1Cache().write_metadata(worker / "metadata.db")
    report = await asyncmig.migrate(worker, Options(address=str(fake.address)))
    assert report.outcome is Outcome.MIGRATED
    assert fake.state.snapshots["view"].labels == {ROOT: TIME}
    assert not fake.calls["Snapshots/Update"]


async def test_what_vanishes_while_the_migration_runs_is_told(fake: FakeContainerd, worker: Path) -> None:
    async def vanish(name: str, request: object) -> None:
        if name == "Leases/Create":
            fake.state.snapshots.pop("d", None)

    fake.before = vanish
    report = await asyncmig.migrate(worker, Options(address=str(fake.address)))
    assert [notice.record for notice in report.notices if notice.code == "snapshot-vanished"] == ["d"]


async def test_a_blob_that_vanishes_while_the_migration_runs(fake: FakeContainerd, worker: Path) -> None:
    async def vanish(name: str, request: object) -> None:
        if name == "Leases/Create":
            fake.state.blobs.pop(digest("blob d"), None)

    fake.before = vanish
    with pytest.raises(IncompleteMigrationError, match=r"has vanished .*; somebody else has removed it"):
        await asyncmig.migrate(worker, Options(address=str(fake.address)))
    report = await asyncmig.migrate(worker, Options(address=str(fake.address)))
    assert [notice.record for notice in report.notices if notice.code == "blob-missing"] == ["d"]


async def test_leaving_a_list_early_leaves_no_task_behind(fake: FakeContainerd) -> None:
    for i in range(5000):
        fake.state.snapshots[f"s{i:04}"] = MemorySnapshot(Kind.COMMITTED)
    async with stores_of(fake) as stores:
        snapshots = stores.snapshots
        assert isinstance(snapshots, ContainerdSnapshots)

        async def tasks_after_a_page() -> set[str]:
            before = asyncio.all_tasks()
            async with aclosing(snapshots._list()) as pages:
                await anext(pages)
            await asyncio.sleep(0)  # a generator that nobody closes is closed by a task that asyncio makes now
            return {repr(task) for task in asyncio.all_tasks() - before}

        assert await snapshots._bridge.run(tasks_after_a_page) == set()
