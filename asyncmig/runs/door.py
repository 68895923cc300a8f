"""The way into a cache, which every entry point takes: from a path and options to locked, trusted stores and databases."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.concurrency import in_thread
from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts.containerd import ContainerdLayout
from asyncmig.layouts.detect import find_layout
from asyncmig.layouts.layout import Layout
from asyncmig.layouts.opening import OpenStores, open_stores
from asyncmig.layouts.trust import check_links
from asyncmig.migration.journal import Journal
from asyncmig.migration.progress import Stage
from asyncmig.migration.report import Outcome, Report, Result
from asyncmig.migration.reporter import Reporter
from asyncmig.runs.options import Options


def find_cache(_: Checkpoint, path: StrPath, options: Options) -> Layout:
    """The cache at ``path``, none of its files a link or a pipe.  Raises :class:`LayoutError`."""
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


def new_report(path: StrPath, options: Options, layout: Layout) -> Report:
    """The report of a run that has done nothing so far."""
    given = {"path": path, **asdict(options)}
    return Report(
        path=layout.directory,
        layout=layout.name,
        outcome=Outcome.NOTHING_TO_DO,
        semantics=options.semantics,
        arguments={name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in given.items()},
    )


def as_noted(layout: Layout, journal: Journal, options: Options) -> Layout:
    """The places as the migration had them.

    Raises :class:`LayoutError` if the caller names another snapshotter or namespace: what the journal names is not there.  An
    address or root that the caller gives counts: a socket may have moved, and a containerd may be stopped meanwhile.
    """
    for name, noted in (("snapshotter", journal.snapshotter), ("namespace", journal.namespace)):
        given = getattr(options, name)
        if given and noted and given != noted:
            raise LayoutError(
                f"{printable(layout.directory)}: the migration was made with --{name} {printable(noted)}, "
                f"not {printable(given)}; leave out --{name}"
            )
    if isinstance(layout, ContainerdLayout) and journal.place and options.address is None and options.containerd_root is None:
        layout = layout.at(journal.place)
    return replace(
        layout,
        snapshotter=journal.snapshotter or layout.snapshotter,
        namespace=journal.namespace or layout.namespace,
    )


async def open_cache(
    stack: AsyncExitStack, layout: Layout, options: Options, reporter: Reporter[Any], *, writable: bool
) -> OpenStores:
    """The stores of the cache, until ``stack`` is closed; the result tells which they are.

    Raises as :func:`asyncmig.layouts.opening.open_stores`.
    """
    with reporter.stage(Stage.OPEN):
        opened = await stack.enter_async_context(
            open_stores(
                layout,
                writable=writable,
                concurrency=options.concurrency,
                patience=options.timeout,
                progress=reporter.advance,
                trust_others=options.trust_others,
            )
        )
    result: Result = reporter.result
    layout = opened.layout
    result.snapshotter, result.namespace = layout.snapshotter, layout.namespace
    result.address, result.server = layout.address or "", opened.server
    for note in opened.notes:
        reporter.note("meta-page", note)
    return opened


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
