"""Opens the stores of a cache: locks them and checks that they are usable."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.files import close
from asyncmig.bolt.lock import lock
from asyncmig.concurrency import close_in_thread, in_thread
from asyncmig.errors import LayoutError, printable, reason
from asyncmig.layouts.layout import DEFAULT_SNAPSHOTTER, Layout
from asyncmig.layouts.trust import check_links, check_owners
from asyncmig.layouts.views import check_views
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import OfflineFiles, offline_stores
from asyncmig.stores.ports import Stores


@dataclass(frozen=True, slots=True)
class OpenStores:
    """The stores of a cache.

    ``growth``: each file that is edited and the bytes by which it may grow, see :meth:`OfflineFiles.growth`.
    ``server``: version of the running containerd, "" if there is none.
    ``notes``: what is odd about the files but does no harm.
    """

    layout: Layout
    stores: Stores
    growth: Callable[[Checkpoint, int, int | None], list[tuple[str, int]]]
    server: str = ""
    notes: tuple[str, ...] = ()


def check_changeable(checkpoint: Checkpoint, layout: Layout, *, trust_others: bool = False) -> None:
    """Raise :class:`UntrustedError` for what must not be touched, and as :func:`check_views`."""
    check_owners(layout, trust_others=trust_others)
    check_views(checkpoint, layout)


@asynccontextmanager
async def open_stores(
    layout: Layout, *, writable: bool, concurrency: int, patience: float, progress: Progress, trust_others: bool = False
) -> AsyncIterator[OpenStores]:
    """The stores of the cache, open until the end of the block.

    Locks the files against every other process; without ``writable`` it takes only shared locks and nothing can be changed.
    ``concurrency`` and ``patience`` (seconds) concern a running containerd, see :func:`open_containerd`.
    ``progress`` is called for every object that a verb has dealt with, from any thread.

    Raises :class:`DatabaseLockedError` while a buildkitd runs, :class:`UntrustedError` for links and the like, and as
    :func:`check_changeable` if ``writable``.
    """
    await in_thread(lambda _: check_links(layout))  # the places may come from a journal
    if writable:
        await in_thread(check_changeable, layout, trust_others=trust_others)
    async with _locked_daemon(layout.daemon_locks, writable):
        if layout.address is None:
            stores = _open_files(layout, writable, progress, trust_others)
        else:
            stores = _open_running(layout, layout.address, concurrency, patience, progress)
        async with stores as opened:
            yield opened


@asynccontextmanager
async def _open_running(
    layout: Layout, address: str, concurrency: int, patience: float, progress: Progress
) -> AsyncIterator[OpenStores]:
    containerd = await in_thread(_import_containerd)
    async with containerd.open_containerd(
        address,
        namespace=layout.namespace,
        snapshotter=layout.snapshotter,
        concurrency=concurrency,
        patience=patience,
        progress=progress,
    ) as running:
        yield OpenStores(layout, running.stores, lambda *_: [], running.version)


def _import_containerd(_: Checkpoint) -> ModuleType:
    """The adapter.  Imported late, or every start would take twice as long, and in a thread, or the event loop would wait."""
    return import_module("asyncmig.stores.containerd.stores")


@asynccontextmanager
async def _locked_daemon(paths: list[str], writable: bool) -> AsyncIterator[None]:
    """Hold the lock that buildkitd holds while it runs, on each of ``paths`` that exists."""
    # The list is kept outside of the call, here and below: in_thread drops a result if the caller is cancelled at the last
    # moment, and then nobody would close the files.
    opened: list[int] = []

    def take(_: Checkpoint) -> None:
        for path in paths:
            opened.extend(_lock_daemon(path, writable))

    try:
        await in_thread(take)
        yield
    finally:
        for fd in opened:
            close(fd)


def _lock_daemon(path: str, writable: bool) -> list[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot open the daemon's lock file: {reason(error)}") from error
    try:
        lock(fd, path, exclusive=writable)
    except BaseException:
        close(fd)
        raise
    return [fd]


@asynccontextmanager
async def _open_files(layout: Layout, writable: bool, progress: Progress, trust_others: bool) -> AsyncIterator[OpenStores]:
    opened: list[tuple[Layout, OfflineFiles]] = []

    def close() -> None:
        for entry in opened:
            entry[1].close()

    try:
        await in_thread(_open, layout, writable, opened, trust_others)
        settled, files = opened[0]
        stores = offline_stores(
            files,
            settled.snapshotter,
            progress,
            content_directory=settled.content_directory,
            shared=settled.is_shared,
        )
        yield OpenStores(settled, stores, files.growth, notes=tuple(files.notes()))
    finally:
        await close_in_thread(close)


def _open(
    checkpoint: Checkpoint, layout: Layout, writable: bool, opened: list[tuple[Layout, OfflineFiles]], trust_others: bool
) -> None:
    if not layout.snapshotter:
        layout = _settle_snapshotter(layout)
        check_links(layout)  # again: the snapshotter's database is known only now
        if writable:
            check_changeable(checkpoint, layout, trust_others=trust_others)
    files = OfflineFiles.open(
        layout.containerd_metadata,
        layout.snapshotter_metadata,
        namespace=layout.namespace,
        writable=writable,
        checkpoint=checkpoint,
    )
    opened.append((layout, files))


def _settle_snapshotter(layout: Layout) -> Layout:
    """Read the snapshotter's name from the metadata database, because the directory's name does not contain it."""
    files = OfflineFiles.open(layout.containerd_metadata, "", namespace=layout.namespace, writable=False)
    try:
        found = files.snapshotters()
    finally:
        files.close()
    if len(found) > 1:
        raise LayoutError(
            f"{printable(layout.containerd_metadata)}: has snapshots of several snapshotters; "
            f"choose one with --snapshotter: {', '.join(map(printable, found))}"
        )
    return replace(layout, snapshotter=found[0] if found else DEFAULT_SNAPSHOTTER)
