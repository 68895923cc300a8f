"""The public entry points that change a cache, or tell what would be changed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.keys import MAIN
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import in_thread
from asyncmig.daemons import look_at_finished
from asyncmig.errors import AsyncmigError, DropLimitError, LayoutError, StoreError, StrPath, printable
from asyncmig.layouts import Layout, check_reachable, find_layout
from asyncmig.migration.cache import Cache, Policy
from asyncmig.migration.completion import complete
from asyncmig.migration.decisions import OnBroken
from asyncmig.migration.journal import Journal, JournalFile, fingerprint
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.plan import Change, changes
from asyncmig.migration.progress import GuardedProgress, Progress, Stage
from asyncmig.migration.report import Notice, Outcome, Report
from asyncmig.migration.rollback import Rollback
from asyncmig.migration.semantics import DEFAULT, SEMANTICS
from asyncmig.opening import OpenStores, open_stores
from asyncmig.paths import exists
from asyncmig.preflight import check_room, expected_seconds, look_ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    ``semantics``: what to write, a name of :data:`SEMANTICS`.  ``layout``: ``oci`` (the stores lie in the worker directory),
    ``containerd`` (they are in a containerd) or ``auto``.  ``snapshotter``: its name; told from the directory if ``None``.
    ``dry_run``: change nothing.

    For hardened semantics: ``on_broken`` tells what is done about broken records, ``max_dropped`` is the percentage of all
    records that may be dropped, ``strip_leftovers`` takes v1's label from what belongs to no record, too.

    For a cache in a containerd: ``containerd_root`` is the root directory of a stopped one; otherwise it must run, and
    ``address`` is its unix socket (a path, or ``unix:///path``; ``None``: ``$CONTAINERD_ADDRESS``, or
    ``/run/containerd/containerd.sock``).  ``namespace``: containerd's (``None``: ``$CONTAINERD_NAMESPACE``, or ``buildkit``).
    ``concurrency``: calls at a time to a running containerd.  ``timeout``: seconds for which one that has gone, or does not
    answer, is waited for before the migration fails.
    """

    semantics: str = DEFAULT.name
    layout: str = "auto"
    snapshotter: str | None = None
    namespace: str | None = None
    containerd_root: StrPath | None = None
    address: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    on_broken: OnBroken | str = OnBroken.REPAIR
    max_dropped: float = 5.0
    strip_leftovers: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Raise :class:`AsyncmigError` for a value that makes no sense."""
        if self.semantics not in SEMANTICS:
            raise AsyncmigError(f"unknown semantics {printable(self.semantics)}; choose from {', '.join(SEMANTICS)}")
        if self.on_broken not in list(OnBroken):
            raise AsyncmigError(f"on_broken {printable(self.on_broken)}: choose from {', '.join(OnBroken)}")
        if self.concurrency < 1:
            raise AsyncmigError(f"concurrency {self.concurrency}: at least one call at a time is needed")
        if not 0 <= self.timeout < float("inf"):
            raise AsyncmigError(f"timeout {self.timeout}: give a number of seconds")
        if not 0 <= self.max_dropped <= 100:
            raise AsyncmigError(f"max_dropped {self.max_dropped}: give a percentage")
        if not SEMANTICS[self.semantics].repairs and self.policy != Policy():
            raise AsyncmigError(
                f"on_broken, max_dropped and strip_leftovers are for hardened semantics; {self.semantics} has no choice there"
            )

    @property
    def policy(self) -> Policy:
        """What is wanted where a cache is not as it should be."""
        return Policy(OnBroken(self.on_broken), self.max_dropped, self.strip_leftovers)

    def layout_of(self, path: StrPath) -> Layout:
        """The cache at ``path``.  Blocking.  Raises :class:`LayoutError`."""
        return find_layout(
            path,
            layout=self.layout,
            snapshotter=self.snapshotter,
            namespace=self.namespace,
            containerd_root=self.containerd_root,
            address=self.address,
        )

    def open_stores(self, layout: Layout, *, writable: bool, progress: Progress) -> AbstractAsyncContextManager[OpenStores]:
        """The stores of the cache at ``layout``; see :func:`asyncmig.opening.open_stores`."""
        return open_stores(
            layout, writable=writable, concurrency=self.concurrency, patience=self.timeout, progress=progress.advance
        )


async def migrate(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Migrate the v1 cache at ``path`` in place; the buildkitd that uses it must be stopped.

    ``path`` is a worker directory or a BuildKit root holding one.  Works under asyncio and trio; all blocking work is done
    in worker threads.  A cache that is migrated already, or that has no v1 database, is left alone, but for the labels that an
    interrupted run has left.

    Raises :class:`AsyncmigError`: its kind :class:`IncompleteMigrationError` means that the stores have been changed in part
    and a rerun completes the work, every other kind that nothing has changed.

    Cancellation takes effect at once and leaves everything as it was until the new database is complete; after that the rest
    is done first, which no kind of cancellation interrupts, and then the cancellation is raised.
    """
    return await _Run(path, options or Options(), progress).migrate(None)


async def plan(
    path: StrPath,
    options: Options | None = None,
    *,
    on_change: Callable[[Change], None] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Do everything that :func:`migrate` would do before it changes something, and tell what it would change.

    ``on_change`` is called, in a worker thread, for every value, index entry, lease and label that would change.  Whether the
    migration would refuse to begin is told in :attr:`Report.refused`, not raised.  Otherwise as :func:`migrate`; cancellation
    takes effect at once.
    """
    return await _Run(path, replace(options or Options(), dry_run=True), progress).migrate(on_change)


async def rollback(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Undo the migration of the cache at ``path``: labels back, its leases gone, ``metadata_v2.db`` moved aside.

    Of the options, those count that tell where the cache is, and ``dry_run``.  An interrupted migration can be undone, too.
    Raises :class:`AsyncmigError` if there is no journal of a migration, or if a newer daemon has changed the v2 database since;
    its kind :class:`IncompleteRollbackError` means that a rerun completes the work, every other kind that nothing has changed.
    A cancellation takes effect at once until the first change, and after the last one.
    """
    return await _Run(path, options or Options(), progress).rollback()


class _Run:
    """One call of an entry point."""

    def __init__(self, path: StrPath, options: Options, progress: Progress | None) -> None:
        options.check()
        self._path = path
        self._options = options
        self._progress = GuardedProgress(progress or Progress())

    # -- migrate and plan

    async def migrate(self, on_change: Callable[[Change], None] | None) -> Report:
        options = self._options
        layout = await in_thread(lambda _: options.layout_of(self._path))
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
            await pipeline.prepare()
            if options.dry_run:
                await self._tell(pipeline, opened, on_change)
            else:
                await in_thread(check_room, opened, report)
                await pipeline.migrate()
                report.outcome = Outcome.MIGRATED
        return report

    async def _tell(self, pipeline: Pipeline, opened: OpenStores, on_change: Callable[[Change], None] | None) -> None:
        report = pipeline.cache.report
        try:
            pipeline.check_limit()
            await in_thread(check_room, opened, report)
        except (DropLimitError, StoreError) as error:
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
        journal = await in_thread(lambda _: file.read())
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
        options = self._options
        layout = await in_thread(lambda _: options.layout_of(self._path))
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
                self._options.open_stores(layout, writable=writable, progress=self._progress)
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


def _journal_to_undo(_: Checkpoint, layout: Layout) -> Journal:
    """The journal, if the migration can be undone.  Raises :class:`AsyncmigError` with the reason if not."""
    journal = JournalFile(layout.v2).read()
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


__all__ = ["Options", "migrate", "plan", "rollback"]
