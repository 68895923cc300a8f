"""Stage release: the labels by which v1 protected things go, now that leases do.

v1 labelled every snapshot and blob ``containerd.io/gc.root``, and its views stayed behind when the daemon died.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.report import Counts
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
    """``views`` are asked for before the tail: that fails where one could not be released, and while the daemon is stopped none
    appears.
    """
    released = [record for record in stepping(checkpoint, cache.records) if cache.semantics.is_released(record)]
    snapshots = dict.fromkeys(record.snapshot for record in stepping(checkpoint, released))
    snapshots.update(dict.fromkeys(views))
    blobs = dict.fromkeys(record.blob for record in stepping(checkpoint, released) if record.blob)
    cache.report.counts.views = len(views)
    return ReleasePlan(views, list(snapshots), list(blobs))


async def release(cache: Cache, stores: Stores, plan: ReleasePlan) -> None:
    """Remove the labels.

    A snapshot that does not exist is passed over; a missing blob raises :class:`StoreError`.
    """
    counts = cache.report.counts
    found = await stores.snapshots.remove_label_many(plan.snapshots, ROOT)
    await in_thread(_count_snapshots, counts, plan, found)
    found = await stores.content.remove_label_many(plan.blobs, ROOT)
    await in_thread(_count_blobs, counts, plan.blobs, found)


def _count_snapshots(_: Checkpoint, counts: Counts, plan: ReleasePlan, found: list[bool]) -> None:
    views = set(plan.views)
    released = [name in views for name, exists in zip(plan.snapshots, found, strict=True) if exists]
    counts.views_released = sum(released)
    counts.snapshots_released = len(released) - counts.views_released


def _count_blobs(_: Checkpoint, counts: Counts, blobs: list[str], found: list[bool]) -> None:
    counts.blobs_released = sum(found)
    if not all(found):
        raise StoreError(f"blob {printable(blobs[found.index(False)])} has vanished from the content store")
