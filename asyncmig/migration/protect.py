"""Stages protect and verify: a lease for each record, holding its snapshot and its blob."""

from __future__ import annotations

import time
from dataclasses import dataclass

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.report import Notice
from asyncmig.stores.ports import Lease, LeaseStore, Protected, Resource, Stores

FLAT = "containerd.io/gc.flat"
"""Label of a lease whose resources don't protect what their labels refer to (containerd ``metadata/gc.go``)."""


@dataclass(slots=True)
class LeasePlan:
    """What is to be done about leases.

    ``leases`` are to be made, or completed; those of ``left_alone`` exist and stay as they are.
    """

    leases: list[Lease]
    left_alone: list[str]


async def plan_leases(cache: Cache, stores: Stores, found_before: frozenset[str] | None) -> LeasePlan:
    """The leases of all records.

    ``found_before``: the leases that an interrupted run found, ``None`` if there was none; what exists besides is its work.
    A lease that is left alone and does not protect what its record has is reported: the next garbage collection may take the
    data.
    """
    leases = await in_thread(_leases, cache, stores.snapshots.snapshotter)
    if cache.semantics.completes_existing_leases:
        return LeasePlan(leases, [])
    existing = await stores.leases.list_many(await in_thread(_names, leases))
    return await in_thread(_leave_alone, cache, leases, existing, found_before)


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


def _leave_alone(
    checkpoint: Checkpoint,
    cache: Cache,
    leases: list[Lease],
    existing: list[Lease | None],
    found_before: frozenset[str] | None,
) -> LeasePlan:
    plan = LeasePlan([], [])
    for lease, found in zip(leases, existing, strict=True):
        checkpoint()
        if found is None or (found_before is not None and lease.id not in found_before):
            plan.leases.append(lease)
            continue
        plan.left_alone.append(lease.id)
        lacking = set(lease.resources).difference(found.resources)
        if lacking:
            names = ", ".join(sorted(printable(f"{r.type} {r.id}") for r in lacking))
            text = f"its lease exists already but lacks {names}; with these semantics it stays so, and that can be collected"
            cache.report.notices.append(Notice("lease-incomplete", lease.id, text))
    return plan


async def protect(cache: Cache, plan: LeasePlan, store: LeaseStore) -> list[Lease]:
    """Make the leases; returns those that are to be read back."""
    outcomes = await store.protect_many(plan.leases)
    return await in_thread(_protected, cache, plan, outcomes)


def _protected(checkpoint: Checkpoint, cache: Cache, plan: LeasePlan, outcomes: list[Protected]) -> list[Lease]:
    counts, doubtful = cache.report.counts, []
    for lease, outcome in zip(plan.leases, outcomes, strict=True):
        checkpoint()
        counts.leases_created += outcome.is_new
        if not outcome.confirmed:
            doubtful.append(lease)
    counts.leases_existing = len(plan.left_alone) + len(outcomes) - counts.leases_created
    return doubtful


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
