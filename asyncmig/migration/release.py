"""Stage release: the labels by which v1 protected things go, now that leases do.

v1 labelled every snapshot and blob ``containerd.io/gc.root``, and its views stayed behind when the daemon died.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.report import Counts, Notice
from asyncmig.stores.ports import Stores

ROOT = "containerd.io/gc.root"
"""Label of what containerd's garbage collector keeps (containerd ``metadata/gc.go``)."""


@dataclass(slots=True)
class ReleasePlan:
    """What is to lose its label: the records' snapshots and all views, each once, and blobs."""

    views: list[str]
    snapshots: list[str]
    blobs: list[str]


def plan_release(checkpoint: Checkpoint, cache: Cache, views: list[str]) -> ReleasePlan:
    """What is to be released, ``views`` among it.

    They are asked for before the tail: that fails where one could not be released, and none appears while the daemon is
    stopped.
    """
    released = [record for record in stepping(checkpoint, cache.records) if cache.semantics.is_released(record)]
    snapshots = dict.fromkeys(record.snapshot for record in stepping(checkpoint, released))
    snapshots.update(dict.fromkeys(views))
    blobs = dict.fromkeys(record.blob for record in stepping(checkpoint, released) if record.blob)
    cache.report.counts.views = len(views)
    return ReleasePlan(views, list(snapshots), list(blobs))


async def release(cache: Cache, stores: Stores, plan: ReleasePlan) -> None:
    """Remove the labels.

    All were there when they were looked up.  What has vanished since is not the migration's doing, but somebody must know: a
    snapshot is reported, a blob raises :class:`StoreError`.
    """
    counts = cache.report.counts
    found = await stores.snapshots.remove_label_many(plan.snapshots, ROOT)
    await in_thread(_count_snapshots, cache, plan, found)
    found = await stores.content.remove_label_many(plan.blobs, ROOT)
    await in_thread(_count_blobs, counts, plan.blobs, found)


def _count_snapshots(checkpoint: Checkpoint, cache: Cache, plan: ReleasePlan, found: list[bool]) -> None:
    counts, views = cache.report.counts, set(plan.views)
    for name, exists in zip(plan.snapshots, found, strict=True):
        checkpoint()
        if exists:
            counts.views_released += name in views
            counts.snapshots_released += name not in views
        elif name in cache.by_id:
            text = "its snapshot has vanished while the migration ran; somebody else has removed it"
            cache.report.notices.append(Notice("snapshot-vanished", name, text))


def _count_blobs(_: Checkpoint, counts: Counts, blobs: list[str], found: list[bool]) -> None:
    counts.blobs_released = sum(found)
    if not all(found):
        blob = printable(blobs[found.index(False)])
        raise StoreError(
            f"blob {blob} has vanished from the content store while the migration ran; somebody else has removed it, "
            "and its record will go without it"
        )
