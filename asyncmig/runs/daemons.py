"""Has a daemon worked on a cache since it was migrated?"""

from __future__ import annotations

import os
from collections.abc import Container

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import AsyncmigError, counted, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.opening import open_stores
from asyncmig.layouts.paths import exists
from asyncmig.migration.journal import Journal, fingerprint
from asyncmig.migration.report import Report
from asyncmig.migration.reporter import Reporter
from asyncmig.stores.fanout import no_progress

_REMEDY = (
    "what it has built since is not in metadata_v2.db, and the labels that it has set keep things for ever. Stop it for good. "
    "If no newer daemon has used the cache, run 'asyncmig rollback' and migrate again: that takes everything over. If one has, "
    "remove metadata.db and run 'asyncmig verify'"
)


async def look_at_finished(layout: Layout, journal: Journal | None, reporter: Reporter[Report]) -> None:
    """Report what an operator must know of a cache that is migrated already.  Changes nothing, and never fails for it."""
    if not await in_thread(_has_v1, layout):
        return
    traces = await in_thread(_changes_of_v1, layout, journal)
    # An old daemon labels all snapshots of its records when it starts, whether it builds something or not.
    labels = await count_labelled(layout, journal.snapshots) if journal is not None and journal.is_complete else 0
    if labels:
        traces.append(f"{counted(labels, 'snapshot')} again with the label that the migration had removed")
    if traces:
        text = f"an old daemon has run since the migration ({'; '.join(traces)}): {_REMEDY}"
        reporter.note("old-daemon-ran", text)


def _has_v1(_: Checkpoint, layout: Layout) -> bool:
    try:
        return exists(layout.v1)
    except AsyncmigError:
        return False


def _changes_of_v1(checkpoint: Checkpoint, layout: Layout, journal: Journal | None) -> list[str]:
    """How metadata.db shows that somebody has written it since; nothing but an old daemon does."""
    v1 = printable(layout.v1)
    try:
        if journal is not None:
            return [] if fingerprint(layout.v1, checkpoint) == journal.v1 else [f"{v1} has changed"]
        is_newer = os.stat(layout.v1).st_mtime_ns > os.stat(layout.v2).st_mtime_ns
    except (AsyncmigError, OSError):
        return []
    return [f"{v1} was written after metadata_v2.db"] if is_newer else []


async def count_labelled(layout: Layout, names: Container[str]) -> int:
    """How many snapshots of these names carry v1's label.

    0 where the stores can't be looked into at the moment: a newer daemon that runs has them locked.
    """
    try:
        async with open_stores(layout, writable=False, concurrency=1, patience=0, progress=no_progress) as opened:
            rooted = await opened.stores.snapshots.list_all(rooted=True)
    except AsyncmigError:
        return 0
    return await in_thread(lambda checkpoint: sum(1 for info in stepping(checkpoint, rooted) if info.name in names))
