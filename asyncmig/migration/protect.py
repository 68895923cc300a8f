"""Stages leases, protect and verify: a lease for each record, holding its snapshot and its blob."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import overload

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit.record import Record
from asyncmig.concurrency import drop, in_thread, stepping
from asyncmig.errors import StoreError, counted, printable
from asyncmig.migration.cache import Cache
from asyncmig.migration.journal import Journal
from asyncmig.migration.semantics import Semantics
from asyncmig.stores.ports import Lease, LeaseStore, Protected, Resource, Stores

FLAT = "containerd.io/gc.flat"
"""Label of a lease whose resources don't protect what their labels refer to (containerd ``metadata/gc.go``)."""


_READ_BACK = 1024
"""Leases that are read back from files at a time: few enough to be gone before Python's collector takes them for long-lived."""


class PlannedLeases(Sequence[Lease]):
    """Leases that are put together when they are asked for.

    As objects of their own those of a large cache would take more memory than its records, and Python's garbage collector
    would go through all of them again and again, while the event loop waits.
    """

    def __init__(self, labels: Mapping[str, str], snapshotter: str) -> None:
        self._labels = labels
        self._snapshotter = snapshotter
        self.ids: list[str] = []
        self._snapshots: list[str] = []
        self._blobs: list[str] = []

    def add(self, lease_id: str, snapshot: str, blob: str) -> None:
        """Add a lease on a snapshot and a blob, "" for none."""
        self.ids.append(lease_id)
        self._snapshots.append(snapshot)
        self._blobs.append(blob)

    def only(self, indices: Sequence[int]) -> PlannedLeases:
        """Those with these indices."""
        if len(indices) == len(self):
            return self
        chosen = PlannedLeases(self._labels, self._snapshotter)
        for i in indices:
            chosen.add(self.ids[i], self._snapshots[i], self._blobs[i])
        return chosen

    def forget(self) -> None:
        """Drop all."""
        drop(no_checkpoint, self.ids, self._snapshots, self._blobs)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Lease: ...
    @overload
    def __getitem__(self, index: slice) -> list[Lease]: ...
    def __getitem__(self, index: int | slice) -> Lease | list[Lease]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        resources = _resources(self._snapshotter, self._snapshots[index], self._blobs[index])
        return Lease(self.ids[index], self._labels, resources)


@dataclass(slots=True)
class LeasePlan:
    """What is to be done about leases.

    ``leases`` are to be made, or completed; those of ``left_alone`` exist and stay as they are.  ``held`` has what those of
    ``leases`` hold that are there, and ``before`` what those held before the first run that are not the work of one.
    """

    leases: PlannedLeases
    left_alone: list[str] = field(default_factory=list)
    held: dict[str, tuple[Resource, ...]] = field(default_factory=dict)
    before: dict[str, tuple[Resource, ...]] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop everything."""
        self.leases.forget()
        drop(no_checkpoint, self.left_alone, self.held, self.before)


async def plan_leases(cache: Cache, stores: Stores, journal: Journal | None) -> LeasePlan:
    """The leases of all records.

    ``journal``: that of an interrupted run, ``None`` if there was none; a lease that is there and that it did not find is its
    work.  A lease that is left alone and does not protect what its record has is reported: the next garbage collection may take
    the data.
    """
    leases = await in_thread(_leases, cache, stores.snapshots.snapshotter)
    unneeded = [] if cache.semantics.leases_holders else await in_thread(_without_lease, cache, leases)
    existing = await stores.leases.list_many([*leases.ids, *unneeded])
    await in_thread(_note_surplus, cache, existing[len(leases) :])
    plan = await in_thread(_plan, cache, leases, existing[: len(leases)], journal)
    await in_thread(drop, existing)
    return plan


def _without_lease(checkpoint: Checkpoint, cache: Cache, leases: PlannedLeases) -> list[str]:
    """The records that need no lease, and those that are dropped."""
    planned = set(stepping(checkpoint, leases.ids))  # not in one step of C: the event loop would wait for it
    return [record.id for record in stepping(checkpoint, cache.records) if record.id not in planned] + sorted(cache.dropped)


def _note_surplus(checkpoint: Checkpoint, cache: Cache, found: list[Lease | None]) -> None:
    """Upstream's migration makes such leases; one that was killed has left them behind."""
    for lease in stepping(checkpoint, found):
        if lease is not None:
            text = (
                "a lease of its name already exists but is not needed, and nobody deletes it; delete it with "
                "'ctr leases delete'"
            )
            cache.reporter.note("lease-surplus", text, lease.id)


def _leases(checkpoint: Checkpoint, cache: Cache, snapshotter: str) -> PlannedLeases:
    leases = PlannedLeases({FLAT: rfc3339_nano(time.time_ns())}, snapshotter)
    for record in stepping(checkpoint, cache.records):
        snapshot = _leased_snapshot(cache.semantics, record)
        if snapshot or record.blob:
            leases.add(record.id, snapshot, record.blob)
    return leases


def _leased_snapshot(semantics: Semantics, record: Record) -> str:
    return record.snapshot if semantics.leases_holders or not record.is_holder else ""


def resources_of(semantics: Semantics, record: Record, snapshotter: str) -> tuple[Resource, ...]:
    """What the lease of a record is to hold; none if it needs no lease."""
    return _resources(snapshotter, _leased_snapshot(semantics, record), record.blob)


def _resources(snapshotter: str, snapshot: str, blob: str) -> tuple[Resource, ...]:
    held = (Resource(_snapshots_of(snapshotter), snapshot),) if snapshot else ()
    return (*held, Resource("content", blob)) if blob else held


@lru_cache(maxsize=8)
def _snapshots_of(snapshotter: str) -> str:
    """The type of resources that are snapshots; one string for all leases."""
    return f"snapshots/{snapshotter}"


def _plan(
    checkpoint: Checkpoint, cache: Cache, leases: PlannedLeases, existing: list[Lease | None], journal: Journal | None
) -> LeasePlan:
    plan, chosen = LeasePlan(leases), []
    for i, found in enumerate(stepping(checkpoint, existing)):
        lease_id = leases.ids[i]
        if found is None or (journal is not None and journal.is_ours(lease_id)):
            chosen.append(i)
            if found is not None:
                plan.held[lease_id] = found.resources
        elif cache.semantics.completes_existing_leases:
            chosen.append(i)
            plan.held[lease_id] = found.resources
            plan.before[lease_id] = found.resources if journal is None else journal.held_before(lease_id, found.resources)
        else:
            plan.left_alone.append(lease_id)
            _note_lacking(cache, leases[i], found)
    plan.leases = leases.only(chosen)
    return plan


def _note_lacking(cache: Cache, lease: Lease, found: Lease) -> None:
    lacking = set(lease.resources).difference(found.resources)
    if lacking:
        names = ", ".join(sorted(printable(f"{r.type} {r.id}") for r in lacking))
        text = f"its lease already exists but lacks {names}; --semantics upstream leaves it so, and containerd may collect that"
        cache.reporter.note("lease-incomplete", text, lease.id)


async def protect(cache: Cache, plan: LeasePlan, store: LeaseStore) -> PlannedLeases:
    """Make the leases; returns those that are to be read back."""
    outcomes = await store.protect_many(plan.leases)
    return await in_thread(_protected, cache, plan, outcomes)


def _protected(checkpoint: Checkpoint, cache: Cache, plan: LeasePlan, outcomes: list[Protected]) -> PlannedLeases:
    counts, doubtful = cache.report.counts, []
    for i, outcome in enumerate(stepping(checkpoint, outcomes)):
        # A lease that was found is not new, though a store whose answer got lost may take its own first attempt for its maker.
        counts.leases_created += outcome.is_new and plan.leases.ids[i] not in plan.held
        if not outcome.confirmed:
            doubtful.append(i)
    counts.leases_existing = len(plan.left_alone) + len(outcomes) - counts.leases_created
    return plan.leases.only(doubtful)


async def verify(leases: Sequence[Lease], store: LeaseStore) -> None:
    """Read the leases back.  Raises :class:`StoreError` if one is missing or lacks a resource."""
    # A running containerd lists all that it has, however few are asked for.
    size = _READ_BACK if store.atomic else len(leases)
    for start in range(0, len(leases), size or 1):
        part = leases if len(leases) <= size else leases[start : start + size]
        await in_thread(_compare, part, await store.list_many(await in_thread(_names, part)))


def _names(checkpoint: Checkpoint, leases: Sequence[Lease]) -> list[str]:
    return [lease.id for lease in stepping(checkpoint, leases)]


def _compare(checkpoint: Checkpoint, leases: Sequence[Lease], stored: list[Lease | None]) -> None:
    for lease, found in stepping(checkpoint, zip(leases, stored, strict=True)):
        if found is None:
            raise StoreError(
                f"lease {printable(lease.id)} was just created but does not exist; has somebody else deleted it? "
                "Run the migration again"
            )
        lacking = set(lease.resources).difference(found.resources)
        if lacking:
            raise StoreError(
                f"lease {printable(lease.id)} lacks {counted(len(lacking), 'resource')} just added to it; run the "
                "migration again"
            )


def rfc3339_nano(unix_ns: int) -> str:
    """A time as Go's ``time.RFC3339Nano`` writes it in UTC: zeros at the end of the fraction are left out."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"
