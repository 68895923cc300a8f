"""What is this directory?  From a path to the places of one cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts.paths import exists, is_directory
from asyncmig.stores.containerd.address import ADDRESS_VARIABLE, DEFAULT_ADDRESS, NAMESPACE_VARIABLE, socket_path

V1 = "metadata.db"
V2 = "metadata_v2.db"
_CONTAINERD_META = "containerdmeta.db"
_DAEMON_LOCK = "buildkitd.lock"
_WORKER_NAME = re.compile(r"(runc|containerd)-(.+)")
DEFAULT_SNAPSHOTTER = "overlayfs"
"""What every BuildKit took that made v1 caches in containerd, and containerd's own default."""
DEFAULT_NAMESPACE = "buildkit"
LAYOUTS = ("auto", "oci", "containerd")
_DOCKER_SNAPSHOTS = "snapshots.db"
_NO_DOCKER = "this is the cache of a dockerd (it has a snapshots.db), which this version of asyncmig can't migrate yet"


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one cache.

    ``name`` is ``oci`` or ``containerd``; ``directory`` is the worker directory, links resolved as in ``containerd_root``, and
    ``links`` are those that led there; ``snapshotter`` is "" while it is not known.
    The stores are in a running containerd if ``address`` is given, its socket; in the files of a stopped one if
    ``containerd_root`` is, its root; otherwise in the worker directory.
    Sources of the paths: moby/buildkit ``worker/runc/runc.go``, containerd's plugin ids.
    """

    name: str
    directory: str
    namespace: str
    snapshotter: str = ""
    containerd_root: str | None = None
    address: str | None = None
    links: tuple[str, ...] = ()

    @property
    def v1(self) -> str:
        """The database to be migrated."""
        return os.path.join(self.directory, V1)

    @property
    def v2(self) -> str:
        """The database it becomes."""
        return os.path.join(self.directory, V2)

    @property
    def journal(self) -> str:
        """What a migration notes of what it changes."""
        return self.v2 + ".journal"

    @property
    def temporary(self) -> list[str]:
        """The names under which new files are written; what is left there of an earlier attempt is removed."""
        return [self.v2 + ".tmp", self.journal + ".tmp"]

    @property
    def edited(self) -> list[str]:
        """The databases that a migration edits; a running containerd edits its own."""
        return [] if self.address else [self.containerd_metadata, self.snapshotter_metadata]

    @property
    def daemon_locks(self) -> list[str]:
        """The files one of which a running buildkitd keeps locked; versions before v0.5.1 have none.

        It lies in the daemon's root, beside the worker directory or beside a link to it, whichever the daemon goes by.
        """
        locks = (os.path.join(os.path.dirname(path), _DAEMON_LOCK) for path in (self.directory, *self.links))
        # Each file once: a second lock on it would conflict with the first.
        return list(dict.fromkeys(map(os.path.realpath, locks)))

    @property
    def containerd_metadata(self) -> str:
        """containerd's metadata database."""
        if self.containerd_root is None:
            return os.path.join(self.directory, _CONTAINERD_META)
        return os.path.join(self.containerd_root, "io.containerd.metadata.v1.bolt", "meta.db")

    @property
    def content_directory(self) -> str:
        """Where the content store keeps the data of its blobs."""
        if self.containerd_root is None:
            return os.path.join(self.directory, "content")
        return os.path.join(self.containerd_root, "io.containerd.content.v1.content")

    @property
    def snapshotter_metadata(self) -> str:
        """The snapshotter's database."""
        if self.containerd_root is not None:
            return os.path.join(self.containerd_root, f"io.containerd.snapshotter.v1.{self.snapshotter}", "metadata.db")
        snapshots = os.path.join(self.directory, "snapshots")
        # stargz inside an OCI worker keeps it one level deeper.
        deeper = os.path.join(snapshots, "snapshotter")
        return os.path.join(deeper if is_directory(deeper) else snapshots, "metadata.db")


def find_layout(
    path: StrPath,
    *,
    layout: str = "auto",
    snapshotter: str | None = None,
    namespace: str | None = None,
    containerd_root: StrPath | None = None,
    address: str | None = None,
) -> Layout:
    """The cache at ``path``: a worker directory (``runc-overlayfs``) or a BuildKit root that holds one.

    ``layout`` is one of :data:`LAYOUTS`.  What is ``None`` is told from the directory; for the containerd layout, namespace and
    address are then those of the environment that ctr looks at, too.  Raises :class:`LayoutError` if there is no cache, if
    there are several, or if its stores are out of reach.  Blocking, but only looks at a few directory entries.
    """
    if layout not in LAYOUTS:
        raise LayoutError(f"unknown layout {printable(layout)}; choose {', '.join(LAYOUTS)}")
    if address is not None and containerd_root is not None:
        raise LayoutError("a running containerd (address) and a stopped one (containerd root) exclude each other")
    given = {"snapshotter": snapshotter, "namespace": namespace, "address": address, "containerd root": containerd_root}
    for what, text in {"path": path, **given}.items():
        if text is not None and not os.fspath(text):
            raise LayoutError(f"the {what} is empty")
    directory = os.path.abspath(os.fspath(path))
    if not is_directory(directory):
        raise LayoutError(f"{printable(directory)}: not a directory")
    if not _is_worker(directory):
        directory = _only_worker(directory, is_named=layout != "auto")
    worker, *links = _places(directory)
    match = _match_name(worker, *links)
    name = layout
    if layout == "auto":
        named = address is not None or containerd_root is not None
        name = "containerd" if named or _looks_like_containerd(worker, match) else "oci"
    snapshotter = snapshotter or (match[2] if match else "")
    found = Layout(name, worker, namespace or DEFAULT_NAMESPACE, snapshotter, links=tuple(links))
    if name == "containerd":
        found = _in_containerd(found, namespace, containerd_root, address)
    if exists(found.v1) and not exists(found.v2):  # otherwise nothing is to be done, so nothing to be reached
        check_reachable(found)
    return found


def _places(path: str) -> list[str]:
    """Where the directory ``path`` is, and the links that lead there, the last one first."""
    places: list[str] = []
    while os.path.islink(path):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        places.insert(0, path)
        path = os.path.join(os.path.dirname(path), os.readlink(path)).rstrip("/") or "/"
    return [os.path.realpath(path), *places]


def _match_name(*places: str) -> re.Match[str] | None:
    """The first name that tells kind and snapshotter."""
    return next((match for place in places if (match := _WORKER_NAME.fullmatch(os.path.basename(place)))), None)


def _looks_like_containerd(worker: str, match: re.Match[str] | None) -> bool:
    """Whether the stores of this worker are not in its directory."""
    if match:
        return match[1] == "containerd"
    stores = (_CONTAINERD_META, _DOCKER_SNAPSHOTS, "content", "snapshots")
    return all(exists(os.path.join(worker, name)) for name in (V1, "workerid")) and not any(
        exists(os.path.join(worker, name)) for name in stores
    )


def _in_containerd(found: Layout, namespace: str | None, containerd_root: StrPath | None, address: str | None) -> Layout:
    namespace = namespace or os.environ.get(NAMESPACE_VARIABLE) or DEFAULT_NAMESPACE
    if containerd_root is not None:
        return replace(found, namespace=namespace, containerd_root=os.path.realpath(os.fspath(containerd_root)))
    socket = socket_path(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
    return replace(found, namespace=namespace, address=socket, snapshotter=found.snapshotter or DEFAULT_SNAPSHOTTER)


def _is_worker(directory: str) -> bool:
    files = (V1, V2, _CONTAINERD_META)
    return any(exists(os.path.join(directory, name)) for name in files) or _match_name(*_places(directory)) is not None


def _only_worker(root: str, *, is_named: bool) -> str:
    """The cache below ``root``.  If the user has named the layout, a directory without any is taken for an empty worker."""
    try:
        with os.scandir(root) as entries:
            workers = sorted(e.path for e in entries if _WORKER_NAME.fullmatch(e.name) and e.is_dir())
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


def check_reachable(layout: Layout) -> None:
    """Raise :class:`LayoutError` where it can be seen that the stores are not in the places of the layout."""
    if exists(os.path.join(layout.directory, _DOCKER_SNAPSHOTS)):
        raise LayoutError(f"{printable(layout.directory)}: {_NO_DOCKER}")
    if layout.name == "containerd" and exists(os.path.join(layout.directory, _CONTAINERD_META)):
        raise LayoutError(
            f"{printable(layout.directory)}: the stores of this cache lie in the directory itself ({_CONTAINERD_META}), "
            "not in a containerd; leave out --address, --containerd-root and --layout"
        )
    if layout.containerd_root is not None and not exists(layout.containerd_metadata):
        raise LayoutError(f"{printable(layout.containerd_metadata)}: not there; is this the root directory of a containerd?")
