"""What can be known before a migration begins: whether it has room, what would stop it, how long it takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from rich.filesize import decimal as size_text

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import StoreError, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.opening import OpenStores
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.report import Report
from asyncmig.migration.reporter import Reporter

Result = TypeVar("Result")

_V2_BYTES_PER_RECORD = 1536
"""About what the v2 keys of a record and their index entries take at most, page fill included."""
_JOURNAL_BYTES_PER_RECORD = 384
"""A lease, and the labels of a snapshot and of a blob."""


def check_room(_: Checkpoint, opened: OpenStores, report: Report) -> None:
    """Refuse to begin what a full disk would end half-way; notes in the report what is needed.

    Raises :class:`StoreError`.
    """
    layout, records = opened.layout, report.counts.records
    needed: dict[int, int] = {}
    places: dict[int, str] = {}
    new = _call(os.stat, layout.v1).st_size + (_V2_BYTES_PER_RECORD + _JOURNAL_BYTES_PER_RECORD) * records
    for path, size in ((layout.directory, new), *opened.growth(records)):
        device = _call(os.stat, path).st_dev
        needed[device] = needed.get(device, 0) + size
        places.setdefault(device, path)
    report.bytes_needed = {places[device]: size for device, size in needed.items()}
    for path, size in report.bytes_needed.items():
        status = _call(os.statvfs, path)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise StoreError(
                f"{printable(path)}: the migration needs up to {size_text(size)} of free space on this file system, "
                f"but only {size_text(free)} are free"
            )


def _call(function: Callable[[str], Result], path: str) -> Result:
    try:
        return function(path)
    except OSError as error:
        raise StoreError(f"{printable(path)}: cannot find out how much space is free: {error.strerror}") from error


def look_ahead(checkpoint: Checkpoint, database: MetadataDb, layout: Layout, reporter: Reporter[Report]) -> None:
    """What else would stop the migration, for a dry run.  Raises :class:`DatabaseError` for a v1 database that is damaged."""
    database.check(checkpoint)
    for path in (layout.directory, *layout.edited):
        if os.path.exists(path) and not os.access(path, os.W_OK):
            reporter.note("not-writable", f"{printable(path)} is not writable; the migration will fail")


async def look_at_directories(pipeline: Pipeline, reporter: Reporter[Report]) -> None:
    """Warn, in a dry run, where most records' data is gone from the disk: the migration itself looks at databases only.

    Raises :class:`StoreError` for a directory that can't be looked at.
    """
    names = await in_thread(_own_snapshots, pipeline)
    missing = await pipeline.stores.snapshots.missing_directories(names)
    if missing and len(missing) * 2 > len(names):
        first = printable(next(iter(missing.values())))
        text = (
            f"{len(missing):,} of {len(names):,} snapshots have no directory, {first} for example; "
            "put the directories back, or mount the disk with them, before you migrate. If they are lost, so is the cache"
        )
        reporter.note("directories-missing", text)


def _own_snapshots(checkpoint: Checkpoint, pipeline: Pipeline) -> list[str]:
    return [record.id for record in stepping(checkpoint, pipeline.cache.records) if not record.is_holder]


_TAIL_AGAINST_PREPARING = 2.0
"""How long an offline migration takes from building to its end, against what comes before (benchmarks/offline.py)."""
_CALLS_PER_SECOND = 1000
"""What a running containerd on a disk of its own has been seen to do of changes (benchmarks/live.py)."""


def expected_seconds(_: Checkpoint, pipeline: Pipeline, layout: Layout) -> float:
    """About how long the whole migration takes, from how long preparing it has taken here, or from the calls it takes."""
    prepared = sum(pipeline.cache.report.seconds.values())
    if not layout.address:
        return prepared * (1 + _TAIL_AGAINST_PREPARING)
    calls = sum(1 + len(lease.resources) for lease in pipeline.leases.leases)
    calls += len(pipeline.release.snapshot_roots) + len(pipeline.release.blob_roots)
    return prepared + calls / _CALLS_PER_SECOND
