"""Stage release: the labels by which v1 protected things go, now that leases do.

v1 labelled every snapshot and blob ``containerd.io/gc.root``, and its views stayed behind when the daemon died.
"""

from __future__ import annotations

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.report import Counts
from asyncmig.stores.ports import Stores

ROOT = "containerd.io/gc.root"
"""Label of what containerd's garbage collector keeps (containerd ``metadata/gc.go``)."""


async def release(cache: Cache, stores: Stores, views: list[str]) -> None:
    """Remove the labels from the records' snapshots, from their blobs and from the views.

    ``views`` were asked for before the tail: the question fails where one could not be released, and none appears or goes
    while the daemon is stopped.  A snapshot that does not exist is passed over; a missing blob raises :class:`StoreError`.
    """
    snapshots = await in_thread(_snapshots, cache, views)
    found = await stores.snapshots.remove_label_many(snapshots, ROOT)
    await in_thread(_count_snapshots, cache.report.counts, snapshots, found, set(views))
    blobs = await in_thread(_blobs, cache)
    found = await stores.content.remove_label_many(blobs, ROOT)
    await in_thread(_count_blobs, cache.report.counts, blobs, found)


def _count_snapshots(_: Checkpoint, counts: Counts, snapshots: list[str], found: list[bool], views: set[str]) -> None:
    released = [name in views for name, exists in zip(snapshots, found, strict=True) if exists]
    counts.views_released = sum(released)
    counts.snapshots_released = len(released) - counts.views_released


def _count_blobs(_: Checkpoint, counts: Counts, blobs: list[str], found: list[bool]) -> None:
    counts.blobs_released = sum(found)
    if not all(found):
        raise StoreError(f"blob {printable(blobs[found.index(False)])} has vanished from the content store")


def _snapshots(checkpoint: Checkpoint, cache: Cache, views: list[str]) -> list[str]:
    """The records' snapshots and all views, each once."""
    found = dict.fromkeys(r.snapshot for r in stepping(checkpoint, cache.records) if cache.semantics.is_released(r))
    found.update(dict.fromkeys(views))
    return list(found)


def _blobs(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    released = (r.blob for r in stepping(checkpoint, cache.records) if r.blob and cache.semantics.is_released(r))
    return list(dict.fromkeys(released))
