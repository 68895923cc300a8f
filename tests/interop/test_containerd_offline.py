"""A real containerd on a state directory that was migrated offline."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options
from asyncmig.bolt import Db
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.record import Record
from asyncmig.migration.semantics import UPSTREAM, Semantics
from asyncmig.synth import synthesize
from tests.caches import marked_cache
from tests.conftest import copy_tree
from tests.interop.conftest import ContainerdFactory
from tests.interop.containerd import Containerd
from tests.interop.livecache import containerd_root_from_worker
from tests.states import dump_lines, lasting

pytestmark = pytest.mark.anyio


def read_v2(path: Path) -> list[Record]:
    database = MetadataDb.open(path)
    try:
        return database.read()
    finally:
        database.close()


@dataclass
class Migrated:
    """A migrated cache: its records, and the root of the containerd that has its stores."""

    records: list[Record]
    root: Path
    snapshotter: str
    semantics: Semantics


@pytest.fixture(params=["overlayfs", "native"])
async def migrated(request: pytest.FixtureRequest, semantics: Semantics, tmp_path: Path, anyio_backend: str) -> Migrated:
    snapshotter = str(request.param)
    worker = Path(synthesize(tmp_path / f"runc-{snapshotter}", records=120, seed=3).directory)
    root = containerd_root_from_worker(worker, tmp_path / "containerd", snapshotter)
    await asyncmig.migrate(worker, Options(containerd_root=root, semantics=semantics.name))
    return Migrated(read_v2(worker / "metadata_v2.db"), root, snapshotter, semantics)


def check_leases(daemon: Containerd, records: list[Record], snapshotter: str, semantics: Semantics) -> None:
    """Just the leases that the records must have are listed by containerd, with label and resources."""
    expected = {}
    for record in records:
        held = {("content", record.blob)} if record.blob else set()
        if semantics is UPSTREAM or not record.is_holder:
            held.add((f"snapshots/{snapshotter}", record.id))
        if held:
            expected[record.id] = held
    leases = daemon.leases()
    assert set(expected) == {record.id for record in records}.intersection(leases)
    for name, held in expected.items():
        assert set(leases[name]) == {"containerd.io/gc.flat"}
        assert daemon.lease_resources(name) == held


def check_garbage_collection(
    daemon: Containerd, records: list[Record], snapshotter: str, *, kept: AbstractSet[str] = frozenset()
) -> None:
    """A forced collection keeps what records own, and takes the views that labels no longer keep.

    ``kept`` are snapshots that leases of others hold.
    """
    snapshots, blobs = daemon.snapshots(snapshotter), daemon.blobs()
    owned_snapshots = {r.id for r in records if not r.is_holder}
    owned_blobs = {r.blob for r in records if r.blob}
    assert owned_snapshots <= snapshots
    assert owned_blobs <= blobs

    daemon.collect_garbage()

    assert daemon.snapshots(snapshotter) == owned_snapshots | kept
    assert owned_blobs <= daemon.blobs()
    for record in records:
        if not record.is_holder:
            daemon.ctr("snapshots", "--snapshotter", snapshotter, "info", record.id)


async def test_containerd_takes_an_edited_state_and_its_collector_removes_nothing_owned(
    migrated: Migrated, containerd_factory: ContainerdFactory
) -> None:
    with containerd_factory(root=migrated.root) as daemon:
        check_leases(daemon, migrated.records, migrated.snapshotter, migrated.semantics)
        check_garbage_collection(daemon, migrated.records, migrated.snapshotter)
    with Db.open(migrated.root / "io.containerd.metadata.v1.bolt" / "meta.db") as db, db.view() as tx:
        assert tx.path_bucket(b"v1", b"buildkit", b"leases") is not None


async def test_containerd_takes_a_state_that_was_rolled_back(
    semantics: Semantics, tmp_path: Path, containerd_factory: ContainerdFactory
) -> None:
    """Every label is back, so a collection takes nothing, be it a view that nobody needs."""
    worker = marked_cache().write(tmp_path / "runc-overlayfs")
    root = containerd_root_from_worker(worker, tmp_path / "containerd", "overlayfs")
    meta = root / "io.containerd.metadata.v1.bolt" / "meta.db"
    before = lasting(dump_lines(meta))
    options = Options(containerd_root=root, semantics=semantics.name)
    await asyncmig.migrate(worker, options)
    assert lasting(dump_lines(meta)) != before
    await asyncmig.rollback(worker, options)
    assert lasting(dump_lines(meta)) == before
    with containerd_factory(root=root) as daemon:
        assert set(daemon.leases()) == set(marked_cache().leases)
        daemon.collect_garbage()
        assert daemon.snapshots("overlayfs") == set(marked_cache().snapshots)
        assert daemon.blobs() == set(marked_cache().blobs)


async def test_without_leases_the_same_collection_takes_everything(
    tmp_path: Path, containerd_factory: ContainerdFactory
) -> None:
    """The control: what keeps the data in the test above is the migration's leases."""
    worker = Path(synthesize(tmp_path / "runc-native", records=40, seed=3).directory)
    root = containerd_root_from_worker(worker, tmp_path / "containerd", "native")
    await asyncmig.migrate(worker, Options(containerd_root=root))
    with Db.open(root / "io.containerd.metadata.v1.bolt" / "meta.db", writable=True) as db, db.update() as tx:
        namespace = tx.path_bucket(b"v1", b"buildkit")
        assert namespace is not None
        namespace.delete_bucket(b"leases")
    with containerd_factory(root=root) as daemon:
        daemon.collect_garbage()
        assert daemon.snapshots("native") == set()


async def test_the_real_cache_in_a_real_containerd(
    real_cache: Path, tmp_path: Path, semantics: Semantics, containerd_factory: ContainerdFactory
) -> None:
    worker = copy_tree(real_cache / "runc-overlayfs", tmp_path / "runc-overlayfs")
    root = containerd_root_from_worker(worker, tmp_path / "containerd", "overlayfs")
    await asyncmig.migrate(worker, Options(containerd_root=root, semantics=semantics.name))
    records = read_v2(worker / "metadata_v2.db")
    assert [record for record in records if record.is_holder]
    with containerd_factory(root=root) as daemon:
        check_leases(daemon, records, "overlayfs", semantics)
        check_garbage_collection(daemon, records, "overlayfs")
