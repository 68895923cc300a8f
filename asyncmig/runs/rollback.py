"""Undoing a migration, from the path of its cache to the report."""

from __future__ import annotations

from contextlib import AsyncExitStack

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import AsyncmigError, StrPath, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.opening import check_changeable
from asyncmig.layouts.paths import exists
from asyncmig.migration.journal import Journal, JournalFile, fingerprint
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.recognition import expected_by_v1, recognise, with_ancestors
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.reporter import Reporter
from asyncmig.migration.rollback import Rollback
from asyncmig.runs.collector import few_full_collections
from asyncmig.runs.door import as_noted, find_cache, new_report, open_cache, open_databases
from asyncmig.runs.options import Options
from asyncmig.runs.preflight import check_room_to_undo, check_writable

_STAGES = (Stage.OPEN, Stage.RESTORE, Stage.WITHDRAW, Stage.UNPROTECT)


async def rollback(path: StrPath, options: Options, progress: Progress | None) -> Report:
    """See :func:`asyncmig.api.rollback`."""
    layout = await in_thread(find_cache, path, options)
    report = new_report(path, options, layout)
    reporter = Reporter(report, progress)
    async with AsyncExitStack() as stack:
        stack.enter_context(few_full_collections())
        journal = await in_thread(_journal_to_undo, layout)
        report.semantics = journal.semantics
        layout = as_noted(layout, journal, options)
        await in_thread(lambda _: layout.check_reachable())
        reporter.begin(*(_STAGES[:1] if options.dry_run else _STAGES))
        opened = await open_cache(stack, layout, options, reporter, writable=not options.dry_run)
        report.edited = opened.layout.edited
        # Both databases, locked against an old daemon and a new one.
        databases = await in_thread(lambda _: [place for place in (layout.v1, layout.v2) if exists(place)])
        v1, *_ = await stack.enter_async_context(open_databases(databases, exclusive=not options.dry_run))
        journal = await in_thread(_journal_to_undo, layout)  # under the locks
        is_published = len(databases) > 1
        expected = await in_thread(expected_by_v1, v1, journal, with_leases=is_published)
        await recognise(opened.stores, expected, journal, opened.layout.place, path=layout.directory, limit=options.max_dropped)
        has_changed = await in_thread(lambda checkpoint: fingerprint(layout.v1, checkpoint) != journal.v1)
        needed = (await with_ancestors(opened.stores, expected.snapshots), set(expected.blobs)) if has_changed else None
        undo = await in_thread(lambda _: Rollback(journal, layout.v2, opened.stores, reporter, needed=needed))
        await in_thread(undo.count)
        await in_thread(check_writable, opened.layout)
        await in_thread(check_room_to_undo, opened, journal, report)
        if options.dry_run:
            await in_thread(check_changeable, opened.layout, trust_others=options.trust_others)
            report.outcome = Outcome.WOULD_ROLL_BACK
        else:
            await undo.run()
    reporter.ended()
    return report


def _journal_to_undo(checkpoint: Checkpoint, layout: Layout) -> Journal:
    """The journal, if the migration can be undone.  Raises :class:`AsyncmigError` with the reason if not."""
    journal = JournalFile(layout.v2).read(checkpoint)
    where = printable(layout.directory)
    if journal is None:
        raise AsyncmigError(
            f"{where}: there is no metadata_v2.db.journal, so there is nothing to undo: asyncmig has not migrated this cache, "
            "or it is already rolled back"
        )
    if not exists(layout.v1):
        raise AsyncmigError(f"{where}: metadata.db is gone, so there is nothing to go back to; restore it from a backup")
    if exists(layout.v2) and fingerprint(layout.v2, checkpoint) != journal.v2:
        raise AsyncmigError(
            f"{where}: metadata_v2.db has changed since the migration: a newer daemon has worked with it, and the old labels "
            "would not protect what that daemon has made. The only way back is a backup of the whole cache"
        )
    return journal
