"""The public entry point that checks a v2 cache."""

from __future__ import annotations

from contextlib import AsyncExitStack
from time import perf_counter

from asyncmig.api import Options, as_noted, open_databases
from asyncmig.concurrency import in_thread
from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts import Layout, check_reachable
from asyncmig.migration.audit import audit
from asyncmig.migration.findings import Verification
from asyncmig.migration.journal import JournalFile
from asyncmig.migration.progress import GuardedProgress, Progress, Stage
from asyncmig.paths import exists


async def verify(path: StrPath, options: Options | None = None, *, progress: Progress | None = None) -> Verification:
    """Check the v2 cache at ``path``, migrated or not, from end to end; the buildkitd that uses it must be stopped.

    Every record by the rules by which BuildKit loads it, its snapshot, blob and lease, chain IDs, the index, and what nobody
    owns.  Of the options, those count that tell where the cache is.  Nothing is changed, ever; works under asyncio and trio.

    Raises :class:`AsyncmigError`: :class:`LayoutError` if there is no v2 database, :class:`DatabaseLockedError` while a daemon
    runs.  Cancellation takes effect at once.
    """
    options = options or Options()
    options.check()
    start = perf_counter()
    progress = GuardedProgress(progress or Progress())
    layout = await in_thread(lambda _: _layout(path, options))
    result = Verification(layout.directory, layout.name)
    async with AsyncExitStack() as stack:
        progress.stage(Stage.OPEN, None)
        opened = await stack.enter_async_context(options.open_stores(layout, writable=False, progress=progress))
        layout = opened.layout
        result.snapshotter, result.namespace = layout.snapshotter, layout.namespace
        result.address, result.server = layout.address or "", opened.server
        [database] = await stack.enter_async_context(open_databases([layout.v2], exclusive=False))
        await audit(database, opened.stores, result, progress)
    result.seconds = perf_counter() - start
    return result


def _layout(path: StrPath, options: Options) -> Layout:
    layout = options.layout_of(path)
    if not exists(layout.v2):
        advice = "run 'asyncmig migrate' first" if exists(layout.v1) else "name the worker directory of a cache"
        raise LayoutError(f"{printable(layout.directory)}: there is no metadata_v2.db; {advice}")
    journal = JournalFile(layout.v2).read()
    if journal is not None:
        layout = as_noted(layout, journal, options)
    check_reachable(layout)
    return layout


__all__ = ["verify"]
