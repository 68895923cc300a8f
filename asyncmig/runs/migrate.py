"""Migrating a cache, or planning it, from its path to the report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.keys import MAIN
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import close_in_thread, in_thread
from asyncmig.errors import DropLimitError, LayoutError, StoreError, StrPath, printable
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.opening import OpenStores, check_changeable
from asyncmig.layouts.paths import exists
from asyncmig.migration.cache import Cache
from asyncmig.migration.changes import Change
from asyncmig.migration.completion import complete
from asyncmig.migration.journal import JournalFile
from asyncmig.migration.pipeline import PREPARING, Pipeline
from asyncmig.migration.plan import changes
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.recognition import expected_by_v2, recognise
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.reporter import Reporter
from asyncmig.migration.semantics import SEMANTICS
from asyncmig.runs.collector import few_full_collections
from asyncmig.runs.daemons import look_at_finished
from asyncmig.runs.door import as_noted, find_cache, new_report, open_cache, open_databases
from asyncmig.runs.migrated import check_migrated, check_published
from asyncmig.runs.options import Options
from asyncmig.runs.preflight import check_room, check_room_to_complete, check_writable, expected_seconds, note_worker

OnChange = Callable[[Change], None]


async def migrate(path: StrPath, options: Options, progress: Progress | None, on_change: OnChange | None = None) -> Report:
    """See :func:`asyncmig.api.migrate`, and for a dry run :func:`asyncmig.api.plan`."""
    layout = await in_thread(find_cache, path, options)
    reporter = Reporter(new_report(path, options, layout), progress)
    run = _Migration(layout, options, reporter)
    with few_full_collections():
        await run.run(on_change)
    reporter.ended()
    return run.report


class _Migration:
    """One migration, or its plan."""

    def __init__(self, layout: Layout, options: Options, reporter: Reporter[Report]) -> None:
        self._layout = layout
        self._options = options
        self._semantics = SEMANTICS[options.semantics]
        self._reporter = reporter
        self.report = reporter.result

    async def run(self, on_change: OnChange | None) -> None:
        if await in_thread(self._is_finished):
            await self._finish()
            return
        dry_run = self._options.dry_run
        async with AsyncExitStack() as stack:
            self._reporter.begin(Stage.OPEN, *PREPARING, *(() if dry_run else (Stage.BUILD, *self._semantics.tail)))
            opened = await self._open(stack, await in_thread(self._layout_of_earlier))
            if await in_thread(self._is_finished):
                return  # another asyncmig was quicker, before the locks were taken
            database = await stack.enter_async_context(_open_v1(opened.layout, dry_run))
            if note := database.note():
                self._reporter.note("meta-page", note)
            cache = Cache(database, self._semantics, self._reporter, self._options.policy, place=opened.layout.place)
            pipeline = Pipeline(cache, opened.stores, opened.layout.v2)
            try:
                await pipeline.prepare()
                if dry_run:
                    await self._tell(pipeline, opened, on_change)
                else:
                    await in_thread(check_writable, opened.layout)
                    await in_thread(check_room, opened, database, self.report)
                    await pipeline.migrate()
            finally:
                await close_in_thread(pipeline.forget)

    def _is_finished(self, _: Checkpoint) -> bool:
        """Whether there is nothing to be migrated; sets the outcome."""
        if exists(self._layout.v2):
            self.report.outcome = Outcome.ALREADY_MIGRATED
            return True
        return not exists(self._layout.v1)

    def _layout_of_earlier(self, checkpoint: Checkpoint) -> Layout:
        """Where an interrupted run has begun to change something, this one goes on with the same stores."""
        journal = JournalFile(self._layout.v2).read(checkpoint)
        if journal is None or (journal.is_complete and not journal.is_rolling_back):
            return self._layout
        return as_noted(self._layout, journal, self._options)

    async def _open(self, stack: AsyncExitStack, layout: Layout) -> OpenStores:
        opened = await open_cache(stack, layout, self._options, self._reporter, writable=not self._options.dry_run)
        self.report.edited = opened.layout.edited
        note_worker(opened.layout, self._reporter)
        return opened

    async def _tell(self, pipeline: Pipeline, opened: OpenStores, on_change: OnChange | None) -> None:
        """What a plan tells of the prepared migration."""
        report = self.report
        try:
            pipeline.check_limit()
            await in_thread(check_changeable, opened.layout, trust_others=self._options.trust_others)
            await in_thread(check_writable, opened.layout)
            await in_thread(check_room, opened, pipeline.cache.database, report)
        except (DropLimitError, LayoutError, StoreError) as error:
            report.refused = str(error)
        await in_thread(pipeline.cache.database.check)
        if on_change is not None:
            await in_thread(_tell_changes, pipeline, on_change)
        report.seconds_expected = await in_thread(expected_seconds, pipeline, opened.layout)
        report.outcome = Outcome.WOULD_MIGRATE

    async def _finish(self) -> None:
        """What is left to be done about, or to be said of, a cache that has nothing to be migrated."""
        if self.report.outcome is Outcome.NOTHING_TO_DO:
            return
        layout = self._layout
        file = JournalFile(layout.v2)
        journal = await in_thread(file.read)
        if journal is not None:
            layout = as_noted(layout, journal, self._options)
        if journal is not None and journal.is_rolling_back:
            self.report.outcome = Outcome.ROLLBACK_INTERRUPTED
            self.report.refused = "a rollback was begun but is not complete; run 'asyncmig rollback' again"
            return
        if self._semantics.repairs:  # upstream goes by its existence alone
            await check_migrated(layout, journal, self._reporter)
        if journal is None or journal.is_complete:
            await look_at_finished(layout, journal, self._reporter)
            return
        async with AsyncExitStack() as stack:
            self._reporter.begin(Stage.OPEN, *(() if self._options.dry_run else (Stage.RELEASE,)))
            opened = await self._open(stack, layout)
            [v2] = await stack.enter_async_context(open_databases([layout.v2], exclusive=False))
            journal = await in_thread(file.read)  # again, under the locks
            if journal is None or journal.is_complete:
                return  # another asyncmig was quicker
            await in_thread(check_published, layout, v2, journal)
            expected = await in_thread(expected_by_v2, v2, journal)
            place, limit = opened.layout.place, self._options.max_dropped
            await recognise(opened.stores, expected, journal, place, path=layout.directory, limit=limit)
            if self._options.dry_run:
                text = (
                    "an earlier run was interrupted after it had published the new database; 'asyncmig "
                    "migrate' removes the labels that are left"
                )
                self._reporter.note("interrupted-before", text)
                self.report.outcome = Outcome.INTERRUPTED
                try:
                    await in_thread(check_changeable, opened.layout, trust_others=self._options.trust_others)
                    await in_thread(check_writable, opened.layout)
                    await in_thread(check_room_to_complete, opened, journal, self.report)
                except (LayoutError, StoreError) as error:
                    self.report.refused = str(error)
                return
            await in_thread(check_writable, opened.layout)
            await in_thread(check_room_to_complete, opened, journal, self.report)
            await complete(journal, file, opened.stores, self._reporter)
        await look_at_finished(layout, journal, self._reporter)


@asynccontextmanager
async def _open_v1(layout: Layout, dry_run: bool) -> AsyncIterator[MetadataDb]:
    """The v1 database, exclusively, so that of two migrations at once the second one stops here."""
    async with open_databases([layout.v1], exclusive=not dry_run) as [database]:
        _check_kind(database)
        yield database


def _check_kind(database: MetadataDb) -> None:
    """Refuse other databases of the same name: a snapshotter has a metadata.db, too."""
    if b"v1" in database.bucket_names and MAIN not in database.bucket_names:
        raise LayoutError(
            f"{printable(database.path)}: this is the database of a snapshotter or of containerd, not of a cache; "
            "name the worker directory, such as runc-overlayfs"
        )


def _tell_changes(checkpoint: Checkpoint, pipeline: Pipeline, on_change: OnChange) -> None:
    for change in changes(checkpoint, pipeline):
        on_change(change)
