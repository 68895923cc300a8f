"""Migrating against a real containerd that goes on running."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Set
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import asyncmig
from asyncmig import AsyncmigError, IncompleteMigrationError, LayoutError, Options, Outcome, StoreError
from asyncmig.migration.changes import Change
from asyncmig.migration.release import ReleasePlan, Vanished
from asyncmig.migration.report import Counts
from asyncmig.migration.semantics import HARDENED, UPSTREAM, Semantics
from asyncmig.stores.containerd import leases
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import ListRequest
from asyncmig.stores.containerd.client import TooLargeError
from asyncmig.stores.containerd.leases import ContainerdLeases
from asyncmig.stores.containerd.stores import open_containerd
from asyncmig.stores.memory import MemoryStores
from asyncmig.stores.offline import OfflineFiles, offline_stores
from asyncmig.stores.ports import Kind, Lease, Stores
from tests.caches import ROOT, TIME, Snapshot, V1Cache, digest, labels_of, marked_cache, migrate_with, sample_cache, value
from tests.conftest import copy_tree
from tests.interop.conftest import ContainerdFactory
from tests.interop.containerd import Containerd, collecting
from tests.interop.livecache import build_cache, containerd_root_from_worker
from tests.interop.test_containerd_offline import (
    check_garbage_collection,
    check_leases,
    read_v2,
)
from tests.migration.test_golden import EDGE_CASES, EXPECTED_MESSAGES, golden_lines
from tests.states import containerd_state, dump_lines, lasting, normalized, tree_state

pytestmark = pytest.mark.anyio

META = Path("io.containerd.metadata.v1.bolt/meta.db")


@pytest.fixture(params=["overlayfs", "native"])
def snapshotter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def live(daemon: Containerd, **options: Any) -> Options:
    return Options(address=str(daemon.address), **options)


# -- the same result in all three ways


async def test_live_offline_and_in_memory_give_the_same(
    snapshotter: str, semantics: Semantics, daemon: Containerd, containerd_factory: ContainerdFactory, tmp_path: Path
) -> None:
    cache = sample_cache()
    worker = build_cache(daemon, cache, tmp_path / f"containerd-{snapshotter}", snapshotter=snapshotter)
    stopped_worker = copy_tree(worker, tmp_path / "stopped" / worker.name)
    daemon.stop()
    root = copy_tree(daemon.root, tmp_path / "root")
    daemon.start()

    report = await asyncmig.migrate(worker, live(daemon, semantics=semantics.name))
    daemon.stop()
    await asyncmig.migrate(stopped_worker, Options(containerd_root=root, semantics=semantics.name))
    memory = cache.in_memory()
    memory.snapshotter = snapshotter
    memory_worker = tmp_path / "memory"
    memory_worker.mkdir()
    cache.write_metadata(memory_worker / "metadata.db")
    in_memory = await migrate_with(memory_worker, memory.stores(), semantics=semantics)

    expected = dump_lines(stopped_worker / "metadata_v2.db")
    assert dump_lines(worker / "metadata_v2.db") == expected
    assert dump_lines(memory_worker / "metadata_v2.db") == expected
    for path in (META, Path(f"io.containerd.snapshotter.v1.{snapshotter}") / "metadata.db"):
        # A running containerd leaves empty buckets of labels behind; hardened does not, in files.
        assert semantic(containerd_state(daemon.root / path)) == semantic(containerd_state(root / path)), path
    assert report.counts == in_memory.counts
    with daemon_on(daemon, containerd_factory) as again:
        check_same_as_memory(again, memory, snapshotter)


@contextlib.contextmanager
def daemon_on(daemon: Containerd, factory: ContainerdFactory) -> Iterator[Containerd]:
    with factory(root=daemon.root, automatic_gc=False) as again:
        yield again


def check_same_as_memory(daemon: Containerd, memory: MemoryStores, snapshotter: str) -> None:
    """Leases with labels and resources, and labels of all snapshots and blobs."""
    leases = daemon.leases()
    assert {name: set(labels) for name, labels in leases.items()} == {
        n: set(lease.labels) for n, lease in memory.leases.items()
    }
    for name, lease in memory.leases.items():
        assert daemon.lease_resources(name) == {(resource.type, resource.id) for resource in lease.resources}
    for name, labels in labels_of(memory).items():
        kind = "content" if name in memory.blobs else "snapshot"
        assert daemon.labels(kind, name, snapshotter=snapshotter) == labels, name


def semantic(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a dump of containerd's metadata says, whatever objects were updated for nothing.

    Left out: update times, and buckets of labels that are empty.
    """
    filled = {json.dumps(entry["p"]) for entry in lines if "k" in entry}
    return [
        entry
        for entry in lines
        if entry.get("k") != "updatedat" and (not _is_label_bucket(entry) or json.dumps(entry["p"]) in filled)
    ]


def _is_label_bucket(entry: dict[str, Any]) -> bool:
    return bool(entry.get("b")) and entry["p"][-1] == "labels"


@pytest.mark.parametrize("case", EDGE_CASES)
async def test_edge_case(case: str, edge_cases: Path, containerd_factory: ContainerdFactory, tmp_path: Path) -> None:
    """The golden states of upstream's migration, in a running containerd."""
    worker = copy_tree(edge_cases / case / "in", tmp_path / "worker")
    root = containerd_root_from_worker(worker, tmp_path / "root", "overlayfs")
    before = containerd_state(root / META)
    files = sorted(path.name for path in worker.iterdir())
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        options = live(daemon, layout="containerd", snapshotter="overlayfs", semantics="upstream")
        if case in EXPECTED_MESSAGES:
            with pytest.raises(AsyncmigError, match=EXPECTED_MESSAGES[case]) as caught:
                await asyncmig.migrate(worker, options)
            assert type(caught.value) is not asyncmig.IncompleteMigrationError
        else:
            await asyncmig.migrate(worker, options)
    after = containerd_state(root / META)
    if case in EXPECTED_MESSAGES or case in ("to-exists", "from-missing"):
        assert after == before
        assert sorted(path.name for path in worker.iterdir()) == files
        return
    assert dump_lines(worker / "metadata_v2.db") == golden_lines(edge_cases / case / "expected.metadata_v2.jsonl")
    expected = normalized(golden_lines(edge_cases / case / "expected.containerdmeta.jsonl"))
    assert semantic(after) == semantic(expected)


REPAIRED = [
    "blob-missing", "chainids-present", "dangling-em", "dangling-parent", "deleted-record", "em-with-blob", "lease-exists",
    "malformed-json", "parent-cycle", "shared-blob", "snapshot-missing", "view-record",
]  # fmt: skip


@pytest.mark.parametrize("case", REPAIRED)
async def test_an_edge_case_is_repaired_as_offline(
    case: str, edge_cases: Path, containerd_factory: ContainerdFactory, tmp_path: Path
) -> None:
    """What hardened semantics make of it is for the offline tests to say."""
    worker, other = (copy_tree(edge_cases / case / "in", tmp_path / name / "worker") for name in ("live", "offline"))
    root, other_root = (
        containerd_root_from_worker(directory, tmp_path / f"root {directory.parent.name}", "overlayfs")
        for directory in (worker, other)
    )
    options: dict[str, Any] = {"layout": "containerd", "snapshotter": "overlayfs", "max_dropped": 100}
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        report = await asyncmig.migrate(worker, live(daemon, **options))
    expected = await asyncmig.migrate(other, Options(containerd_root=other_root, **options))
    assert (report.decisions, report.counts) == (expected.decisions, expected.counts)
    assert [note.code for note in report.notes] == [note.code for note in expected.notes]
    assert dump_lines(worker / "metadata_v2.db") == dump_lines(other / "metadata_v2.db")
    assert semantic(containerd_state(root / META)) == semantic(containerd_state(other_root / META))


async def test_the_real_cache(real_cache: Path, shared: Path, tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    worker = copy_tree(real_cache / "runc-overlayfs", tmp_path / "worker")
    root = containerd_root_from_worker(worker, tmp_path / "root", "overlayfs")
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        report = await asyncmig.migrate(worker, live(daemon, semantics="upstream"))
        records = read_v2(worker / "metadata_v2.db")
        check_leases(daemon, records, "overlayfs", UPSTREAM)
        daemon.stop()
        caches = shared / "caches"
        expected = normalized(golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.ctdmeta.jsonl.xz"))
        assert semantic(containerd_state(root / META)) == semantic(expected)
        daemon.start()
        check_garbage_collection(daemon, records, "overlayfs")
    expected_v2 = golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.metadata_v2.jsonl.xz")
    assert dump_lines(worker / "metadata_v2.db") == expected_v2
    assert (report.counts.snapshots_released, report.counts.blobs_released, report.counts.views_released) == (156, 51, 36)


async def test_the_real_cache_hardened(real_cache: Path, tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    worker, other = (copy_tree(real_cache / "runc-overlayfs", tmp_path / name / "worker") for name in ("live", "offline"))
    root = containerd_root_from_worker(worker, tmp_path / "root", "overlayfs")
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        report = await asyncmig.migrate(worker, live(daemon))
        expected = await asyncmig.migrate(other, Options(snapshotter="overlayfs"))
        records = read_v2(worker / "metadata_v2.db")
        check_leases(daemon, records, "overlayfs", HARDENED)
        daemon.stop()
        assert semantic(containerd_state(root / META)) == semantic(containerd_state(other / "containerdmeta.db"))
        daemon.start()
        check_garbage_collection(daemon, records, "overlayfs")
    assert report.counts == expected.counts
    assert dump_lines(worker / "metadata_v2.db") == dump_lines(other / "metadata_v2.db")


# -- garbage collection


async def test_the_collector_removes_nothing_that_a_record_owns(
    snapshotter: str, semantics: Semantics, daemon: Containerd, tmp_path: Path
) -> None:
    worker = build_cache(daemon, sample_cache(), tmp_path / f"containerd-{snapshotter}", snapshotter=snapshotter)
    await asyncmig.migrate(worker, live(daemon, semantics=semantics.name))
    records = read_v2(worker / "metadata_v2.db")
    check_leases(daemon, records, snapshotter, semantics)
    assert ("holder" in daemon.leases()) is (semantics is UPSTREAM)
    assert "view" in daemon.snapshots(snapshotter)
    check_garbage_collection(daemon, records, snapshotter)
    assert "view" not in daemon.snapshots(snapshotter), "a leaked view goes"


async def test_the_collector_keeps_the_blob_of_a_holder(semantics: Semantics, daemon: Containerd, tmp_path: Path) -> None:
    """It has no snapshot of its own, so that a lease on its blob is all that it needs."""
    cache = sample_cache()
    blob = digest("blob holder")
    cache.records["holder"]["blobmapping.blob"] = value({"Blobsum": blob, "DiffID": digest("diff holder")})
    cache.blobs[blob], cache.data[blob] = {ROOT: TIME}, b"blob holder"
    worker = build_cache(daemon, cache, tmp_path / "containerd-native", snapshotter="native")
    await asyncmig.migrate(worker, live(daemon, semantics=semantics.name))
    records = read_v2(worker / "metadata_v2.db")
    assert [record.blob for record in records if record.id == "holder"] == [blob]
    check_leases(daemon, records, "native", semantics)
    check_garbage_collection(daemon, records, "native")
    # Upstream leaves the label there, so that nothing ever collects the blob.
    assert (ROOT in daemon.labels("content", blob)) is (semantics is UPSTREAM)


@pytest.fixture
def large() -> V1Cache:
    """Enough for some collections to run meanwhile."""
    cache = V1Cache()
    for i in range(60):
        cache.layer(f"layer{i}", f"layer{i - 1}" if i % 5 else "")
    cache.unfinalised("holder", "mutable", "layer5")
    return cache


async def test_a_collector_that_runs_all_the_time(
    semantics: Semantics, large: V1Cache, daemon: Containerd, tmp_path: Path
) -> None:
    worker = build_cache(daemon, large, tmp_path / "containerd-overlayfs", snapshotter="overlayfs")
    with collecting(daemon):
        await asyncmig.migrate(worker, live(daemon, concurrency=2, semantics=semantics.name))
    daemon.collect_garbage()
    assert daemon.snapshots("overlayfs") == set(large.snapshots)
    assert daemon.blobs() == set(large.blobs)


async def test_a_collector_that_runs_all_the_time_in_a_rollback(
    semantics: Semantics, large: V1Cache, daemon: Containerd, tmp_path: Path
) -> None:
    worker = build_cache(daemon, large, tmp_path / "containerd-overlayfs", snapshotter="overlayfs")
    await asyncmig.migrate(worker, live(daemon, semantics=semantics.name))
    with collecting(daemon):
        await asyncmig.rollback(worker, live(daemon, concurrency=2))
    daemon.collect_garbage()
    assert daemon.snapshots("overlayfs") == set(large.snapshots)
    assert daemon.blobs() == set(large.blobs)
    assert daemon.leases() == {}


# -- going back, and going on


@contextlib.contextmanager
def stopped(daemon: Containerd) -> Iterator[None]:
    """Its databases can be read."""
    daemon.stop()
    yield
    daemon.start()


async def test_a_rollback_brings_everything_back(
    snapshotter: str, semantics: Semantics, daemon: Containerd, tmp_path: Path
) -> None:
    """Each label with its value, and leases of others as they were; what no record owns is kept again, too."""
    cache = marked_cache()
    worker = build_cache(daemon, cache, tmp_path / f"containerd-{snapshotter}", snapshotter=snapshotter)
    paths = [daemon.root / META, daemon.root / f"io.containerd.snapshotter.v1.{snapshotter}" / "metadata.db"]
    with stopped(daemon):
        before = [lasting(dump_lines(path)) for path in paths]
    await asyncmig.migrate(worker, live(daemon, semantics=semantics.name))
    with stopped(daemon):
        assert lasting(dump_lines(paths[0])) != before[0]
    report = await asyncmig.rollback(worker, live(daemon))
    assert (report.outcome, report.semantics) == (Outcome.ROLLED_BACK, semantics.name)
    with stopped(daemon):
        assert [lasting(dump_lines(path)) for path in paths] == before
    assert sorted(os.listdir(worker)) == ["metadata.db", "metadata_v2.db.rolled-back"]
    assert set(daemon.leases()) == {"b", "somebody"}
    daemon.collect_garbage()
    assert daemon.snapshots(snapshotter) == set(cache.snapshots)
    assert daemon.blobs() == set(cache.blobs)
    await asyncmig.migrate(worker, live(daemon))
    check_garbage_collection(daemon, read_v2(worker / "metadata_v2.db"), snapshotter, kept={"held view"})


async def test_a_release_that_was_interrupted_is_completed(
    daemon: Containerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new database is published, so nothing is computed again: what the journal names is released."""
    worker = build_cache(daemon, sample_cache(), tmp_path / "containerd-native", snapshotter="native")

    async def release_some(counts: Counts, stores: Stores, plan: ReleasePlan, semantics: Semantics) -> Vanished:
        await stores.snapshots.remove_label_many(plan.snapshots[::2], ROOT)
        raise StoreError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("asyncmig.migration.pipeline.release", release_some)
        with pytest.raises(IncompleteMigrationError, match="stage release: interrupted"):
            await asyncmig.migrate(worker, live(daemon))
    published = (worker / "metadata_v2.db").read_bytes()
    labelled = {name for name in sample_cache().snapshots if daemon.labels("snapshot", name, snapshotter="native")}
    assert 0 < len(labelled) < len(sample_cache().snapshots)
    records = read_v2(worker / "metadata_v2.db")
    check_leases(daemon, records, "native", HARDENED)
    daemon.collect_garbage()
    seen = await asyncmig.plan(worker, live(daemon))
    assert (seen.outcome, [note.code for note in seen.notes]) == (Outcome.INTERRUPTED, ["interrupted-before"])

    report = await asyncmig.migrate(worker, live(daemon))
    assert report.outcome is Outcome.COMPLETED
    assert (worker / "metadata_v2.db").read_bytes() == published
    check_garbage_collection(daemon, records, "native")
    for record in records:
        if not record.is_holder:
            assert ROOT not in daemon.labels("snapshot", record.id, snapshotter="native")
        if record.blob:
            assert ROOT not in daemon.labels("content", record.blob)
    assert (await asyncmig.migrate(worker, live(daemon))).outcome is Outcome.ALREADY_MIGRATED


# -- only what is needed, only where it is meant


async def test_an_object_without_the_label_is_not_updated(daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("labelled")
    cache.layer("bare", "labelled")
    worker = build_cache(daemon, cache, tmp_path / "containerd-native", snapshotter="native")
    daemon.ctr("snapshots", "--snapshotter", "native", "label", "bare", f"{ROOT}=")
    daemon.ctr("content", "label", digest("blob bare"), f"{ROOT}=")
    before = updated(daemon, "bare")
    await asyncmig.migrate(worker, live(daemon))
    assert updated(daemon, "bare") == before
    assert daemon.labels("snapshot", "labelled", snapshotter="native") == {}


def updated(daemon: Containerd, key: str) -> str:
    info = json.loads(daemon.ctr("snapshots", "--snapshotter", "native", "info", key))
    return str(info["Updated"])


async def test_other_namespaces_are_not_touched(daemon: Containerd, tmp_path: Path) -> None:
    cache = sample_cache()
    other = build_cache(daemon, cache, tmp_path / "other", snapshotter="native", namespace="moby")
    worker = build_cache(daemon, cache, tmp_path / "containerd-native", snapshotter="native")
    await asyncmig.migrate(worker, live(daemon))
    assert daemon.leases("moby") == {}
    assert daemon.labels("snapshot", "a", "moby", snapshotter="native") == {ROOT: TIME}
    await asyncmig.migrate(other, live(daemon, namespace="moby", snapshotter="native"))
    assert set(daemon.leases("moby")) == {"a", "b", "c", "d", "mutable", "mutable-root"}


async def test_a_wrong_place_is_told_the_right_one(daemon: Containerd, tmp_path: Path) -> None:
    worker = build_cache(daemon, sample_cache(), tmp_path / "containerd-native", snapshotter="native", namespace="moby")
    build_cache(daemon, V1Cache(snapshots={"s": Snapshot(Kind.ACTIVE)}), tmp_path / "empty", snapshotter="native")
    with pytest.raises(LayoutError, match=r"use instead: --namespace moby --snapshotter native \(has 6 of them\)"):
        await asyncmig.migrate(worker, live(daemon))
    with pytest.raises(LayoutError, match=r"use instead: --namespace moby --snapshotter native \(has 6 of them\)"):
        await asyncmig.migrate(worker, live(daemon, namespace="moby", snapshotter="overlayfs"))
    with pytest.raises(LayoutError, match=r"namespace nobody, .* use instead: --namespace moby"):
        await asyncmig.migrate(worker, live(daemon, namespace="nobody"))
    with pytest.raises(LayoutError, match=r"there is no snapshotter nothing; choose one with --snapshotter: .*native"):
        await asyncmig.migrate(worker, live(daemon, namespace="moby", snapshotter="nothing"))
    assert daemon.leases("moby") == {}
    await asyncmig.migrate(worker, live(daemon, namespace="moby"))


async def test_a_plan_changes_nothing(semantics: Semantics, daemon: Containerd, tmp_path: Path) -> None:
    """Nor does the plan of a rollback: not a time in any of containerd's databases."""
    worker = build_cache(daemon, marked_cache(), tmp_path / "containerd-native", snapshotter="native")
    options = live(daemon, semantics=semantics.name)
    told: list[Change] = []
    with unchanged(daemon, worker):
        report = await asyncmig.plan(worker, options, on_change=told.append)
    assert report.outcome is Outcome.WOULD_MIGRATE
    assert told
    await asyncmig.migrate(worker, options)
    with unchanged(daemon, worker):
        assert (await asyncmig.plan(worker, options)).outcome is Outcome.ALREADY_MIGRATED
        report = await asyncmig.rollback(worker, live(daemon, dry_run=True))
        assert report.outcome is Outcome.WOULD_ROLL_BACK


@contextlib.contextmanager
def unchanged(daemon: Containerd, worker: Path) -> Iterator[None]:
    """Neither a database of containerd's nor a file of the worker changes."""

    def state() -> object:
        with stopped(daemon):
            databases = {path: dump_lines(path) for path in sorted(daemon.root.rglob("*.db"))}
        return databases, tree_state(worker)

    before = state()
    yield
    assert state() == before


async def test_ids_of_every_kind_are_found(daemon: Containerd) -> None:
    """The filter language of containerd, with what has to be quoted in it."""
    names = ["a", "ab", "a.b", 'qu"ote', "back\\slash", "sp ace", "new\nline", "ümlaut", "\u2028", "😀", "(x", "a|b", "$", "[a"]
    names += [f"sha256:{i:064}" for i in range(20)]
    async with open_containerd(
        str(daemon.address), namespace="buildkit", snapshotter="native", concurrency=8, patience=300
    ) as running:
        port = running.stores.leases
        await port.protect_many([Lease(name, {"n": "1"}) for name in names])
        assert [lease and lease.id for lease in await port.list_many([*names, "no"])] == [*names, None]
        for name in names:  # asked for one by one
            assert [lease and lease.id for lease in await port.list_many([name])] == [name]

        # And in shards, by what containerd takes for regular expressions.
        assert isinstance(port, ContainerdLeases)
        port.__class__ = OneAtATime
        assert [lease and lease.id for lease in await port.list_many(names)] == names


class OneAtATime(ContainerdLeases):
    """As if every answer with more than one lease were too large."""

    async def _list(self, filters: list[str], labels: leases.Labels, wanted: Set[str] | None) -> None:
        found: leases.Labels = {}
        await super()._list(filters, found, None)
        if len(found) > 1:
            raise TooLargeError(self._client.address, "list", "larger than max")
        labels.update(found)


async def test_more_leases_than_fit_into_one_message(tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    """containerd refuses to send more than 16 MiB: about 165,000 leases as BuildKit makes them, or few with long labels."""
    worker = sample_cache().write(tmp_path / "runc-native", snapshotter="native")
    files = OfflineFiles.open(worker / "containerdmeta.db", "", namespace="buildkit", writable=True)
    names = [sha256(str(i).encode()).hexdigest()[:25] for i in range(6_000)]
    stores = offline_stores(files, "native", content_directory=worker / "content")
    await stores.leases.protect_many([Lease(name, {"long": 4_000 * "x"}) for name in names])
    files.close()
    root = containerd_root_from_worker(worker, tmp_path / "root", "native")
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        async with open_containerd(
            str(daemon.address), namespace="buildkit", snapshotter="native", concurrency=8, patience=300
        ) as running:
            port = running.stores.leases
            assert isinstance(port, ContainerdLeases)
            with pytest.raises(TooLargeError, match="larger than max"):
                await port._bridge.run(lambda: port._client.call(port._client.leases.list, ListRequest()))
            wanted = [*names[::7], "nowhere"]
            found = await port.list_many(wanted)
            everything = await port.list_all()
    assert [lease and lease.id for lease in found] == [*wanted[:-1], None]
    assert sorted(lease.id for lease in everything) == sorted(names)
    assert {len(lease.labels["long"]) for lease in everything} == {4_000}
