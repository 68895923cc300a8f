"""A real containerd on a state directory that was migrated offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options
from asyncmig.bolt import Db
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.record import Record
from asyncmig.synth import synthesize
from tests.conftest import copy_tree
from tests.interop.conftest import ContainerdFactory
from tests.interop.containerd import Containerd
from tests.interop.livecache import containerd_root_from_worker

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


@pytest.fixture(params=["overlayfs", "native"])
async def migrated(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> Migrated:
    snapshotter = str(request.param)
    worker = Path(synthesize(tmp_path / f"runc-{snapshotter}", records=120, seed=3).directory)
    root = containerd_root_from_worker(worker, tmp_path / "containerd", snapshotter)
    await asyncmig.migrate(worker, Options(containerd_root=root))
    return Migrated(read_v2(worker / "metadata_v2.db"), root, snapshotter)


def check_leases(daemon: Containerd, records: list[Record], snapshotter: str) -> None:
    """Each record's lease is listed by containerd, with the label and the resources it must have."""
    leases = daemon.leases()
    for record in records:
        assert set(leases[record.id]) == {"containerd.io/gc.flat"}
        expected = {(f"snapshots/{snapshotter}", record.id)}
        if record.blob:
            expected.add(("content", record.blob))
        assert daemon.lease_resources(record.id) == expected


def check_garbage_collection(daemon: Containerd, records: list[Record], snapshotter: str) -> None:
    """A forced collection keeps what records own, and takes the views that upstream's labels no longer keep."""
    snapshots, blobs = daemon.snapshots(snapshotter), daemon.blobs()
    owned_snapshots = {r.id for r in records if not r.is_holder}
    owned_blobs = {r.blob for r in records if r.blob}
    assert owned_snapshots <= snapshots
    assert owned_blobs <= blobs

    daemon.collect_garbage()

    assert daemon.snapshots(snapshotter) == owned_snapshots
    assert owned_blobs <= daemon.blobs()
    for record in records:
        if not record.is_holder:
            daemon.ctr("snapshots", "--snapshotter", snapshotter, "info", record.id)


async def test_containerd_takes_an_edited_state_and_its_collector_removes_nothing_owned(
    migrated: Migrated, containerd_factory: ContainerdFactory
) -> None:
    with containerd_factory(root=migrated.root) as daemon:
        check_leases(daemon, migrated.records, migrated.snapshotter)
        check_garbage_collection(daemon, migrated.records, migrated.snapshotter)
    with Db.open(migrated.root / "io.containerd.metadata.v1.bolt" / "meta.db") as db, db.view() as tx:
        assert tx.path_bucket(b"v1", b"buildkit", b"leases") is not None


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
    real_cache: Path, tmp_path: Path, containerd_factory: ContainerdFactory
) -> None:
    worker = copy_tree(real_cache / "runc-overlayfs", tmp_path / "runc-overlayfs")
    root = containerd_root_from_worker(worker, tmp_path / "containerd", "overlayfs")
    await asyncmig.migrate(worker, Options(containerd_root=root))
    records = read_v2(worker / "metadata_v2.db")
    with containerd_factory(root=root) as daemon:
        check_leases(daemon, records, "overlayfs")
        check_garbage_collection(daemon, records, "overlayfs")
