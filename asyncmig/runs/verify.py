"""Checking a v2 cache, from its path to the findings."""

from __future__ import annotations

from collections.abc import Set
from contextlib import AsyncExitStack

from asyncmig.audit.audit import STAGES, audit
from asyncmig.audit.findings import Verification
from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.paths import exists
from asyncmig.migration.journal import Journal, JournalFile
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.reporter import Reporter
from asyncmig.runs.collector import few_full_collections
from asyncmig.runs.door import as_noted, find_cache, open_cache, open_databases
from asyncmig.runs.migrated import check_readable
from asyncmig.runs.options import Options


async def verify(path: StrPath, options: Options, progress: Progress | None) -> Verification:
    """See :func:`asyncmig.api.verify`."""
    layout, journal = await in_thread(_find_v2, path, options)
    result = Verification(path=layout.directory, layout=layout.name, interrupted=_interrupted(journal))
    released = await in_thread(_released, journal)
    reporter = Reporter(result, progress)
    async with AsyncExitStack() as stack:
        stack.enter_context(few_full_collections())
        reporter.begin(Stage.OPEN, *STAGES)
        opened = await open_cache(stack, layout, options, reporter, writable=False)
        [database] = await stack.enter_async_context(open_databases([opened.layout.v2], exclusive=False))
        await audit(database, opened.stores, reporter, released=released)
    return result


def _interrupted(journal: Journal | None) -> str:
    if journal is None or (journal.is_complete and not journal.is_rolling_back):
        return ""
    return "rollback" if journal.is_rolling_back else "migrate"


def _released(checkpoint: Checkpoint, journal: Journal | None) -> Set[str]:
    """The snapshots of no record that the migration has released; not those of records, for there may be a million of them."""
    if journal is None:
        return frozenset()
    return {name for name in stepping(checkpoint, journal.snapshots) if name not in journal.leases}


def _find_v2(checkpoint: Checkpoint, path: StrPath, options: Options) -> tuple[Layout, Journal | None]:
    """The cache, and the journal of its migration."""
    layout = find_cache(checkpoint, path, options)
    journal = JournalFile(layout.v2).read(checkpoint)
    if not exists(layout.v2):
        raise LayoutError(f"{printable(layout.directory)}: there is no metadata_v2.db; {_advice(layout, journal)}")
    if journal is not None:
        layout = as_noted(layout, journal, options)
    check_readable(checkpoint, layout)
    layout.check_reachable()
    return layout, journal


def _advice(layout: Layout, journal: Journal | None) -> str:
    if what := _interrupted(journal):
        return f"a run was interrupted: run 'asyncmig {what}' again to complete it"
    return "run 'asyncmig migrate' first" if exists(layout.v1) else "name the worker directory of a cache"
