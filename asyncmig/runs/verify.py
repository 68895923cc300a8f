"""Checking a v2 cache, from its path to the findings."""

from __future__ import annotations

from contextlib import AsyncExitStack
from time import perf_counter

from asyncmig.audit.audit import audit
from asyncmig.audit.findings import Verification
from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts.detect import Layout, check_reachable
from asyncmig.layouts.paths import exists
from asyncmig.migration.journal import JournalFile
from asyncmig.migration.progress import GuardedProgress, Progress, Stage
from asyncmig.runs.collector import few_full_collections
from asyncmig.runs.migrate import as_noted, layout_of, open_databases, open_for
from asyncmig.runs.options import Options


async def verify(path: StrPath, options: Options, progress: Progress) -> Verification:
    """See :func:`asyncmig.api.verify`."""
    options.check()
    start = perf_counter()
    progress = GuardedProgress(progress)
    layout = await in_thread(_layout, path, options)
    result = Verification(layout.directory, layout.name)
    async with AsyncExitStack() as stack:
        stack.enter_context(few_full_collections())
        progress.stage(Stage.OPEN, None)
        opened = await stack.enter_async_context(open_for(options, layout, writable=False, progress=progress))
        layout = opened.layout
        result.snapshotter, result.namespace = layout.snapshotter, layout.namespace
        result.address, result.server = layout.address or "", opened.server
        [database] = await stack.enter_async_context(open_databases([layout.v2], exclusive=False))
        await audit(database, opened.stores, result, progress)
    result.seconds = perf_counter() - start
    return result


def _layout(checkpoint: Checkpoint, path: StrPath, options: Options) -> Layout:
    layout = layout_of(path, options)
    if not exists(layout.v2):
        advice = "run 'asyncmig migrate' first" if exists(layout.v1) else "name the worker directory of a cache"
        raise LayoutError(f"{printable(layout.directory)}: there is no metadata_v2.db; {advice}")
    journal = JournalFile(layout.v2).read(checkpoint)
    if journal is not None:
        layout = as_noted(layout, journal, options)
    check_reachable(layout)
    return layout
