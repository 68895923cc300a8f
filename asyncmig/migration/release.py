"""Stage release: the labels by which v1 protected things go, now that leases do.

v1 labelled every snapshot and blob ``containerd.io/gc.root``, and its views stayed behind when the daemon died.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.concurrency import drop, in_thread, stepping
from asyncmig.errors import listed, printable
from asyncmig.migration.cache import Cache
from asyncmig.migration.report import Counts, Leftovers
from asyncmig.migration.semantics import Semantics
from asyncmig.stores.ports import GC_ROOT, ContentInfo, Kind, Lease, Resource, SnapshotInfo, Stores

EXPIRE = "containerd.io/gc.expire"
"""Label with the time from which on containerd takes a lease for gone (containerd ``metadata/gc.go``)."""


@dataclass(slots=True)
class ReleasePlan:
    """What is to lose its label: snapshots, ``views`` among them, and blobs, each once.

    ``roots`` has the values of the labels that are there, of snapshots and blobs.
    """

    views: frozenset[str] = frozenset()
    snapshots: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    snapshot_roots: dict[str, str] = field(default_factory=dict)
    blob_roots: dict[str, str] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop everything."""
        drop(no_checkpoint, self.snapshots, self.blobs, self.snapshot_roots, self.blob_roots)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Everything in the stores that carries v1's label, with its value; ``views`` are those of the snapshots."""

    snapshots: Mapping[str, str]
    blobs: Mapping[str, str]
    views: frozenset[str]


async def plan_release(cache: Cache, stores: Stores) -> ReleasePlan:
    """What is to be released.

    It is asked for before the tail: that fails where something could not be released, and nothing appears while the daemon is
    stopped.
    """
    snapshots = stores.snapshots
    if snapshots.shared and not any(not record.is_holder for record in cache.records):
        return ReleasePlan()  # no snapshot has shown that this is the right place, so what is there may be anybody's
    found = await snapshots.list_all(rooted=True), await stores.content.list_all(rooted=True)
    labelled = await in_thread(_labelled, *found)
    await in_thread(drop, *found)
    if cache.semantics.reports_leftovers:
        leases = await stores.leases.list_all() if labelled.views else []
        plan = await in_thread(_plan_labelled, cache, labelled, leases, snapshots.snapshotter)
        # The records' own were asked for before; of these, too, one that could not be released must be found here.
        await snapshots.stat_many(await in_thread(_without_record, cache, plan.snapshots))
        await stores.content.info_many(await in_thread(_without_record, cache, plan.blobs))
        return plan
    return await in_thread(_plan_all, cache, labelled, await snapshots.views())


def _labelled(checkpoint: Checkpoint, snapshots: Sequence[SnapshotInfo], blobs: Sequence[ContentInfo]) -> _Labelled:
    snapshot_roots, blob_roots, views = {}, {}, set()
    for info in stepping(checkpoint, snapshots):
        snapshot_roots[info.name] = info.root or ""
        if info.kind is Kind.VIEW:
            views.add(info.name)
    for blob in stepping(checkpoint, blobs):
        blob_roots[blob.digest] = blob.root or ""
    return _Labelled(snapshot_roots, blob_roots, frozenset(views))


def _without_record(checkpoint: Checkpoint, cache: Cache, names: list[str]) -> list[str]:
    found = []
    for name in stepping(checkpoint, names):
        if name not in cache.by_id:
            found.append(name)
    return found


# -- as upstream does it: everything that may have a label, and every view


def _plan_all(checkpoint: Checkpoint, cache: Cache, labelled: _Labelled, infos: Sequence[SnapshotInfo]) -> ReleasePlan:
    views = [view.name for view in infos]
    released = [record for record in stepping(checkpoint, cache.records) if not record.is_holder]
    snapshots = dict.fromkeys(record.snapshot for record in stepping(checkpoint, released))
    snapshots.update(dict.fromkeys(views))
    blobs = dict.fromkeys(record.blob for record in stepping(checkpoint, released) if record.blob)
    cache.report.counts.views = len(views)
    return _with_roots(ReleasePlan(frozenset(views), list(snapshots), list(blobs)), labelled)


def _with_roots(plan: ReleasePlan, labelled: _Labelled) -> ReleasePlan:
    plan.snapshot_roots = {name: labelled.snapshots[name] for name in plan.snapshots if name in labelled.snapshots}
    plan.blob_roots = {name: labelled.blobs[name] for name in plan.blobs if name in labelled.blobs}
    return plan


# -- only what has a label and is protected otherwise, or needed by no record that stays


def _plan_labelled(
    checkpoint: Checkpoint, cache: Cache, labelled: _Labelled, leases: Sequence[Lease], snapshotter: str
) -> ReleasePlan:
    records = cache.by_id
    # While the content store believes to have a blob it refuses its data, so what has none must go before it can be made anew.
    released_blobs = cache.dead_blobs.union(cache.freed_blobs, (record.blob for record in stepping(checkpoint, cache.records)))
    leased = _held(leases, records)
    free_views = {view for view in labelled.views if Resource(f"snapshots/{snapshotter}", view) not in leased}
    leftovers = Leftovers()
    plan = ReleasePlan(frozenset(free_views.difference(records)))
    for name in stepping(checkpoint, labelled.snapshots):
        is_owned = (name in records and not records[name].is_holder) or name in cache.freed_snapshots
        _sort(name, plan.snapshots, leftovers.snapshots, is_released=is_owned or name in plan.views)
    for name in stepping(checkpoint, labelled.blobs):
        _sort(name, plan.blobs, leftovers.blobs, is_released=name in released_blobs)
    cache.report.counts.views = len(plan.views)
    _deal_with_leftovers(cache, plan, leftovers)
    return _with_roots(plan, labelled)


def _sort(name: str, released: list[str], left: list[str], *, is_released: bool) -> None:
    (released if is_released else left).append(name)


def _held(leases: Sequence[Lease], records: Mapping[str, object]) -> set[Resource]:
    """What is held by leases that are neither the records' own nor over."""
    now = datetime.now(UTC)
    return {
        resource for lease in leases if lease.id not in records and not is_expired(lease, now) for resource in lease.resources
    }


def is_expired(lease: Lease, now: datetime) -> bool:
    """Whether containerd no longer heeds the lease; a time that it can't read keeps it."""
    try:
        return datetime.fromisoformat(lease.labels[EXPIRE]) <= now
    except (KeyError, ValueError, TypeError):
        return False


def _deal_with_leftovers(cache: Cache, plan: ReleasePlan, leftovers: Leftovers) -> None:
    cache.report.leftovers = leftovers
    count = len(leftovers.snapshots) + len(leftovers.blobs)
    if not count:
        return
    what = listed((len(leftovers.snapshots), "snapshot"), (len(leftovers.blobs), "blob"))
    if cache.policy.strip_leftovers:
        plan.snapshots += leftovers.snapshots
        plan.blobs += leftovers.blobs
        cache.reporter.note(
            "leftovers-released",
            f"v1's label {GC_ROOT} was on {what} without a record; it is removed, so that containerd can collect them",
        )
    else:
        cache.reporter.note(
            "leftovers",
            f"v1's label {GC_ROOT} is still on {what} without a record, so they are never collected; "
            "--strip-leftovers removes it",
        )


# -- the stage


async def release(counts: Counts, stores: Stores, plan: ReleasePlan, semantics: Semantics) -> Vanished:
    """Remove the labels; returns what is not there any more."""
    tidy = semantics.removes_empty_labels
    snapshots = await stores.snapshots.remove_label_many(plan.snapshots, GC_ROOT, tidy=tidy)
    blobs = await stores.content.remove_label_many(plan.blobs, GC_ROOT, tidy=tidy)
    return await in_thread(_count, counts, plan, snapshots, blobs)


@dataclass(frozen=True, slots=True)
class Vanished:
    """What was there when it was looked up and is gone: not the migration's doing, but somebody must know."""

    snapshots: list[str]
    blobs: list[str]

    def report(self, cache: Cache, records: Collection[str]) -> None:
        """Note what is gone; of the snapshots those that belong to ``records``."""
        for name in self.snapshots:
            if name in records:
                text = "somebody else has removed its snapshot while the migration ran"
                cache.reporter.note("snapshot-vanished", text, name)
        for blob in self.blobs:
            text = f"somebody else has removed blob {printable(blob)} while the migration ran"
            cache.reporter.note("blob-vanished", text)


def _count(checkpoint: Checkpoint, counts: Counts, plan: ReleasePlan, snapshots: list[bool], blobs: list[bool]) -> Vanished:
    vanished = Vanished([], [])
    for name, exists in stepping(checkpoint, zip(plan.snapshots, snapshots, strict=True)):
        if exists:
            counts.views_released += name in plan.views
            counts.snapshots_released += name not in plan.views
        else:
            vanished.snapshots.append(name)
    for name, exists in stepping(checkpoint, zip(plan.blobs, blobs, strict=True)):
        if exists:
            counts.blobs_released += 1
        else:
            vanished.blobs.append(name)
    return vanished
