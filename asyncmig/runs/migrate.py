"""One call of an entry point, from the path to the report."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.keys import MAIN
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import close_in_thread, in_thread
from asyncmig.errors import AsyncmigError, DropLimitError, LayoutError, StoreError, StrPath, printable
from asyncmig.layouts.detect import Layout, check_reachable, find_layout
from asyncmig.layouts.opening import OpenStores, open_stores
from asyncmig.layouts.paths import exists
from asyncmig.layouts.trust import check_links, check_owners
from asyncmig.migration.cache import Cache
from asyncmig.migration.changes import Change
from asyncmig.migration.completion import complete
from asyncmig.migration.journal import Journal, JournalFile, fingerprint
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.plan import changes
from asyncmig.migration.progress import GuardedProgress, Progress, Stage
from asyncmig.migration.report import Notice, Outcome, Report
from asyncmig.migration.rollback import Rollback
from asyncmig.migration.semantics import SEMANTICS
from asyncmig.runs.collector import few_full_collections
from asyncmig.runs.daemons import look_at_finished
from asyncmig.runs.options import Options
from asyncmig.runs.preflight import check_room, expected_seconds, look_ahead


class Run:
    """One call of an entry point."""

    def __init__(self, path: StrPath, options: Options, progress: Progress | None) -> None:
        options.check()
        self._path = path
        self._options = options
        self._progress = GuardedProgress(progress or Progress())

    # -- migrate and plan

    async def migrate(self, on_change: Callable[[Change], None] | None) -> Report:
        """See :func:`asyncmig.api.migrate`, and for a dry run :func:`asyncmig.api.plan`."""
        with few_full_collections():
            return await self._migrate(on_change)

    async def _migrate(self, on_change: Callable[[Change], None] | None) -> Report:
        options = self._options
        layout = await in_thread(lambda _: layout_of(self._path, options))
        report = self._report(layout)
        if await in_thread(_is_finished, layout, report):
            return await self._finish(layout, report)
        async with AsyncExitStack() as stack:
            opened = await self._open(stack, layout, report, writable=not options.dry_run)
            layout = opened.layout
            if await in_thread(_is_finished, layout, report):
                return report  # another asyncmig was quicker, before the locks were taken
            database = await stack.enter_async_context(_open_database(layout, options.dry_run))
            note = database.note()
            if note:
                report.notices.append(Notice("meta-page", "", note))
            cache = Cache(database, SEMANTICS[options.semantics], report, options.policy)
            pipeline = Pipeline(cache, opened.stores, layout.v2, self._progress)
            try:
                await pipeline.prepare()
                if options.dry_run:
                    await self._tell(pipeline, opened, on_change)
                else:
                    await in_thread(check_room, opened, report)
                    await pipeline.migrate()
                    report.outcome = Outcome.MIGRATED
            finally:
                await close_in_thread(pipeline.forget)
        return report

    async def _tell(self, pipeline: Pipeline, opened: OpenStores, on_change: Callable[[Change], None] | None) -> None:
        report = pipeline.cache.report
        try:
            pipeline.check_limit()
            await in_thread(lambda _: check_owners(opened.layout))
            await in_thread(check_room, opened, report)
        except (DropLimitError, LayoutError, StoreError) as error:
            report.refused = str(error)
        await in_thread(look_ahead, pipeline.cache.database, opened.layout, report)
        if on_change is not None:
            await in_thread(_tell_changes, pipeline, on_change)
        report.seconds_expected = await in_thread(expected_seconds, pipeline, opened.layout)
        report.outcome = Outcome.WOULD_MIGRATE

    async def _finish(self, layout: Layout, report: Report) -> Report:
        """What is left to be done about, or to be said of, a cache that has nothing to be migrated."""
        if report.outcome is Outcome.NOTHING_TO_DO:
            return report
        file = JournalFile(layout.v2)
        journal = await in_thread(file.read)
        if journal is not None:
            layout = as_noted(layout, journal, self._options)
        if journal is None or journal.is_complete or journal.is_rolling_back:
            await look_at_finished(layout, journal, report)
            return report
        async with AsyncExitStack() as stack:
            opened = await self._open(stack, layout, report, writable=not self._options.dry_run)
            if self._options.dry_run:
                text = "an earlier run was interrupted after it had published the new database; migrate removes the labels left"
                report.notices.append(Notice("interrupted-before", "", text))
                return report
            await complete(journal, file, opened.stores, report, self._progress)
            report.outcome = Outcome.COMPLETED
        await look_at_finished(layout, journal, report)
        return report

    # -- rollback

    async def rollback(self) -> Report:
        """See :func:`asyncmig.api.rollback`."""
        with few_full_collections():
            return await self._rollback()

    async def _rollback(self) -> Report:
        options = self._options
        layout = await in_thread(lambda _: layout_of(self._path, options))
        report = self._report(layout)
        async with AsyncExitStack() as stack:
            journal = await in_thread(_journal_to_undo, layout)
            report.semantics = journal.semantics
            layout = as_noted(layout, journal, options)
            await in_thread(lambda _: check_reachable(layout))
            opened = await self._open(stack, layout, report, writable=not options.dry_run)
            await stack.enter_async_context(_open_both(layout, options.dry_run))
            journal = await in_thread(_journal_to_undo, layout)  # under the locks
            undo = Rollback(journal, layout.v2, opened.stores, report, self._progress)
            await in_thread(undo.count)
            if options.dry_run:
                report.outcome = Outcome.WOULD_ROLL_BACK
            else:
                await undo.run()
                report.outcome = Outcome.ROLLED_BACK
        return report

    # -- both

    def _report(self, layout: Layout) -> Report:
        report = Report(Outcome.NOTHING_TO_DO, layout.directory, self._options.semantics, layout.name)
        given = {"path": self._path, **asdict(self._options)}
        report.arguments = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in given.items()}
        return report

    async def _open(self, stack: AsyncExitStack, layout: Layout, report: Report, *, writable: bool) -> OpenStores:
        self._progress.stage(Stage.OPEN, None)
        with report.timed(Stage.OPEN):
            opened = await stack.enter_async_context(
                open_for(self._options, layout, writable=writable, progress=self._progress)
            )
        layout = opened.layout
        report.snapshotter, report.namespace, report.edited = layout.snapshotter, layout.namespace, layout.edited
        report.address, report.server = layout.address or "", opened.server
        report.notices.extend(Notice("meta-page", "", note) for note in opened.notes)
        return opened


@asynccontextmanager
async def _open_database(layout: Layout, dry_run: bool) -> AsyncIterator[MetadataDb]:
    """The v1 database, exclusively, so that of two migrations at once the second one stops here."""
    async with open_databases([layout.v1], exclusive=not dry_run) as opened:
        _check_kind(opened[0])
        yield opened[0]


@asynccontextmanager
async def _open_both(layout: Layout, dry_run: bool) -> AsyncIterator[None]:
    """Both databases, locked against an old daemon and a new one."""
    paths = await in_thread(lambda _: [path for path in (layout.v1, layout.v2) if exists(path)])
    async with open_databases(paths, exclusive=not dry_run):
        yield


@asynccontextmanager
async def open_databases(paths: list[str], *, exclusive: bool) -> AsyncIterator[list[MetadataDb]]:
    """The databases at these paths, locked, until the end of the block.  Raises :class:`DatabaseError`."""
    # Kept outside of the call: when the caller is cancelled in the last moment, a result would be lost.
    opened: list[MetadataDb] = []

    def open_them(_: Checkpoint) -> None:
        for path in paths:
            opened.append(MetadataDb.open(path, exclusive=exclusive))

    try:
        await in_thread(open_them)
        yield opened
    finally:
        for database in opened:
            database.close()


def _check_kind(database: MetadataDb) -> None:
    """Refuse other databases of the same name: a snapshotter has a metadata.db, too."""
    if b"v1" in database.bucket_names and MAIN not in database.bucket_names:
        raise LayoutError(
            f"{printable(database.path)}: this is the database of a snapshotter or of containerd, not a cache; "
            "name the worker directory (runc-overlayfs or the like)"
        )


def _tell_changes(checkpoint: Checkpoint, pipeline: Pipeline, on_change: Callable[[Change], None]) -> None:
    for change in changes(checkpoint, pipeline):
        on_change(change)


def _is_finished(_: Checkpoint, layout: Layout, report: Report) -> bool:
    """Whether there is nothing to be migrated; sets the outcome."""
    if exists(layout.v2):
        report.outcome = Outcome.ALREADY_MIGRATED
        return True
    return not exists(layout.v1)


def as_noted(layout: Layout, journal: Journal, options: Options) -> Layout:
    """The places as the migration had them, where the caller says nothing else."""
    return replace(
        layout,
        snapshotter=options.snapshotter or journal.snapshotter,
        namespace=options.namespace or journal.namespace or layout.namespace,
    )


def _journal_to_undo(checkpoint: Checkpoint, layout: Layout) -> Journal:
    """The journal, if the migration can be undone.  Raises :class:`AsyncmigError` with the reason if not."""
    journal = JournalFile(layout.v2).read(checkpoint)
    where = printable(layout.directory)
    if journal is None:
        raise AsyncmigError(
            f"{where}: there is no metadata_v2.db.journal: asyncmig has not migrated this cache, or it is rolled back already"
        )
    if not exists(layout.v1):
        raise AsyncmigError(f"{where}: metadata.db is gone, so there is nothing to go back to")
    if exists(layout.v2) and fingerprint(layout.v2) != journal.v2:
        raise AsyncmigError(
            f"{where}: metadata_v2.db has changed since the migration: a newer daemon has worked with it, and the old labels "
            "would not protect what it has made. There is no way back but a backup of everything"
        )
    return journal


def layout_of(path: StrPath, options: Options) -> Layout:
    """The cache at ``path``, none of its files a link or a pipe.  Blocking.  Raises :class:`LayoutError`."""
    found = find_layout(
        path,
        layout=options.layout,
        snapshotter=options.snapshotter,
        namespace=options.namespace,
        containerd_root=options.containerd_root,
        address=options.address,
    )
    check_links(found)
    return found


def open_for(
    options: Options, layout: Layout, *, writable: bool, progress: Progress
) -> AbstractAsyncContextManager[OpenStores]:
    """The stores of the cache at ``layout``; see :func:`asyncmig.layouts.opening.open_stores`."""
    return open_stores(
        layout, writable=writable, concurrency=options.concurrency, patience=options.timeout, progress=progress.advance
    )
