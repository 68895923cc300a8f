"""The public entry points."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.keys import MAIN
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import in_thread
from asyncmig.errors import AsyncmigError, DatabaseLockedError, LayoutError, StoreError, StrPath, printable
from asyncmig.layouts import Layout, find_layout
from asyncmig.migration.cache import Cache
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.progress import GuardedProgress, Progress, Stage
from asyncmig.migration.report import Notice, Outcome, Report
from asyncmig.migration.semantics import SEMANTICS
from asyncmig.opening import OpenStores, open_stores
from asyncmig.paths import exists


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    ``semantics``: what to write, a name of :data:`SEMANTICS`.  ``layout``: ``oci`` (the stores lie in the worker directory),
    ``containerd`` (they are in a containerd) or ``auto``.  ``snapshotter``: its name; told from the directory if ``None``.
    ``dry_run``: change nothing.

    For a cache in a containerd: ``containerd_root`` is the root directory of a stopped one; otherwise it must run, and
    ``address`` is its unix socket (a path, or ``unix:///path``; ``None``: ``$CONTAINERD_ADDRESS``, or
    ``/run/containerd/containerd.sock``).  ``namespace``: containerd's (``None``: ``$CONTAINERD_NAMESPACE``, or ``buildkit``).
    ``concurrency``: calls at a time to a running containerd.  ``timeout``: seconds for which one that has gone, or does not
    answer, is waited for before the migration fails.
    """

    semantics: str = "upstream"
    layout: str = "auto"
    snapshotter: str | None = None
    namespace: str | None = None
    containerd_root: StrPath | None = None
    address: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    dry_run: bool = False

    def check(self) -> None:
        """Raise :class:`AsyncmigError` for a value that makes no sense."""
        if self.semantics not in SEMANTICS:
            raise AsyncmigError(f"unknown semantics {printable(self.semantics)}; choose from {', '.join(SEMANTICS)}")
        if self.concurrency < 1:
            raise AsyncmigError(f"concurrency {self.concurrency}: at least one call at a time is needed")
        if not 0 <= self.timeout < float("inf"):
            raise AsyncmigError(f"timeout {self.timeout}: give a number of seconds")


async def migrate(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Migrate the v1 cache at ``path`` in place; the buildkitd that uses it must be stopped.

    ``path`` is a worker directory or a BuildKit root holding one.  Works under asyncio and trio; all blocking work is done
    in worker threads.  A cache that is migrated already, or that has no v1 database, is left alone.

    Raises :class:`AsyncmigError`: its kind :class:`IncompleteMigrationError` means that the stores have been changed in part
    and a rerun completes the work, every other kind that nothing has changed.

    Cancellation takes effect at once and leaves everything as it was until the new database is complete; after that the rest
    is done first, which no kind of cancellation interrupts, and then the cancellation is raised.
    """
    options = options or Options()
    options.check()
    layout = await in_thread(
        lambda _: find_layout(
            path,
            layout=options.layout,
            snapshotter=options.snapshotter,
            namespace=options.namespace,
            containerd_root=options.containerd_root,
            address=options.address,
        )
    )
    progress = GuardedProgress(progress or Progress())
    report = Report(Outcome.NOTHING_TO_DO, layout.directory, options.semantics, layout.name)
    if await in_thread(_finished, layout, report):
        return report
    async with AsyncExitStack() as stack:
        progress.stage(Stage.OPEN, None)
        with report.timed(Stage.OPEN):
            opened = await stack.enter_async_context(
                open_stores(
                    layout,
                    writable=not options.dry_run,
                    concurrency=options.concurrency,
                    patience=options.timeout,
                    progress=progress.advance,
                )
            )
            layout = opened.layout
            if await in_thread(_finished, layout, report):  # another asyncmig was quicker, before the locks were taken
                return report
            database = await stack.enter_async_context(_open_database(layout, options.dry_run))
        report.snapshotter, report.namespace, report.edited = layout.snapshotter, layout.namespace, layout.edited
        report.address, report.server = layout.address or "", opened.server
        notes = (*opened.notes, database.note())
        report.notices.extend(Notice("meta-page", "", note) for note in notes if note)
        pipeline = Pipeline(Cache(database, SEMANTICS[options.semantics], report), opened.stores, layout.v2, progress)
        await pipeline.prepare()
        await in_thread(_check_room, opened, report.counts.records)
        if options.dry_run:
            await in_thread(_look_ahead, database, layout, report)
            report.outcome = Outcome.WOULD_MIGRATE
        else:
            await pipeline.migrate()
            report.outcome = Outcome.MIGRATED
    return report


@asynccontextmanager
async def _open_database(layout: Layout, dry_run: bool) -> AsyncIterator[MetadataDb]:
    opened: list[MetadataDb] = []

    def open_it(_: Checkpoint) -> None:
        # Exclusively, so that of two migrations at once the second one stops here.
        opened.append(MetadataDb.open(layout.v1, exclusive=not dry_run))
        _check_kind(opened[0])

    try:
        await in_thread(open_it)
        yield opened[0]
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


_V2_BYTES_PER_RECORD = 1536
"""About what the v2 keys of a record and their index entries take at most, page fill included."""


def _check_room(_: Checkpoint, opened: OpenStores, records: int) -> None:
    """Refuse to begin what a full disk would end half-way.  Raises :class:`StoreError` with what is needed."""
    layout = opened.layout
    needed: dict[int, int] = {}
    places: dict[int, str] = {}
    new = os.stat(layout.v1).st_size + _V2_BYTES_PER_RECORD * records
    for path, size in ((layout.directory, new), *opened.growth(records)):
        device = os.stat(path).st_dev
        needed[device] = needed.get(device, 0) + size
        places.setdefault(device, path)
    for device, size in needed.items():
        status = os.statvfs(places[device])
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise StoreError(
                f"{printable(places[device])}: the migration needs up to {_megabytes(size)} of free space on this file system, "
                f"and there are {_megabytes(free)}"
            )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _look_ahead(checkpoint: Checkpoint, database: MetadataDb, layout: Layout, report: Report) -> None:
    """What else would stop the migration, for a dry run."""
    database.check(checkpoint)
    for path in (layout.directory, *layout.edited):
        if os.path.exists(path) and not os.access(path, os.W_OK):
            report.notices.append(Notice("not-writable", "", f"{printable(path)} can't be written; the migration will fail"))


def _finished(checkpoint: Checkpoint, layout: Layout, report: Report) -> bool:
    """Whether there is nothing to be done; sets the outcome."""
    if exists(layout.v2):
        report.outcome = Outcome.ALREADY_MIGRATED
        _look_at_v2(checkpoint, layout, report)
    elif exists(layout.v1):
        return False
    return True


def _look_at_v2(checkpoint: Checkpoint, layout: Layout, report: Report) -> None:
    """Its mere existence counts, as for BuildKit; but an operator wants to know of a file that is no database."""
    if exists(layout.v1):
        try:
            MetadataDb.open(layout.v2).close()
        except DatabaseLockedError:
            pass  # the new daemon is running
        except AsyncmigError as error:
            text = f"{error}; if no new daemon has used it yet, remove it and migrate again"
            report.notices.append(Notice("v2-unusable", "", text))


__all__ = ["Options", "migrate"]
