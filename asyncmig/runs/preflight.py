"""What can be known before a migration begins: whether it has room, what would stop it, how long it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from rich.filesize import decimal as size_text

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.errors import OTHER_USER, LayoutError, StoreError, printable, reason
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.oci import OciLayout
from asyncmig.layouts.opening import OpenStores
from asyncmig.migration.journal import Journal
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.report import Report
from asyncmig.migration.reporter import Reporter

Result = TypeVar("Result")

_V2_BYTES_PER_RECORD = 1536
"""About what the v2 keys of a record and their index entries take at most, page fill included."""
_JOURNAL_BYTES_PER_RECORD = 384
"""A lease, and the labels of a snapshot and of a blob."""
_NEW_FILES = 2
"""The new database and the journal."""
_BLOCK = 4096


def check_room(checkpoint: Checkpoint, opened: OpenStores, database: MetadataDb, report: Report) -> None:
    """Refuse to begin what a full disk would end half-way; notes in the report what is needed.

    Raises :class:`StoreError`.
    """
    records = report.counts.records
    new = database.most_bytes_copied(checkpoint) + (_V2_BYTES_PER_RECORD + _JOURNAL_BYTES_PER_RECORD) * records
    _check_bytes("the migration", [(opened.layout.directory, new), *opened.growth(checkpoint, records, None)], report)
    _check_inodes(opened.layout.directory)


def check_room_to_undo(checkpoint: Checkpoint, opened: OpenStores, journal: Journal, report: Report) -> None:
    """As :func:`check_room`, for a rollback: labels come back and leases go, and the journal gets a line."""
    entries = len(journal.snapshots) + len(journal.blobs) + len(journal.leases)
    _check_bytes("the rollback", [(opened.layout.directory, _BLOCK), *opened.growth(checkpoint, 0, entries)], report)


def check_room_to_complete(checkpoint: Checkpoint, opened: OpenStores, journal: Journal, report: Report) -> None:
    """As :func:`check_room`, for what an interrupted migration has left: labels go, and the journal gets a line."""
    entries = len(journal.snapshots) + len(journal.blobs)
    _check_bytes(
        "the rest of the migration", [(opened.layout.directory, _BLOCK), *opened.growth(checkpoint, 0, entries)], report
    )


def _check_bytes(what: str, wanted: Iterable[tuple[str, int]], report: Report) -> None:
    needed: dict[int, int] = {}
    places: dict[int, str] = {}
    for path, size in wanted:
        device = _call(os.stat, path).st_dev
        needed[device] = needed.get(device, 0) + size
        places.setdefault(device, path)
    report.bytes_needed = {places[device]: size for device, size in needed.items()}
    for path, size in report.bytes_needed.items():
        status = _call(os.statvfs, path)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise StoreError(
                f"{printable(path)}: {what} needs up to {size_text(size)} of free space on this file system, "
                f"but only {size_text(free)} are free"
            )


def _check_inodes(directory: str) -> None:
    status = _call(os.statvfs, directory)
    # Some file systems, btrfs for one, make inodes as they are needed, and say that they have none at all.
    if status.f_files and status.f_favail < _NEW_FILES:
        raise StoreError(
            f"{printable(directory)}: the migration makes {_NEW_FILES} files, but only {status.f_favail} inodes are free on "
            "this file system (df -i)"
        )


def _call(function: Callable[[str], Result], path: str) -> Result:
    try:
        return function(path)
    except OSError as error:
        raise StoreError(f"{printable(path)}: cannot find out how much space is free: {reason(error)}") from error


def check_writable(_: Checkpoint, layout: Layout) -> None:
    """Raise :class:`LayoutError` for a directory or file of the cache that can't be written: what would fail half-way.

    A directory is written when a file in it is renamed; a file system may be mounted read-only, a file immutable.
    """
    for path in (layout.directory, *layout.edited, layout.journal):
        if os.path.exists(path) and not os.access(path, os.W_OK):
            remedy = OTHER_USER if os.geteuid() else "mount its file system read-write, or chattr -i it"
            raise LayoutError(f"{printable(path)}: not writable; {remedy}")


def note_worker(layout: Layout, reporter: Reporter[Report]) -> None:
    """Note that a newer daemon may not find the cache: it chooses its snapshotter anew whenever it starts."""
    if layout.name == OciLayout.name and layout.snapshotter == "native":
        text = (
            "a newer buildkitd picks overlayfs where the kernel allows it (--oci-worker-snapshotter=auto, the default), and "
            "then works in runc-overlayfs and leaves this cache unused; start it with --oci-worker-snapshotter=native to use it"
        )
        reporter.note("worker-not-default", text)


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
