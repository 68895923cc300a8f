"""What is this directory?  Turns a path into the layout of one cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts.containerd import ContainerdLayout
from asyncmig.layouts.layout import DEFAULT_NAMESPACE, DOCKER_SNAPSHOTS, NO_DOCKER, V1, V2, Layout
from asyncmig.layouts.oci import CONTAINERD_META, OciLayout
from asyncmig.layouts.paths import exists, is_directory

_WORKER_NAME = re.compile(r"(runc|containerd)-(.+)")
LAYOUTS = ("auto", OciLayout.name, ContainerdLayout.name)


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

    ``layout`` is one of :data:`LAYOUTS`.  An argument that is ``None`` is derived from the directory; in the containerd layout,
    namespace and address come from the environment variables that ctr reads.  Raises :class:`LayoutError` if there is no
    cache, if there are several, or if its stores are out of reach.  Blocks, but only looks at a few directory entries.
    """
    if layout not in LAYOUTS:
        raise LayoutError(f"unknown layout {printable(layout)}; choose one of {', '.join(LAYOUTS)}")
    if address is not None and containerd_root is not None:
        raise LayoutError("containerd is either running (address) or stopped (containerd root): give only one of them")
    given = {"snapshotter": snapshotter, "namespace": namespace, "address": address, "containerd root": containerd_root}
    for what, text in {"path": path, **given}.items():
        if text is not None and not os.fspath(text):
            raise LayoutError(f"the {what} is empty; give a value, or leave it out")
    directory = os.path.abspath(os.fspath(path))
    if not is_directory(directory):
        raise LayoutError(f"{printable(directory)}: not a directory")
    if not _is_worker(directory):
        directory = _only_worker(directory, is_named=layout != "auto")
    worker, *links = _places(directory)
    match = _match_name(worker, *links)
    snapshotter = snapshotter or (match[2] if match else "")
    is_named = address is not None or containerd_root is not None
    found: Layout
    if layout == ContainerdLayout.name or (layout == "auto" and (is_named or _looks_like_containerd(worker, match))):
        found = ContainerdLayout.of(
            worker,
            tuple(links),
            snapshotter=snapshotter,
            namespace=namespace,
            containerd_root=containerd_root,
            address=address,
        )
    else:
        found = OciLayout(
            directory=worker, links=tuple(links), namespace=namespace or DEFAULT_NAMESPACE, snapshotter=snapshotter
        )
    if exists(found.v1) and not exists(found.v2):  # otherwise there is nothing to migrate, so the stores are not needed
        found.check_reachable()
    return found


def _places(path: str) -> list[str]:
    """The real path of the directory ``path``, then the links that lead there, the last one first."""
    places: list[str] = []
    while os.path.islink(path):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        places.insert(0, path)
        path = os.path.join(os.path.dirname(path), os.readlink(path)).rstrip("/") or "/"
    return [os.path.realpath(path), *places]


def _match_name(*places: str) -> re.Match[str] | None:
    """The first name that contains the kind of worker and the snapshotter."""
    return next((match for place in places if (match := _WORKER_NAME.fullmatch(os.path.basename(place)))), None)


def _looks_like_containerd(worker: str, match: re.Match[str] | None) -> bool:
    """Whether the stores of this worker seem to be in a containerd, not in its directory."""
    if match:
        return match[1] == "containerd"
    stores = (CONTAINERD_META, DOCKER_SNAPSHOTS, "content", "snapshots")
    return all(exists(os.path.join(worker, name)) for name in (V1, "workerid")) and not any(
        exists(os.path.join(worker, name)) for name in stores
    )


def _is_worker(directory: str) -> bool:
    files = (V1, V2, CONTAINERD_META)
    return any(exists(os.path.join(directory, name)) for name in files) or _match_name(*_places(directory)) is not None


def _only_worker(root: str, *, is_named: bool) -> str:
    """The cache below ``root``.  If there is none and the user has named the layout, ``root`` counts as an empty worker."""
    try:
        with os.scandir(root) as entries:
            workers = sorted(e.path for e in entries if _WORKER_NAME.fullmatch(e.name) and e.is_dir())
    except OSError as error:
        raise LayoutError(f"{printable(root)}: cannot list the directory: {error.strerror}") from error
    if exists(os.path.join(root, "buildkit", DOCKER_SNAPSHOTS)):
        raise LayoutError(f"{printable(root)}: {NO_DOCKER}")
    if not workers and is_named:
        return root
    if not workers:
        raise LayoutError(
            f"{printable(root)}: no BuildKit cache here; give a worker directory such as runc-overlayfs, "
            "or the BuildKit root that holds one (usually /var/lib/buildkit)"
        )
    unmigrated = [w for w in workers if exists(os.path.join(w, V1)) and not exists(os.path.join(w, V2))]
    if len(unmigrated) > 1:
        raise LayoutError(f"{printable(root)}: holds several caches; give the directory of one of them: {_names(unmigrated)}")
    return (unmigrated or workers)[0]


def _names(paths: Iterable[str]) -> str:
    return ", ".join(printable(os.path.basename(p)) for p in paths)
