"""Is a cache migrated?  Not every ``metadata_v2.db`` is what the ``metadata.db`` beside it has become.

A daemon that was killed leaves an empty one, and one that was started while ``metadata.db`` was moved away makes its own.
BuildKit goes by its existence alone, and would then ignore the whole cache.
"""

from __future__ import annotations

import os

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import in_thread
from asyncmig.errors import AsyncmigError, DatabaseLockedError, LayoutError, counted, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.paths import exists
from asyncmig.migration.journal import Journal, fingerprint
from asyncmig.migration.report import Report
from asyncmig.migration.reporter import Reporter
from asyncmig.runs.daemons import count_labelled

_REMEDY = (
    "If no newer daemon has worked with it, move it aside (mv {v2} {v2}.aside) and run 'asyncmig migrate' again; "
    "if one has, its records are all there is, so remove metadata.db"
)


def check_readable(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raise :class:`LayoutError` for a ``metadata_v2.db`` that is no database, or is one of 0 bytes beside records of v1.

    Nothing is said of a database that a daemon has locked.  Blocking.
    """
    try:
        after = _record_ids(checkpoint, layout.v2)
    except DatabaseLockedError:
        return
    except AsyncmigError as error:
        raise _not_migrated(layout, f"it can't be read ({error})") from error
    before = _records_of_v1(checkpoint, layout)
    if before and not after and is_empty(layout.v2):
        raise _not_migrated(layout, f"it has 0 bytes, but metadata.db has {counted(len(before), 'record')}")


async def check_migrated(layout: Layout, journal: Journal | None, reporter: Reporter[Report]) -> None:
    """Raise :class:`LayoutError` if ``metadata_v2.db`` is not what ``metadata.db`` has become.

    If the two have no record in common, the stores tell. Whoever migrates takes v1's labels off, so a cache whose records
    still have labelled snapshots was not migrated. If the labels are gone, a newer daemon has removed the old records since.
    The journal of a complete migration says that there was one. Nothing is said of databases that a daemon has locked.
    """
    await in_thread(check_readable, layout)
    if journal is not None and journal.is_complete:
        return
    before, cause = await in_thread(_compare, layout)
    if not cause:
        return
    if await count_labelled(layout, before):
        raise _not_migrated(layout, cause)
    reporter.note("records-replaced", f"metadata_v2.db: {cause}; a newer daemon has removed the old ones since")


def check_published(checkpoint: Checkpoint, layout: Layout, database: MetadataDb, journal: Journal) -> None:
    """Raise :class:`LayoutError` if ``metadata_v2.db`` is not the one that the interrupted migration has published.

    A newer daemon may have made one of its own since, before anything was protected: no label may go then.  Blocking.
    """
    if fingerprint(layout.v2, checkpoint) == journal.v2:
        return
    for name, _, _ in database.raw_records(checkpoint):
        if name in journal.leases or name in journal.foreign:
            return  # a newer daemon has worked with it
    raise _not_migrated(layout, "the interrupted migration has not made it, and it has none of its records")


def _compare(checkpoint: Checkpoint, layout: Layout) -> tuple[set[str], str]:
    """The records of v1, and what speaks against their having become those of v2, "" if nothing does."""
    before = _records_of_v1(checkpoint, layout)
    try:
        after = _record_ids(checkpoint, layout.v2)
    except AsyncmigError:
        return before, ""
    if not before or before & after:
        return before, ""
    if after:
        return before, f"none of its {counted(len(after), 'record')} is one of the {len(before):,} of metadata.db"
    return before, f"it has no records, but metadata.db has {counted(len(before), 'record')}"


def _records_of_v1(checkpoint: Checkpoint, layout: Layout) -> set[str]:
    """None if ``metadata.db`` is gone or can't be read."""
    try:
        return _record_ids(checkpoint, layout.v1) if exists(layout.v1) else set()
    except AsyncmigError:
        return set()


def is_empty(path: str) -> bool:
    """Whether the file has 0 bytes."""
    try:
        return not os.stat(path).st_size
    except OSError:
        return False


def _record_ids(checkpoint: Checkpoint, path: str) -> set[str]:
    database = MetadataDb.open(path)
    try:
        return {name for name, _, _ in database.raw_records(checkpoint)}
    finally:
        database.close()


def _not_migrated(layout: Layout, cause: str) -> LayoutError:
    v2 = printable(layout.v2)
    return LayoutError(f"{v2}: this is not the migrated cache: {cause}. {_REMEDY.format(v2=v2)}")
