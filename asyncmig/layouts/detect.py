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
from asyncmig.layouts.workers import WORKER_NAME, find_workers

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
        raise LayoutError(f"{printable(directory)}: {_instead_of_a_file(directory)}")
    if not is_worker(directory):
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
    """The first name that tells kind and snapshotter."""
    return next((match for place in places if (match := WORKER_NAME.fullmatch(os.path.basename(place)))), None)


def _looks_like_containerd(worker: str, match: re.Match[str] | None) -> bool:
    """Whether the stores of this worker seem to be in a containerd, not in its directory."""
    if match:
        return match[1] == "containerd"
    stores = (CONTAINERD_META, DOCKER_SNAPSHOTS, "content", "snapshots")
    return all(exists(os.path.join(worker, name)) for name in (V1, "workerid")) and not any(
        exists(os.path.join(worker, name)) for name in stores
    )


def is_worker(directory: str) -> bool:
    """Whether it is a worker directory, and no BuildKit root, by what it holds or by its name."""
    files = (V1, V2, CONTAINERD_META)
    return any(exists(os.path.join(directory, name)) for name in files) or _match_name(*_places(directory)) is not None


def _only_worker(root: str, *, is_named: bool) -> str:
    """The cache below ``root``.  If the user has named the layout, a directory without any is taken for an empty worker."""
    found = find_workers(root)
    if exists(os.path.join(root, "buildkit", DOCKER_SNAPSHOTS)):
        raise LayoutError(f"{printable(root)}: {NO_DOCKER}")
    if len(found.caches) > 1:
        raise LayoutError(f"{printable(root)}: holds several caches, name one of them: {_names(found.caches)}")
    if not found.caches and found.copies:
        raise LayoutError(f"{printable(root)}: holds no cache that a daemon uses; passed over: {'; '.join(found.passed_over)}")
    if found.caches or found.empty:
        return (found.caches or found.empty)[0]
    if is_named:
        return root
    raise LayoutError(f"{printable(root)}: no BuildKit cache here; {_instead_of_a_directory(root)}")


# -- which directory to name instead


def _instead_of_a_file(path: str) -> str:
    if not os.path.lexists(path):
        return "there is no such directory"
    cache = _cache_above(path)
    if cache:
        return f"not a directory but a file of a cache; name the directory {printable(cache)}"
    return "not a directory; name the one that holds metadata.db"


def _instead_of_a_directory(path: str) -> str:
    if cache := _cache_above(path):
        return f"it is a part of one; name the directory {printable(cache)}"
    roots = [root for root in _roots_below(path) if _names_of_workers(root)]
    if len(roots) == 1:
        return f"name the directory {printable(roots[0])}"
    if roots:
        return f"name one of the directories below it: {', '.join(map(printable, roots))}"
    return (
        "name a worker directory such as runc-overlayfs, or the BuildKit root that holds one (usually /var/lib/buildkit; of a "
        "volume of Docker the directory _data in it)"
    )


def _cache_above(path: str) -> str:
    """The worker directory that ``path`` lies in, "" if there is none."""
    while path != (path := os.path.dirname(path)):
        is_worker = any(os.path.lexists(os.path.join(path, name)) for name in (V1, V2, CONTAINERD_META))
        if is_worker and os.path.basename(path) not in ("snapshots", "snapshotter"):  # whose database has the same name
            return path
    return ""


def _roots_below(path: str) -> list[str]:
    """Where a BuildKit root may be: in ``path``, or in a volume of Docker there."""
    below = [os.path.join(path, name) for name in _subdirectories(path)]
    return sorted([*below, *(os.path.join(directory, "_data") for directory in below)])


def _names_of_workers(root: str) -> list[str]:
    return [name for name in _subdirectories(root) if WORKER_NAME.fullmatch(name)]


def _subdirectories(path: str) -> list[str]:
    """Names of the directories in ``path``; none where that can't be told, for they only serve for advice."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _names(paths: Iterable[str]) -> str:
    return ", ".join(printable(os.path.basename(p)) for p in paths)
