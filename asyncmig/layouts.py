"""What is this directory?  From a path to the files of one cache, and from those to its stores."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread, run_uncancellable
from asyncmig.errors import DatabaseLockedError, LayoutError, StrPath, printable
from asyncmig.paths import exists
from asyncmig.stores.offline import OfflineFiles, offline_stores
from asyncmig.stores.ports import Stores

V1 = "metadata.db"
V2 = "metadata_v2.db"
_CONTAINERD_META = "containerdmeta.db"
_DAEMON_LOCK = "buildkitd.lock"
_WORKER_NAME = re.compile(r"(runc|containerd)-(.+)")
_DEFAULT_SNAPSHOTTER = "overlayfs"
_DOCKER_SNAPSHOTS = "snapshots.db"
_NO_DOCKER = "this is the cache of a dockerd (it has a snapshots.db), which this version of asyncmig can't migrate yet"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one cache.

    ``directory`` is the worker directory; ``snapshotter`` is "" while it is not known; ``containerd_root`` is the root of a
    stopped containerd that has the stores, ``None`` if they lie in the worker directory.
    Sources of the paths: moby/buildkit ``worker/runc/runc.go``, containerd's plugin ids.
    """

    name: str
    directory: str
    namespace: str
    snapshotter: str = ""
    containerd_root: str | None = None

    @property
    def v1(self) -> str:
        """The database to be migrated."""
        return os.path.join(self.directory, V1)

    @property
    def v2(self) -> str:
        """The database it becomes."""
        return os.path.join(self.directory, V2)

    @property
    def edited(self) -> list[str]:
        """The databases that a migration edits."""
        return [self.containerd_metadata, self.snapshotter_metadata]

    @property
    def daemon_lock(self) -> str:
        """The file that a running buildkitd keeps locked; versions before v0.5.1 have none."""
        return os.path.join(os.path.dirname(self.directory), _DAEMON_LOCK)

    @property
    def containerd_metadata(self) -> str:
        """containerd's metadata database."""
        if self.containerd_root is None:
            return os.path.join(self.directory, _CONTAINERD_META)
        return os.path.join(self.containerd_root, "io.containerd.metadata.v1.bolt", "meta.db")

    @property
    def snapshotter_metadata(self) -> str:
        """The snapshotter's database."""
        if self.containerd_root is not None:
            return os.path.join(self.containerd_root, f"io.containerd.snapshotter.v1.{self.snapshotter}", "metadata.db")
        snapshots = os.path.join(self.directory, "snapshots")
        # stargz inside an OCI worker keeps it one level deeper.
        deeper = os.path.join(snapshots, "snapshotter")
        return os.path.join(deeper if os.path.isdir(deeper) else snapshots, "metadata.db")


def find_layout(
    path: StrPath,
    *,
    layout: str = "auto",
    snapshotter: str | None = None,
    namespace: str = "buildkit",
    containerd_root: StrPath | None = None,
) -> Layout:
    """The cache at ``path``: a worker directory (``runc-overlayfs``) or a BuildKit root that holds one.

    ``layout`` is ``auto`` or ``oci``.  Raises :class:`LayoutError` if there is no cache, if there are several, or if its
    stores are out of reach.  Blocking, but only looks at a few directory entries.
    """
    if layout not in ("auto", "oci"):
        raise LayoutError(f"unknown layout {printable(layout)}; choose auto or oci")
    if not os.fspath(path):
        raise LayoutError("the path is empty")
    directory = os.path.abspath(os.fspath(path))
    if not exists(directory) or not os.path.isdir(directory):
        raise LayoutError(f"{printable(directory)}: not a directory")
    worker = directory if _is_worker(directory) else _only_worker(directory, is_named=layout != "auto")
    match = _WORKER_NAME.fullmatch(os.path.basename(worker))
    root = os.path.abspath(os.fspath(containerd_root)) if containerd_root is not None else None
    name = snapshotter or (match[2] if match else "")
    found = Layout("oci" if root is None else "containerd", worker, namespace, name, root)
    _check_reachable(found, match)
    return found


def _is_worker(directory: str) -> bool:
    files = (V1, V2, _CONTAINERD_META)
    return any(exists(os.path.join(directory, name)) for name in files) or bool(
        _WORKER_NAME.fullmatch(os.path.basename(directory))
    )


def _only_worker(root: str, *, is_named: bool) -> str:
    """The cache below ``root``.  If the user has named the layout, a directory without any is taken for an empty worker."""
    try:
        workers = sorted(e.path for e in os.scandir(root) if e.is_dir() and _WORKER_NAME.fullmatch(e.name))
    except OSError as error:
        raise LayoutError(f"{printable(root)}: cannot look into it: {error.strerror}") from error
    if exists(os.path.join(root, "buildkit", _DOCKER_SNAPSHOTS)):
        raise LayoutError(f"{printable(root)}: {_NO_DOCKER}")
    if not workers and is_named:
        return root
    if not workers:
        raise LayoutError(
            f"{printable(root)}: no BuildKit cache here; name a worker directory such as runc-overlayfs, "
            "or the BuildKit root that holds one (usually /var/lib/buildkit)"
        )
    unmigrated = [w for w in workers if exists(os.path.join(w, V1)) and not exists(os.path.join(w, V2))]
    if len(unmigrated) > 1:
        raise LayoutError(f"{printable(root)}: holds several caches, name one of them: {_names(unmigrated)}")
    return (unmigrated or workers)[0]


def _names(paths: Iterable[str]) -> str:
    return ", ".join(printable(os.path.basename(p)) for p in paths)


def _check_reachable(layout: Layout, worker: re.Match[str] | None) -> None:
    if exists(layout.v2) or not exists(layout.v1):
        return  # nothing to be done, so nothing to be reached
    if exists(os.path.join(layout.directory, _DOCKER_SNAPSHOTS)):
        raise LayoutError(f"{printable(layout.directory)}: {_NO_DOCKER}")
    if worker and worker[1] == "containerd" and layout.containerd_root is None:
        raise LayoutError(
            f"{printable(layout.directory)}: the snapshots of this cache lie in containerd; stop containerd and name its "
            "root directory with --containerd-root (usually /var/lib/containerd)"
        )
    if layout.containerd_root is not None and not exists(layout.containerd_metadata):
        raise LayoutError(f"{printable(layout.containerd_metadata)}: not there; is this the root directory of a containerd?")


@dataclass(frozen=True, slots=True)
class OpenStores:
    """The stores of a cache, locked; ``layout`` with the snapshotter settled."""

    layout: Layout
    files: OfflineFiles
    lock_fd: int

    def stores(self) -> Stores:
        """The ports."""
        return offline_stores(self.files, self.layout.snapshotter)

    def close(self) -> None:
        """Release all locks."""
        self.files.close()
        if self.lock_fd >= 0:
            os.close(self.lock_fd)


@asynccontextmanager
async def open_stores(layout: Layout, *, writable: bool) -> AsyncIterator[OpenStores]:
    """The stores of the cache, locked against every other process until the end.

    Raises :class:`DatabaseLockedError` while a daemon runs.  Without ``writable`` only shared locks are taken and nothing
    can be changed.
    """
    # Kept outside of the call: when the caller is cancelled in the last moment, a result would be lost.
    opened: list[OpenStores] = []
    try:
        await in_thread(_open, layout, writable, opened)
        yield opened[0]
    finally:

        def close(_: Checkpoint) -> None:
            for stores in opened:
                stores.close()

        await run_uncancellable(lambda: in_thread(close))


def _open(checkpoint: Checkpoint, layout: Layout, writable: bool, opened: list[OpenStores]) -> None:
    lock_fd = _lock_daemon(layout.daemon_lock, writable)
    try:
        if not layout.snapshotter:
            layout = _settle_snapshotter(layout)
        files = OfflineFiles.open(
            layout.containerd_metadata,
            layout.snapshotter_metadata,
            namespace=layout.namespace,
            writable=writable,
            checkpoint=checkpoint,
        )
    except BaseException:
        if lock_fd >= 0:
            os.close(lock_fd)
        raise
    opened.append(OpenStores(layout, files, lock_fd))


def _lock_daemon(path: str, writable: bool) -> int:
    """Take the lock that buildkitd holds while it runs, if the file is there; -1 if not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot open the daemon's lock file: {error.strerror}") from error
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise DatabaseLockedError(path) from None
    return fd


def _settle_snapshotter(layout: Layout) -> Layout:
    """Tell the snapshotter from the metadata database when the directory's name does not tell it."""
    files = OfflineFiles.open(layout.containerd_metadata, "", namespace=layout.namespace, writable=False)
    try:
        found = files.snapshotters()
    finally:
        files.close()
    if len(found) > 1:
        raise LayoutError(
            f"{printable(layout.containerd_metadata)}: has snapshots of several snapshotters, "
            f"name one with --snapshotter: {', '.join(map(printable, found))}"
        )
    return replace(layout, snapshotter=found[0] if found else _DEFAULT_SNAPSHOTTER)
