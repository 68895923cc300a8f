"""What nothing keeps, in a containerd that others use: images, containers and labels keep things, too."""

from __future__ import annotations

from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options
from asyncmig.audit.audit import audit
from asyncmig.audit.findings import Verification
from asyncmig.bolt import Db
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.migration.reporter import Reporter
from asyncmig.stores.memory import MemoryBlob, MemorySnapshot
from asyncmig.stores.ports import Kind
from tests.audit.edits import lease, store
from tests.caches import Snapshot, V1Cache, digest, migrate_with, sample_cache
from tests.interop.livecache import containerd_root_from_worker

pytestmark = pytest.mark.anyio

MANIFEST, CONFIG, LAYER, LOST = map(digest, ("manifest", "config", "layer", "lost"))
REF = "containerd.io/gc.ref."


def cache_of_two_users() -> V1Cache:
    """The sample, and somebody else's image with its layers unpacked, a container on them, and a lost one of each."""
    cache = sample_cache()
    cache.snapshots["image layer"] = Snapshot(labels={})
    cache.snapshots["image"] = Snapshot(parent="image layer", labels={})
    cache.snapshots["container"] = Snapshot(Kind.ACTIVE, "image", labels={})
    cache.snapshots["container's view"] = Snapshot(Kind.VIEW, "image", labels={})
    cache.snapshots["lost"] = Snapshot(labels={})
    cache.blobs[MANIFEST] = {f"{REF}content.0": CONFIG, f"{REF}content.1": LAYER}
    cache.blobs[CONFIG] = {f"{REF}snapshot.overlayfs": "image"}
    cache.blobs[LAYER] = {}
    cache.blobs[LOST] = {}
    return cache


def use(worker: Path) -> None:
    """What containerd notes of an image and of containers."""
    store("images", "example", "target", digest=MANIFEST)(worker)
    store("containers", "one", snapshotter="overlayfs", snapshotKey="container")(worker)
    store("containers", "another", snapshotter="overlayfs", snapshotKey="container's view")(worker)


async def notes_of(worker: Path, options: Options) -> set[tuple[str, str]]:
    result = await asyncmig.verify(worker, options)
    assert result.findings == []
    return {(note.code, note.name) for note in result.notes}


async def test_images_and_containers_of_a_stopped_containerd(tmp_path: Path) -> None:
    worker = cache_of_two_users().write(tmp_path / "containerd-overlayfs")
    use(worker)
    options = Options(containerd_root=containerd_root_from_worker(worker, tmp_path / "containerd", "overlayfs"))
    await asyncmig.migrate(worker, options)
    lost = {("view-stale", "view"), ("snapshot-unowned", "lost"), ("blob-unowned", LOST)}
    assert await notes_of(worker, options) == lost


async def test_without_them_the_same_goes(tmp_path: Path) -> None:
    worker = cache_of_two_users().write(tmp_path / "containerd-overlayfs")
    options = Options(containerd_root=containerd_root_from_worker(worker, tmp_path / "containerd", "overlayfs"))
    await asyncmig.migrate(worker, options)
    snapshots = {("snapshot-unowned", name) for name in ("image", "image layer", "container", "lost")}
    views = {("view-stale", name) for name in ("view", "container's view")}
    assert await notes_of(worker, options) == snapshots | views | {("blob-unowned", d) for d in (MANIFEST, CONFIG, LAYER, LOST)}


LABELS = [
    store("images", "example", "labels", **{f"{REF}snapshot.overlayfs/x": "image"}),
    store("containers", "c", "labels", **{f"{REF}snapshot.overlayfs": "image"}),
    store("sandboxes", "s", "labels", **{f"{REF}snapshot.overlayfs": "image"}),
    store("leases", "deep", "content", **{CONFIG: ""}),  # a lease that is not flat, as those of blob variants
    store(
        "snapshots", "overlayfs", "labelled", "labels", **{"containerd.io/gc.root": "T", f"{REF}snapshot.overlayfs": "image"}
    ),
    store("content", "blob", LOST, "labels", **{"containerd.io/gc.root": "T", f"{REF}content.config": CONFIG}),
]


@pytest.mark.parametrize("act", LABELS)
async def test_labels_keep_what_they_refer_to(act: object, tmp_path: Path) -> None:
    cache = cache_of_two_users()
    cache.snapshots["labelled"] = Snapshot(labels={})
    worker = cache.write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker)
    assert callable(act)
    before = await notes_of(worker, Options())
    act(worker)
    after = await notes_of(worker, Options())
    kept = {("snapshot-unowned", "image"), ("snapshot-unowned", "image layer")}
    assert kept <= before
    assert not kept & after


async def test_a_flat_lease_keeps_nothing_by_labels(tmp_path: Path) -> None:
    worker = cache_of_two_users().write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker)
    lease("flat", {"containerd.io/gc.flat": "T", "buildkit/lease.temporary": "T"})(worker)
    store("leases", "flat", "content", **{MANIFEST: ""})(worker)
    notes = await notes_of(worker, Options())
    assert ("blob-unowned", CONFIG) in notes
    assert ("blob-unowned", MANIFEST) not in notes


async def test_labels_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    cache = cache_of_two_users()
    cache.blobs[LAYER] = {f"{REF}content.0": MANIFEST}
    worker = cache.write(tmp_path / "runc-overlayfs")
    use(worker)
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"v1", b"buildkit", b"images", b"odd").put(b"target", b"no bucket")
        tx.create_path(b"v1", b"buildkit", b"containers").put(b"odd", b"no bucket")
    await asyncmig.migrate(worker)
    assert ("blob-unowned", LAYER) not in await notes_of(worker, Options())


@pytest.mark.parametrize("released", [frozenset(), frozenset({"view"})], ids=["not released", "released"])
async def test_nothing_is_claimed_of_what_may_be_somebody_elses(released: frozenset[str], tmp_path: Path) -> None:
    """In a running containerd neither images nor containers are looked at."""
    cache = sample_cache()
    cache.write_metadata(tmp_path / "metadata.db")
    state = cache.in_memory()
    state.shared = True
    await migrate_with(tmp_path, state.stores())
    state.snapshots["container"] = MemorySnapshot(Kind.ACTIVE)
    state.blobs[MANIFEST] = MemoryBlob(7)
    result = Verification(path=str(tmp_path), layout="test")
    database = MetadataDb.open(tmp_path / "metadata_v2.db")
    try:
        await audit(database, state.stores(), Reporter(result), released=released)
    finally:
        database.close()
    notes = {(note.code, note.name) for note in result.notes if note.code != "media-type-unknown"}
    of_view = ("view-stale" if released else "snapshot-foreign", "view")
    assert notes == {of_view, ("snapshot-foreign", "container"), ("blob-foreign", MANIFEST)}
    claims = {note.name for note in result.notes if "garbage collection" in note.text}
    assert claims == released
    assert result.counts.free_bytes == {}
