"""Is a cache migrated?  Not every ``metadata_v2.db`` is what the ``metadata.db`` beside it has become.

A daemon that was killed leaves an empty one, and one that was started while ``metadata.db`` was moved away makes its own.
BuildKit goes by its existence alone, and would then ignore the whole cache.
"""

from __future__ import annotations

import os

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.errors import AsyncmigError, DatabaseLockedError, LayoutError, counted, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.paths import exists
from asyncmig.migration.journal import Journal

_REMEDY = (
    "If no newer daemon has worked with it, move it aside (mv {v2} {v2}.aside) and run 'asyncmig migrate' again; "
    "if one has, its records are all there is, so remove metadata.db"
)


def check_migrated(checkpoint: Checkpoint, layout: Layout, journal: Journal | None) -> None:
    """Raise :class:`LayoutError` if ``metadata_v2.db`` is not what ``metadata.db`` has become.

    Nothing is said of databases that a daemon has locked, nor if ``metadata.db`` is gone or can't be read.  Blocking.
    """
    if not exists(layout.v1):
        return
    try:
        after = _record_ids(checkpoint, layout.v2)
    except DatabaseLockedError:
        return
    except AsyncmigError as error:
        raise _not_migrated(layout, f"it can't be read ({error})") from error
    is_empty_file = not os.path.getsize(layout.v2)
    if journal is not None and not is_empty_file:
        return  # asyncmig has made it; a newer daemon may have removed every record since
    try:
        before = _record_ids(checkpoint, layout.v1)
    except AsyncmigError:
        return
    if not before or before & after:
        return
    if after:
        cause = f"none of its {counted(len(after), 'record')} is one of the {len(before):,} of metadata.db"
    else:
        cause = f"it has {'0 bytes' if is_empty_file else 'no records'}, but metadata.db has {counted(len(before), 'record')}"
    raise _not_migrated(layout, cause)


def _record_ids(checkpoint: Checkpoint, path: str) -> set[str]:
    database = MetadataDb.open(path)
    try:
        return {name for name, _, _ in database.raw_records(checkpoint)}
    finally:
        database.close()


def _not_migrated(layout: Layout, cause: str) -> LayoutError:
    v2 = printable(layout.v2)
    return LayoutError(f"{v2}: this is not the migrated cache: {cause}. {_REMEDY.format(v2=v2)}")
