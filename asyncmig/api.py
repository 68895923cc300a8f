"""The public entry points."""

from __future__ import annotations

import os
from dataclasses import dataclass

from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import in_thread
from asyncmig.errors import AsyncmigError, StrPath, printable
from asyncmig.layouts import Layout, find_layout, open_stores
from asyncmig.migration.cache import Cache
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.progress import Progress
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.semantics import SEMANTICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    ``semantics``: what to write, a name of :data:`SEMANTICS`.  ``layout``: ``auto`` or ``oci``.  ``snapshotter``: its name;
    told from the directory if ``None``.  ``namespace``: containerd's.  ``containerd_root``: root directory of a stopped
    containerd that has the stores; ``None`` if they lie in the worker directory.  ``dry_run``: change nothing.
    """

    semantics: str = "upstream"
    layout: str = "auto"
    snapshotter: str | None = None
    namespace: str = "buildkit"
    containerd_root: StrPath | None = None
    dry_run: bool = False


async def migrate(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Migrate the v1 cache at ``path`` in place; the daemon that uses it must be stopped.

    ``path`` is a worker directory or a BuildKit root holding one.  Works under asyncio and trio; all blocking work is done
    in worker threads.  A cache that is migrated already, or that has no v1 database, is left alone.

    Raises :class:`AsyncmigError`: its kind :class:`IncompleteMigrationError` means that the stores have been changed in part
    and a rerun completes the work, every other kind that nothing has changed.

    Cancellation takes effect at once and leaves everything as it was until the new database is complete; after that the rest
    is done first, which no kind of cancellation interrupts, and then the cancellation is raised.
    """
    options = options or Options()
    progress = progress or Progress()
    if options.semantics not in SEMANTICS:
        raise AsyncmigError(f"unknown semantics {printable(options.semantics)}; choose from {', '.join(SEMANTICS)}")
    layout = await in_thread(
        lambda _: find_layout(
            path,
            layout=options.layout,
            snapshotter=options.snapshotter,
            namespace=options.namespace,
            containerd_root=options.containerd_root,
        )
    )
    report = Report(Outcome.NOTHING_TO_DO, layout.directory, options.semantics, layout.name)
    if _finished(layout, report):
        return report
    async with open_stores(layout, writable=not options.dry_run) as (settled, stores):
        if _finished(settled, report):  # another asyncmig was quicker, before the locks were taken
            return report
        report.snapshotter, report.namespace = settled.snapshotter, settled.namespace
        database = await _open_database(settled)
        try:
            cache = Cache(database, SEMANTICS[options.semantics], report)
            pipeline = Pipeline(cache, stores, settled.v2, progress)
            await pipeline.prepare()
            if options.dry_run:
                report.outcome = Outcome.WOULD_MIGRATE
            else:
                await pipeline.migrate()
                report.outcome = Outcome.MIGRATED
        finally:
            database.close()
    return report


async def _open_database(layout: Layout) -> MetadataDb:
    opened: list[MetadataDb] = []
    try:
        await in_thread(lambda _: opened.append(MetadataDb.open(layout.v1)))
    except BaseException:
        for database in opened:
            database.close()
        raise
    return opened[0]


def _finished(layout: Layout, report: Report) -> bool:
    """Whether there is nothing to be done; sets the outcome."""
    if os.path.lexists(layout.v2):
        report.outcome = Outcome.ALREADY_MIGRATED
    elif os.path.lexists(layout.v1):
        return False
    return True


__all__ = ["Options", "migrate"]
