"""The three ports over a server that behaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import asyncmig
from asyncmig import IncompleteMigrationError, Options, Outcome, Stage
from asyncmig.errors import ContainerdError
from asyncmig.migration import protect
from asyncmig.migration.semantics import Semantics
from asyncmig.stores.containerd.client import TooLargeError
from asyncmig.stores.containerd.snapshots import ContainerdSnapshots
from asyncmig.stores.containerd.stores import open_containerd
from asyncmig.stores.memory import MemoryBlob, MemoryLease, MemorySnapshot
from asyncmig.stores.ports import HEAD_SIZE, ContentInfo, Kind, Lease, Protected, Resource, SnapshotInfo
from tests.caches import ROOT, TIME, V1Cache, digest, labels_of
from tests.clock import SAFETY
from tests.migration.test_offline import Counting
from tests.stores.containerd.conftest import Received, bridge_threads, sockets, stores_of
from tests.stores.containerd.fake import PIECE, Drop, FakeContainerd

pytestmark = pytest.mark.anyio

NEW = Protected(is_new=True, confirmed=True)


async def test_snapshots_are_told_in_order(fake: FakeContainerd) -> None:
    async with stores_of(fake) as stores:
        found = await stores.snapshots.stat_many(["view", "nowhere", "b", "mutable", "b"])
        b, view = SnapshotInfo("b", Kind.COMMITTED, "a", TIME), SnapshotInfo("view", Kind.VIEW, "b", TIME)
        assert found == [view, None, b, SnapshotInfo("mutable", Kind.ACTIVE, "c", TIME), b]
        assert await stores.snapshots.views() == [view]
        assert stores.snapshots.snapshotter == "overlayfs"


async def test_blobs_are_told_in_order(fake: FakeContainerd) -> None:
    async with stores_of(fake) as stores:
        names = [digest("blob b"), digest("nowhere"), "no digest", digest("blob a")]
        info = [ContentInfo(names[0], 100, TIME), None, None, ContentInfo(names[3], 100, TIME)]
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
        while peak < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)  # so that more could come if they were not bounded
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
    with anyio.fail_after(SAFETY):
        while sockets() - before:  # noqa: ASYNC110  the server, in this process, closes its end a moment later
            await anyio.sleep(0.01)


async def test_stages_come_to_what_they_announced(fake: FakeContainerd, worker: Path, semantics: Semantics) -> None:
    progress = Counting()
    options = Options(address=str(fake.address), semantics=semantics.name)
    await asyncmig.migrate(worker, options, progress=progress)
    announced = {stage: total for stage, total in progress.totals.items() if total is not None}
    assert announced[Stage.PROTECT] == (8 if semantics.leases_holders else 6)
    assert announced[Stage.RELEASE] == 6 + 1 + 3
    assert {stage: progress.done[stage] for stage in announced} == announced


async def test_a_containerd_that_knows_no_filters_lists_no_more_views(fake: FakeContainerd) -> None:
    """Before 1.4 it lists every snapshot: all would be taken for views, and lose their labels without a lease."""
    fake.filters_lists = False
    async with stores_of(fake) as stores:
        assert [view.name for view in await stores.snapshots.views()] == ["view"]


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
    assert [note.name for note in report.notes if note.code == "snapshot-vanished"] == ["d"]


@pytest.fixture
def vanishing_blob(fake: FakeContainerd) -> None:
    """The blob of record d goes when the first lease is made."""

    async def vanish(name: str, request: object) -> None:
        if name == "Leases/Create":
            fake.state.blobs.pop(digest("blob d"), None)

    fake.before = vanish


async def test_a_blob_that_vanishes_before_the_database_is_published(
    fake: FakeContainerd, worker: Path, vanishing_blob: None
) -> None:
    options = Options(address=str(fake.address), semantics="upstream")
    with pytest.raises(IncompleteMigrationError, match=r"somebody else has removed blob .* from the content store"):
        await asyncmig.migrate(worker, options)
    report = await asyncmig.migrate(worker, options)
    assert [note.name for note in report.notes if note.code == "blob-missing"] == ["d"]


async def test_a_blob_that_is_missed_only_after_the_database_was_published(
    fake: FakeContainerd, worker: Path, vanishing_blob: None
) -> None:
    """A rerun could not mend it, and would fail for ever; so it is told, and all the rest is done."""
    options = Options(address=str(fake.address))
    report = await asyncmig.migrate(worker, options)
    vanished = [note.text for note in report.notes if note.code == "blob-vanished"]
    assert len(vanished) == 1
    assert digest("blob d") in vanished[0]
    assert not [name for name, labels in labels_of(fake.state).items() if ROOT in labels]
    report = await asyncmig.migrate(worker, options)
    assert (report.outcome, report.notes) == (Outcome.ALREADY_MIGRATED, [])


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


# -- heads of blobs


@pytest.mark.parametrize("reads_by_file_size", [False, True])
@pytest.mark.parametrize("size", [0, 1, HEAD_SIZE - 1, HEAD_SIZE, HEAD_SIZE + 1, 4095, 4096, 4097, 10_000])
async def test_heads_of_blobs_of_every_size(size: int, reads_by_file_size: bool, fake: FakeContainerd) -> None:
    fake.reads_by_file_size = reads_by_file_size
    data = bytes(i % 251 for i in range(size))
    infos = []
    for name, found in (("whole", data), ("missing", None), ("short", data[:-1]), ("head only", data[:HEAD_SIZE])):
        fake.state.blobs[digest(name)] = MemoryBlob(size, data=found)
        infos.append(ContentInfo(digest(name), size))
    async with stores_of(fake) as stores:
        heads = await stores.content.head_many(infos)
    assert heads[:2] == [data[:HEAD_SIZE], None]
    assert heads[2] == (None if size else b"")
    assert heads[3] == (data if size <= HEAD_SIZE else None)
    most = 4 if size <= 4096 else 2 * 4
    assert 4 <= fake.calls["Content/Read"] <= most


@pytest.mark.parametrize("reads_by_file_size", [False, True])
async def test_a_blob_whose_size_the_caller_has_wrong(reads_by_file_size: bool, fake: FakeContainerd) -> None:
    fake.reads_by_file_size = reads_by_file_size
    fake.state.blobs[digest("x")] = MemoryBlob(3_000_000, data=bytes(3_000_000))
    asked = [0, 1, 5000, 2_999_999, 3_000_001, 5_000_000, -1, -2]
    pieces = 0

    async def count(name: str, request: object) -> None:
        nonlocal pieces
        pieces += 1

    fake.on_page = count
    async with stores_of(fake) as stores:
        assert await stores.content.head_many([ContentInfo(digest("x"), size) for size in asked]) == [None] * 8
    assert pieces < 20, "nobody reads it all"


@pytest.mark.parametrize("size", [0, 5, 5000])
async def test_data_that_is_longer_than_the_database_says(size: int, fake: FakeContainerd) -> None:
    """Most versions have no call that looks at the size of the file."""
    fake.state.blobs[digest("x")] = MemoryBlob(size, data=bytes(size + 1))
    async with stores_of(fake) as stores:
        assert await stores.content.head_many([ContentInfo(digest("x"), size)]) == [bytes(min(size, HEAD_SIZE))]
        fake.reads_by_file_size = True
        assert await stores.content.head_many([ContentInfo(digest("x"), size)]) == [None]


async def test_a_read_that_is_interrupted_begins_anew(fake: FakeContainerd) -> None:
    data = bytes(i % 251 for i in range(3 * PIECE))
    fake.state.blobs[digest("x")] = MemoryBlob(len(data), data=data)
    pages = 0

    async def drop_the_second(name: str, request: object) -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise Drop

    fake.on_page = drop_the_second
    async with stores_of(fake) as stores:
        assert await stores.content.head_many([ContentInfo(digest("x"), len(data))]) == [data[:HEAD_SIZE]]
    assert fake.calls["Content/Read"] == 2


async def test_other_trouble_with_reading_is_an_error(fake: FakeContainerd) -> None:
    async def fail(name: str, request: object) -> None:
        raise GRPCError(Status.UNKNOWN, "read /x: input/output error")

    async with stores_of(fake) as stores:
        fake.before = fail
        with pytest.raises(ContainerdError, match=r"read blob sha256:\w+: read /x: input/output error"):
            await stores.content.head_many([ContentInfo(digest("blob a"), 100)])


# -- listing everything


@pytest.mark.parametrize("filters_lists", [True, False])
async def test_the_roots_among_many(filters_lists: bool, fake: FakeContainerd) -> None:
    """A containerd that knows no filters lists all: what has no label would be taken for a root."""
    fake.filters_lists = filters_lists
    before = {info async for info in names_of(fake, rooted=True)}
    for i in range(500):
        fake.state.snapshots[f"s{i:04}"] = MemorySnapshot(Kind.COMMITTED, labels={"other": "1"})
        fake.state.blobs[digest(f"{i}")] = MemoryBlob(i)
    assert {info async for info in names_of(fake, rooted=True)} == before
    assert len([info async for info in names_of(fake, rooted=False)]) == len(before) + 1000


async def names_of(fake: FakeContainerd, *, rooted: bool) -> AsyncIterator[str]:
    async with stores_of(fake) as stores:
        for snapshot in await stores.snapshots.list_all(rooted=rooted):
            yield snapshot.name
        for blob in await stores.content.list_all(rooted=rooted):
            yield blob.digest
    assert fake.calls == {"Snapshots/List": 1, "Content/List": 1}


async def test_the_filter_spares_what_is_not_wanted(fake: FakeContainerd) -> None:
    asked = []

    async def note(name: str, request: Any) -> None:
        asked.append((name, request.filters))

    async with stores_of(fake) as stores:
        fake.before = note
        await stores.snapshots.list_all(rooted=True)
        await stores.content.list_all(rooted=True)
        await stores.snapshots.list_all()
    roots = ['labels."containerd.io/gc.root"']
    assert asked == [("Snapshots/List", roots), ("Content/List", roots), ("Snapshots/List", [])]


@pytest.mark.parametrize(("page", "call"), [(3, "Snapshots/List"), (3, "Content/List")])
async def test_a_list_that_begins_anew_lists_nothing_twice(
    page: int, call: str, fake: FakeContainerd, received: Received
) -> None:
    for i in range(500):
        fake.state.snapshots[f"s{i:04}"] = MemorySnapshot(Kind.COMMITTED)
        fake.state.blobs[digest(f"{i}")] = MemoryBlob(i)
    count = sent = 0

    async def drop(name: str, request: object) -> None:
        nonlocal count, sent
        count += name == call
        if name == call and count == page:
            await received.until(sent)
            raise Drop
        sent += 1

    fake.on_page = drop
    async with stores_of(fake) as stores:
        snapshots = [info.name for info in await stores.snapshots.list_all()]
        blobs = [info.digest for info in await stores.content.list_all()]
    assert fake.calls[call] == 2
    assert sorted(snapshots) == sorted(fake.state.snapshots)
    assert sorted(blobs) == sorted(fake.state.blobs)


@pytest.mark.parametrize("limit", [1_000_000, 100, 10, 1])
async def test_all_leases_are_asked_for_in_shards_if_they_are_many(limit: int, fake: FakeContainerd) -> None:
    names = [f"sha256:{sha256(str(i).encode()).hexdigest()}" for i in range(40)]
    names += [sha256(str(i).encode()).hexdigest()[:25] for i in range(40)]
    names += [*LEASE_IDS, *(f"{name}-view" for name in names[:20])]
    held = (Resource("content", digest("x")),)
    fake.state.leases.update((name, MemoryLease({"n": name}, set(held))) for name in names)
    fake.max_leases = limit
    async with stores_of(fake) as stores:
        found = await stores.leases.list_all()
    assert len(found) == len(names)
    assert {lease.id: lease for lease in found} == {name: Lease(name, {"n": name}, held) for name in names}
    if limit == 100:
        assert fake.calls["Leases/List"] < 20, "ids that are written as usual are halved where they are"


LEASE_IDS = [
    "a", "b", "ab", "bb", "abc", "-view", 'qu"ote', "back\\slash", "sp ace", "new\nline", "newline\n", "d.t", "end$", "^",
    "(x", "[a", "]", "a|b", "ümlaut", "mlautü", "\u2028", "\ufffd", "😀", "\U0010ffff", "\x01", "A", "Z", "z", "~", "/", ":",
    "{", *(f"{i}{special}" for special in "$([\\+.*?{|^" for i in "12"),
]  # fmt: skip


async def test_a_containerd_for_which_every_list_is_too_long(fake: FakeContainerd) -> None:
    fake.max_leases = -1
    async with stores_of(fake) as stores:
        with anyio.fail_after(SAFETY), pytest.raises(TooLargeError, match="larger than max"):
            await stores.leases.list_all()
    assert fake.calls["Leases/List"] < 50


async def test_a_lease_that_is_deleted_while_all_are_listed_is_left_out(fake: FakeContainerd) -> None:
    fake.state.leases.update((name, MemoryLease({})) for name in "xyz")

    async def vanish(name: str, request: object) -> None:
        if name == "Leases/ListResources":
            fake.state.leases.pop("y", None)

    async with stores_of(fake) as stores:
        fake.before = vanish
        assert sorted(lease.id for lease in await stores.leases.list_all()) == ["x", "z"]


# -- writing


async def test_a_label_that_is_set_is_no_longer_taken_for_absent(fake: FakeContainerd) -> None:
    """Even if the answer was an error: the write may have taken effect all the same."""
    fake.state.snapshots["a"].labels = {"other": "1"}
    fake.state.blobs[digest("blob a")].labels = {}

    async def lose_the_answer(name: str, request: object) -> None:
        if name.endswith("/Update"):
            raise GRPCError(Status.INTERNAL, "lost")

    async with stores_of(fake) as stores:
        await stores.snapshots.stat_many(["a"])
        await stores.content.info_many([digest("blob a")])
        fake.after = lose_the_answer
        with pytest.raises(ContainerdError, match="lost"):
            await stores.snapshots.set_label_many([("a", "1")], ROOT)
        with pytest.raises(ContainerdError, match="lost"):
            await stores.content.set_label_many([(digest("blob a"), "1")], ROOT)
        fake.after = nothing
        assert fake.state.snapshots["a"].labels == {"other": "1", ROOT: "1"}
        assert await stores.snapshots.remove_label_many(["a"], ROOT) == [True]
        assert await stores.content.remove_label_many([digest("blob a")], ROOT) == [True]
    assert fake.state.snapshots["a"].labels == {"other": "1"}
    assert fake.state.blobs[digest("blob a")].labels == {}


async def nothing(name: str, request: object) -> None:
    """Let every call pass."""


@pytest.mark.parametrize("call", ["Leases/Delete", "Leases/DeleteResource", "Content/Update", "Snapshots/Update"])
async def test_a_write_whose_answer_is_lost_is_made_again(call: str, fake: FakeContainerd) -> None:
    held = {Resource("content", digest("x")), Resource("snapshots/overlayfs", "x")}
    fake.state.leases.update((name, MemoryLease({}, set(held))) for name in "xy")

    async def drop_once(name: str, request: object) -> None:
        if name == call and fake.calls[name] == 1:
            raise Drop

    fake.after = drop_once
    async with stores_of(fake) as stores:
        await stores.leases.delete_many(["x"])
        await stores.leases.remove_resources_many([Lease("y", {}, tuple(held))])
        assert await stores.snapshots.set_label_many([("a", "1")], ROOT) == [True]
        assert await stores.content.set_label_many([(digest("blob a"), "1")], ROOT) == [True]
    assert fake.state.leases == {"y": MemoryLease({}, set())}
    assert fake.state.snapshots["a"].labels[ROOT] == fake.state.blobs[digest("blob a")].labels[ROOT] == "1"
    assert fake.calls[call] == {"Leases/DeleteResource": 3}.get(call, 2)


async def test_a_lease_that_is_gone_is_not_asked_about_again(fake: FakeContainerd) -> None:
    async with stores_of(fake) as stores:
        held = tuple(Resource("content", digest(f"{i}")) for i in range(10))
        await stores.leases.remove_resources_many([Lease("nowhere", {}, held)])
    assert fake.calls == {"Leases/DeleteResource": 1}


async def test_the_new_verbs_count_what_they_dealt_with(fake: FakeContainerd) -> None:
    counts: list[int] = []
    fake.state.leases.update((name, MemoryLease({})) for name in "xyz")
    async with open_containerd(
        str(fake.address), namespace="buildkit", snapshotter="overlayfs", concurrency=8, patience=300, progress=counts.append
    ) as running:
        stores = running.stores
        for verb, expected in (
            (stores.content.head_many([ContentInfo(digest(name), 1) for name in "abc"]), 3),
            (stores.content.set_label_many([(digest("blob a"), "1")] * 2, "l"), 2),
            (stores.snapshots.set_label_many([("a", "1"), ("nowhere", "1")], "l"), 2),
            (stores.leases.remove_resources_many([Lease("x"), Lease("nowhere")]), 2),
            (stores.snapshots.list_all(), 0),
            (stores.content.list_all(), 0),
            (stores.leases.list_all(), 0),
            (stores.leases.delete_many(["x", "nowhere", "y"]), 3),
        ):
            counts.clear()
            await verb
            assert sum(counts) == expected


async def test_leases_are_read_back_with_one_list(fake: FakeContainerd) -> None:
    """A list tells all leases of the namespace, so in parts a large cache would be listed hundreds of times."""
    leases = [Lease(f"lease {i}", {}, (Resource("content", f"blob {i}"),)) for i in range(protect._READ_BACK + 1)]
    fake.state.leases = {lease.id: MemoryLease({}, set(lease.resources)) for lease in leases}
    async with stores_of(fake) as stores:
        await protect.verify(leases, stores.leases)
        assert fake.calls == {"Leases/List": 1, "Leases/ListResources": len(leases)}
