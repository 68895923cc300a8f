"""Migrating against a real containerd that goes on running."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import asyncmig
from asyncmig import AsyncmigError, LayoutError, Options
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.stores.containerd import leases
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import ListRequest
from asyncmig.stores.containerd.client import TooLargeError
from asyncmig.stores.containerd.leases import ContainerdLeases
from asyncmig.stores.containerd.stores import open_containerd
from asyncmig.stores.memory import MemoryStores
from asyncmig.stores.offline import OfflineFiles, offline_stores
from asyncmig.stores.ports import Kind, Lease
from tests.caches import ROOT, TIME, Snapshot, V1Cache, digest, labels_of, migrate_with, sample_cache
from tests.conftest import copy_tree
from tests.interop.conftest import ContainerdFactory
from tests.interop.containerd import Containerd
from tests.interop.livecache import build_cache, containerd_root_from_worker
from tests.interop.test_containerd_offline import (
    check_garbage_collection,
    check_leases,
    read_v2,
)
from tests.migration.test_golden import EDGE_CASES, EXPECTED_MESSAGES, golden_lines
from tests.states import containerd_state, dump_lines, normalized

pytestmark = pytest.mark.anyio

META = Path("io.containerd.metadata.v1.bolt/meta.db")


@pytest.fixture(params=["overlayfs", "native"])
def snapshotter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(containerd_factory: ContainerdFactory) -> Iterator[Containerd]:
    """A containerd that collects no garbage before it is told to."""
    with containerd_factory(automatic_gc=False) as running:
        yield running


def live(daemon: Containerd, **options: Any) -> Options:
    return Options(address=str(daemon.address), **options)


# -- the same result in all three ways


async def test_live_offline_and_in_memory_give_the_same(
    snapshotter: str, daemon: Containerd, containerd_factory: ContainerdFactory, tmp_path: Path
) -> None:
    cache = sample_cache()
    worker = build_cache(daemon, cache, tmp_path / f"containerd-{snapshotter}", snapshotter=snapshotter)
    stopped_worker = copy_tree(worker, tmp_path / "stopped" / worker.name)
    daemon.stop()
    root = copy_tree(daemon.root, tmp_path / "root")
    daemon.start()

    report = await asyncmig.migrate(worker, live(daemon))
    daemon.stop()
    await asyncmig.migrate(stopped_worker, Options(containerd_root=root))
    memory = cache.in_memory()
    memory.snapshotter = snapshotter
    memory_worker = tmp_path / "memory"
    memory_worker.mkdir()
    cache.write_metadata(memory_worker / "metadata.db")
    in_memory = await migrate_with(memory_worker, memory.stores())

    expected = dump_lines(stopped_worker / "metadata_v2.db")
    assert dump_lines(worker / "metadata_v2.db") == expected
    assert dump_lines(memory_worker / "metadata_v2.db") == expected
    for path in (META, Path(f"io.containerd.snapshotter.v1.{snapshotter}") / "metadata.db"):
        assert containerd_state(daemon.root / path) == containerd_state(root / path), path
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
        options = live(daemon, layout="containerd", snapshotter="overlayfs")
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
    assert not (worker / "metadata_v2.db.journal").exists()


async def test_the_real_cache(real_cache: Path, shared: Path, tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    worker = copy_tree(real_cache / "runc-overlayfs", tmp_path / "worker")
    root = containerd_root_from_worker(worker, tmp_path / "root", "overlayfs")
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        report = await asyncmig.migrate(worker, live(daemon))
        records = read_v2(worker / "metadata_v2.db")
        check_leases(daemon, records, "overlayfs")
        daemon.stop()
        caches = shared / "caches"
        expected = normalized(golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.ctdmeta.jsonl.xz"))
        assert semantic(containerd_state(root / META)) == semantic(expected)
        daemon.start()
        check_garbage_collection(daemon, records, "overlayfs")
    expected_v2 = golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.metadata_v2.jsonl.xz")
    assert dump_lines(worker / "metadata_v2.db") == expected_v2
    assert (report.counts.snapshots_released, report.counts.blobs_released, report.counts.views_released) == (156, 51, 36)


# -- garbage collection


async def test_the_collector_removes_nothing_that_a_record_owns(snapshotter: str, daemon: Containerd, tmp_path: Path) -> None:
    worker = build_cache(daemon, sample_cache(), tmp_path / f"containerd-{snapshotter}", snapshotter=snapshotter)
    await asyncmig.migrate(worker, live(daemon))
    records = read_v2(worker / "metadata_v2.db")
    check_leases(daemon, records, snapshotter)
    assert "view" in daemon.snapshots(snapshotter)
    check_garbage_collection(daemon, records, snapshotter)
    assert "view" not in daemon.snapshots(snapshotter), "a leaked view goes"


async def test_a_collector_that_runs_all_the_time(tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    """containerd collects after every 100 changes by default, so it does so in the middle of a migration, too."""
    import threading  # noqa: PLC0415

    cache = V1Cache()
    for i in range(60):
        cache.layer(f"layer{i}", f"layer{i - 1}" if i % 5 else "")
    with containerd_factory(automatic_gc=False) as daemon:
        worker = build_cache(daemon, cache, tmp_path / "containerd-overlayfs", snapshotter="overlayfs")
        ended = threading.Event()
        rounds = 0

        def collect() -> None:
            nonlocal rounds
            while not ended.is_set():
                daemon.collect_garbage()
                rounds += 1

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            await asyncmig.migrate(worker, live(daemon, concurrency=2))
        finally:
            ended.set()
            collector.join()
        assert rounds >= 2
        daemon.collect_garbage()
        assert daemon.snapshots("overlayfs") == set(cache.snapshots)
        assert daemon.blobs() == set(cache.blobs)


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
    assert set(daemon.leases("moby")) == set(cache.records)


async def test_a_wrong_place_is_told_the_right_one(daemon: Containerd, tmp_path: Path) -> None:
    worker = build_cache(daemon, sample_cache(), tmp_path / "containerd-native", snapshotter="native", namespace="moby")
    build_cache(daemon, V1Cache(snapshots={"s": Snapshot(Kind.ACTIVE)}), tmp_path / "empty", snapshotter="native")
    with pytest.raises(LayoutError, match=r"they are in: --namespace moby --snapshotter native \(6 of them\)"):
        await asyncmig.migrate(worker, live(daemon))
    with pytest.raises(LayoutError, match=r"they are in: --namespace moby --snapshotter native \(6 of them\)"):
        await asyncmig.migrate(worker, live(daemon, namespace="moby", snapshotter="overlayfs"))
    with pytest.raises(LayoutError, match=r"namespace nobody, .* they are in: --namespace moby"):
        await asyncmig.migrate(worker, live(daemon, namespace="nobody"))
    with pytest.raises(LayoutError, match=r"has no snapshotter nothing; there is: .*native"):
        await asyncmig.migrate(worker, live(daemon, namespace="moby", snapshotter="nothing"))
    assert daemon.leases("moby") == {}
    await asyncmig.migrate(worker, live(daemon, namespace="moby"))


async def test_a_dry_run_changes_nothing(daemon: Containerd, tmp_path: Path) -> None:
    worker = build_cache(daemon, sample_cache(), tmp_path / "containerd-native", snapshotter="native")
    daemon.stop()
    before = dump_lines(daemon.root / META)
    daemon.start()
    await asyncmig.migrate(worker, live(daemon, dry_run=True))
    daemon.stop()
    assert dump_lines(daemon.root / META) == before
    assert [path.name for path in worker.iterdir()] == ["metadata.db"]


async def test_ids_of_every_kind_are_found(daemon: Containerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter language of containerd, with what has to be quoted in it."""
    names = ["a", "ab", "a.b", 'qu"ote', "back\\slash", "sp ace", "new\nline", "ümlaut", "\u2028", "😀", "(x", "a|b", "$", "[a"]
    names += [f"sha256:{i:064}" for i in range(20)]
    async with open_containerd(
        str(daemon.address), namespace="buildkit", snapshotter="native", concurrency=8, patience=10
    ) as running:
        port = running.stores.leases
        await port.protect_many([Lease(name, {"n": "1"}) for name in names])
        assert [lease and lease.id for lease in await port.list_many([*names, "no"])] == [*names, None]
        for name in names:  # asked for one by one
            assert [lease and lease.id for lease in await port.list_many([name])] == [name]

        # And in shards, by what containerd takes for regular expressions.
        monkeypatch.setattr(ContainerdLeases, "_list", list_shards)
        monkeypatch.setattr(leases, "_FILTERED_ONE_BY_ONE", 1)
        assert [lease and lease.id for lease in await port.list_many(names)] == names


async def list_shards(port: ContainerdLeases, ids: Sequence[str], labels: leases.Labels) -> None:
    """As if the answer for all had been too large."""
    for prefix, shard in leases._shards(no_checkpoint, ids):
        request = ListRequest(filters=leases._filters(prefix, shard))
        reply = await port._client.call(port._client.leases.list, request)
        labels.update((lease.id, dict(lease.labels)) for lease in reply.leases if lease.id in shard)


async def test_more_leases_than_fit_into_one_message(tmp_path: Path, containerd_factory: ContainerdFactory) -> None:
    """containerd refuses to send more than 16 MiB: about 165,000 leases as BuildKit makes them, or few with long labels."""
    worker = sample_cache().write(tmp_path / "runc-native", snapshotter="native")
    (worker / "content").mkdir()
    files = OfflineFiles.open(worker / "containerdmeta.db", "", namespace="buildkit", writable=True)
    names = [sha256(str(i).encode()).hexdigest()[:25] for i in range(6_000)]
    await offline_stores(files, "native").leases.protect_many([Lease(name, {"long": 4_000 * "x"}) for name in names])
    files.close()
    root = containerd_root_from_worker(worker, tmp_path / "root", "native")
    with containerd_factory(root=root, automatic_gc=False) as daemon:
        async with open_containerd(
            str(daemon.address), namespace="buildkit", snapshotter="native", concurrency=8, patience=30
        ) as running:
            port = running.stores.leases
            assert isinstance(port, ContainerdLeases)
            with pytest.raises(TooLargeError, match="larger than max"):
                await port._bridge.run(lambda: port._client.call(port._client.leases.list, ListRequest()))
            wanted = [*names[::7], "nowhere"]
            found = await port.list_many(wanted)
    assert [lease and lease.id for lease in found] == [*wanted[:-1], None]
