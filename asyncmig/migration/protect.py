"""Stages leases, protect and verify: a lease for each record, holding its snapshot and its blob."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.record import Record
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache
from asyncmig.migration.journal import Journal
from asyncmig.migration.semantics import Semantics
from asyncmig.stores.ports import Lease, LeaseStore, Protected, Resource, Stores

FLAT = "containerd.io/gc.flat"
"""Label of a lease whose resources don't protect what their labels refer to (containerd ``metadata/gc.go``)."""


_READ_BACK = 8192
"""Leases that are read back at a time: all at once take as much memory as everything before."""


@dataclass(slots=True)
class LeasePlan:
    """What is to be done about leases.

    ``leases`` are to be made, or completed; those of ``left_alone`` exist and stay as they are.  ``held`` has what those of
    ``leases`` hold that are there, and ``before`` what those held before the first run that are not the work of one.
    """

    leases: list[Lease] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    held: dict[str, tuple[Resource, ...]] = field(default_factory=dict)
    before: dict[str, tuple[Resource, ...]] = field(default_factory=dict)


async def plan_leases(cache: Cache, stores: Stores, journal: Journal | None) -> LeasePlan:
    """The leases of all records.

    ``journal``: that of an interrupted run, ``None`` if there was none; a lease that is there and that it did not find is its
    work.  A lease that is left alone and does not protect what its record has is reported: the next garbage collection may take
    the data.
    """
    leases = await in_thread(_leases, cache, stores.snapshots.snapshotter)
    unneeded = [] if cache.semantics.leases_holders else await in_thread(_without_lease, cache, leases)
    names = await in_thread(_names, leases)
    existing = await stores.leases.list_many([*names, *unneeded])
    await in_thread(_note_surplus, cache, existing[len(names) :])
    return await in_thread(_plan, cache, leases, existing[: len(names)], journal)


def _without_lease(checkpoint: Checkpoint, cache: Cache, leases: list[Lease]) -> list[str]:
    """The records that need no lease, and those that are dropped."""
    planned = {lease.id for lease in leases}
    return [record.id for record in stepping(checkpoint, cache.records) if record.id not in planned] + sorted(cache.dropped)


def _note_surplus(checkpoint: Checkpoint, cache: Cache, found: list[Lease | None]) -> None:
    """Upstream's migration makes such leases; one that was killed has left them behind."""
    for lease in stepping(checkpoint, found):
        if lease is not None:
            text = "a lease of its name exists already and is not needed; nobody will delete it (ctr leases delete)"
            cache.note("lease-surplus", lease.id, text)


def _leases(checkpoint: Checkpoint, cache: Cache, snapshotter: str) -> list[Lease]:
    labels = {FLAT: rfc3339_nano(time.time_ns())}
    leases = []
    for record in stepping(checkpoint, cache.records):
        resources = resources_of(cache.semantics, record, snapshotter)
        if resources:
            leases.append(Lease(record.id, labels, resources))
    return leases


def resources_of(semantics: Semantics, record: Record, snapshotter: str) -> tuple[Resource, ...]:
    """What the lease of a record is to hold; none if it needs no lease."""
    resources = []
    if semantics.leases_holders or not record.is_holder:
        resources.append(Resource(_snapshots_of(snapshotter), record.snapshot))
    if record.blob:
        resources.append(Resource("content", record.blob))
    return tuple(resources)


@lru_cache(maxsize=8)
def _snapshots_of(snapshotter: str) -> str:
    """The type of resources that are snapshots; one string for all leases."""
    return f"snapshots/{snapshotter}"


def _names(_: Checkpoint, leases: list[Lease]) -> list[str]:
    return [lease.id for lease in leases]


def _plan(
    checkpoint: Checkpoint, cache: Cache, leases: list[Lease], existing: list[Lease | None], journal: Journal | None
) -> LeasePlan:
    plan = LeasePlan()
    for lease, found in stepping(checkpoint, zip(leases, existing, strict=True)):
        if found is None or (journal is not None and journal.is_ours(lease.id)):
            plan.leases.append(lease)
            if found is not None:
                plan.held[lease.id] = found.resources
        elif cache.semantics.completes_existing_leases:
            plan.leases.append(lease)
            plan.held[lease.id] = found.resources
            plan.before[lease.id] = found.resources if journal is None else journal.held_before(lease.id, found.resources)
        else:
            plan.left_alone.append(lease.id)
            _note_lacking(cache, lease, found)
    return plan


def _note_lacking(cache: Cache, lease: Lease, found: Lease) -> None:
    lacking = set(lease.resources).difference(found.resources)
    if lacking:
        names = ", ".join(sorted(printable(f"{r.type} {r.id}") for r in lacking))
        text = f"its lease exists already but lacks {names}; with these semantics it stays so, and that can be collected"
        cache.note("lease-incomplete", lease.id, text)


async def protect(cache: Cache, plan: LeasePlan, store: LeaseStore) -> list[Lease]:
    """Make the leases; returns those that are to be read back."""
    outcomes = await store.protect_many(plan.leases)
    return await in_thread(_protected, cache, plan, outcomes)


def _protected(checkpoint: Checkpoint, cache: Cache, plan: LeasePlan, outcomes: list[Protected]) -> list[Lease]:
    counts, doubtful = cache.report.counts, []
    for lease, outcome in stepping(checkpoint, zip(plan.leases, outcomes, strict=True)):
        # A lease that was found is not new, though a store whose answer got lost may take its own first attempt for its maker.
        counts.leases_created += outcome.is_new and lease.id not in plan.held
        if not outcome.confirmed:
            doubtful.append(lease)
    counts.leases_existing = len(plan.left_alone) + len(outcomes) - counts.leases_created
    return doubtful


async def verify(leases: list[Lease], store: LeaseStore) -> None:
    """Read the leases back.  Raises :class:`StoreError` if one is missing or lacks a resource."""
    for start in range(0, len(leases), _READ_BACK):
        part = leases[start : start + _READ_BACK]
        await in_thread(_compare, part, await store.list_many(await in_thread(_names, part)))


def _compare(checkpoint: Checkpoint, leases: list[Lease], stored: list[Lease | None]) -> None:
    for lease, found in stepping(checkpoint, zip(leases, stored, strict=True)):
        if found is None:
            raise StoreError(f"lease {printable(lease.id)} is not there although it was just created")
        lacking = set(lease.resources).difference(found.resources)
        if lacking:
            raise StoreError(f"lease {printable(lease.id)} lacks {len(lacking)} of the resources that were just added")


def rfc3339_nano(unix_ns: int) -> str:
    """A time as Go's ``time.RFC3339Nano`` writes it in UTC: zeros at the end of the fraction are left out."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"
