"""Stages protect and verify: a lease for each record, holding its snapshot and its blob."""

from __future__ import annotations

import time

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.report import Notice
from asyncmig.stores.ports import Lease, LeaseStore, Resource, Stores

FLAT = "containerd.io/gc.flat"
"""Label of a lease whose resources don't protect what their labels refer to (containerd ``metadata/gc.go``)."""


async def plan_leases(cache: Cache, stores: Stores) -> list[Lease]:
    """The leases of all records.

    A lease that is there already but does not protect what its record has, and will not be completed, is reported: the next
    garbage collection may take the data.
    """
    leases = await in_thread(_leases, cache, stores.snapshots.snapshotter)
    existing = await stores.leases.list_many(await in_thread(_names, leases))
    if not cache.semantics.completes_existing_leases:
        await in_thread(_note_incomplete, cache, leases, existing)
    return leases


def _leases(checkpoint: Checkpoint, cache: Cache, snapshotter: str) -> list[Lease]:
    labels = {FLAT: rfc3339_nano(time.time_ns())}
    leases = []
    for record in stepping(checkpoint, cache.records):
        if cache.semantics.needs_lease(record):
            resources = [Resource(f"snapshots/{snapshotter}", record.snapshot)]
            if record.blob:
                resources.append(Resource("content", record.blob))
            leases.append(Lease(record.id, labels, tuple(resources)))
    return leases


def _names(_: Checkpoint, leases: list[Lease]) -> list[str]:
    return [lease.id for lease in leases]


def _note_incomplete(checkpoint: Checkpoint, cache: Cache, leases: list[Lease], existing: list[Lease | None]) -> None:
    for lease, found in zip(leases, existing, strict=True):
        checkpoint()
        lacking = set(lease.resources).difference(found.resources) if found else ()
        if lacking:
            names = ", ".join(sorted(printable(f"{r.type} {r.id}") for r in lacking))
            text = f"its lease exists already but lacks {names}; with these semantics it stays so, and that can be collected"
            cache.report.notices.append(Notice("lease-incomplete", lease.id, text))


async def protect(cache: Cache, leases: list[Lease], store: LeaseStore) -> list[Lease]:
    """Make the leases; returns those whose resources were added."""
    complete = cache.semantics.completes_existing_leases
    created = await store.protect_many(leases, complete_existing=complete)
    return await in_thread(_created, cache, leases, created)


def _created(checkpoint: Checkpoint, cache: Cache, leases: list[Lease], created: list[bool]) -> list[Lease]:
    counts = cache.report.counts
    counts.leases_created = sum(created)
    counts.leases_existing = len(created) - counts.leases_created
    if cache.semantics.completes_existing_leases:
        return leases
    return [lease for lease, is_new in zip(leases, created, strict=True) if is_new]


async def verify(leases: list[Lease], store: LeaseStore) -> None:
    """Read the leases back.  Raises :class:`StoreError` if one is missing or lacks a resource."""
    names = await in_thread(_names, leases)
    await in_thread(_compare, leases, await store.list_many(names))


def _compare(checkpoint: Checkpoint, leases: list[Lease], stored: list[Lease | None]) -> None:
    for lease, found in zip(leases, stored, strict=True):
        checkpoint()
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
