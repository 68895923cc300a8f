"""Stage release: the labels by which v1 protected things go, now that leases do.

v1 labelled every snapshot and blob ``containerd.io/gc.root``, and its views stayed behind when the daemon died.
"""

from __future__ import annotations

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.stores.ports import Stores

ROOT = "containerd.io/gc.root"
"""Label of what containerd's garbage collector keeps (containerd ``metadata/gc.go``)."""


async def release(cache: Cache, stores: Stores) -> None:
    """Remove the labels from the records' snapshots, from their blobs and from all views.

    A snapshot that does not exist is passed over; a missing blob raises :class:`StoreError`.
    """
    counts = cache.report.counts
    snapshots = await in_thread(_snapshots, cache)
    counts.snapshots_released = sum(await stores.snapshots.remove_label_many(snapshots, ROOT))
    blobs = await in_thread(_blobs, cache)
    for blob, found in zip(blobs, await stores.content.remove_label_many(blobs, ROOT), strict=True):
        if not found:
            raise StoreError(f"blob {printable(blob)} has vanished from the content store")
    counts.blobs_released = len(blobs)
    views = await stores.snapshots.views()
    counts.views_released = sum(await stores.snapshots.remove_label_many(views, ROOT))


def _snapshots(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    return [r.snapshot for r in stepping(checkpoint, cache.records) if cache.semantics.is_released(r)]


def _blobs(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    released = (r.blob for r in stepping(checkpoint, cache.records) if r.blob and cache.semantics.is_released(r))
    return list(dict.fromkeys(released))
