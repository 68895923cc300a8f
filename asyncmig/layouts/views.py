"""Other views of a cache's files, through which a daemon takes locks that do not meet ours.

A ``flock`` is on an inode, and an overlay has inodes of its own: a daemon that works on an overlay does not notice that the
file in the upper directory is locked, nor that it changes.  Bind mounts show the same inodes, so with them all is well.

What the kernel tells of an overlay are the paths that somebody wrote when it was mounted, as seen in his mount namespace.  They
are opened there, and here.  Whether such a directory holds the cache is told by where both are on their file system, not by
their paths: a bind mount may show the cache without the directories above it, and another mount may hide it in the layer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.files import close
from asyncmig.errors import LayoutError, printable
from asyncmig.layouts.layout import V1, Layout
from asyncmig.layouts.trust import written

_ESCAPED = re.compile(rb"\\([0-7]{3})")
_UNESCAPED_COLON = re.compile(rb"(?<!\\)(?<!\\134):")
_UNESCAPED_COMMA = re.compile(rb"(?<!\\),")
_LAYERS = (b"upperdir", b"lowerdir", b"lowerdir+", b"datadir+")
_FUSE_OVERLAY = b"fuse-overlayfs"


@dataclass(frozen=True, slots=True)
class View:
    """A mount that shows the files of the directory ``layer``, as a process sees both.

    ``layer`` is as it was written, which may be a relative path.
    """

    layer: str
    mount_point: str
    what: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a directory is on its file system, whatever the mounts."""

    device: bytes
    path: str

    def holds(self, other: _Place) -> bool:
        """Whether the other directory is this one, or below it."""
        return self.device == other.device and f"{other.path}/".startswith(f"{self.path.rstrip('/')}/")


class _Namespace:
    """The mounts that a process sees, and the directories below its root, open until ``stack`` is closed.

    Raises :class:`OSError` for a process that may not be looked at, or that has ended.
    """

    def __init__(self, pid: int, stack: ExitStack) -> None:
        self.pid = pid
        self.root = _opened(stack, f"/proc/{pid}/root")
        self._root_path = os.readlink(f"/proc/{pid}/root")
        with open(f"/proc/{pid}/mountinfo", "rb") as lines:
            self.mounts = {fields[0]: fields for fields in map(_fields, lines) if fields}

    def identity(self, path: str) -> tuple[int, int] | None:
        """Device and inode of ``path`` as the process sees it; ``None`` if it is not there."""
        status = self._look(path)
        return (status.st_dev, status.st_ino) if status else None

    def changed(self, path: str) -> int | None:
        """When ``path`` was changed last; ``None`` if it is not there."""
        status = self._look(path)
        return status.st_ctime_ns if status else None

    def _look(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(_below(path), dir_fd=self.root)
        except (OSError, ValueError):
            return None

    def place(self, path: str) -> _Place | None:
        """Where the directory ``path`` is; ``None`` if that can't be told."""
        with suppress(OSError, ValueError, StopIteration, KeyError), ExitStack() as stack:
            fd = _opened(stack, _below(path), self.root)
            real = os.readlink(f"/proc/self/fd/{fd}")
            with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
                number = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
            mount = self.mounts[number]
            within = os.path.relpath(real, os.path.join(self._root_path, _below(_text(mount[4]))))
            return _Place(mount[2], os.path.normpath(os.path.join(_text(mount[3]), within)))
        return None


def check_views(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raise :class:`LayoutError` where a mount shows what is to be changed to others, with locks of its own.

    Sees the mounts of all processes that it may look at.  Without ``/proc`` it sees nothing.
    """
    with ExitStack() as stack:
        try:
            ours = _Namespace(os.getpid(), stack)
        except OSError:
            return
        places = {path: place for path in written(layout) if (place := ours.place(path))}
        search = _Search(ours, places)
        for namespace, views in _namespaces(checkpoint, ours):
            for view in views:
                checkpoint()
                search.look(view, namespace)


class _Search:
    """Looks for mounts that show one of ``places``, which are by path."""

    def __init__(self, ours: _Namespace, places: dict[str, _Place]) -> None:
        self._ours = ours
        self._places = places
        upwards = [(above, path) for path in reversed(places) for above in _upwards(path)]
        self._above = {identity: path for above, path in upwards if (identity := ours.identity(above))}
        # Hosts with many containers have very many mounts of the same few layers.
        self._seen: set[tuple[int, int]] = set()

    def look(self, view: View, namespace: _Namespace) -> None:
        """Raise :class:`LayoutError` if the mount shows one."""
        for layer in dict.fromkeys((view.layer, re.sub(r"\\(.)", r"\1", view.layer))):  # mount's own escapes may be left in it
            held = self._held(layer, namespace) if layer.startswith("/") else self._held_somewhere(layer, view, namespace)
            if held:
                raise LayoutError(_refusal(held, view, "" if namespace is self._ours else str(namespace.pid)))

    def _held(self, layer: str, namespace: _Namespace) -> str:
        """The path of a place that is in the layer, "" if there is none."""
        # As that process sees it; and as we do, for the mounts of a container were made outside of it.
        for seen_by in dict.fromkeys((namespace, self._ours)):
            identity = seen_by.identity(layer)
            if identity is None or identity in self._seen:
                continue
            self._seen.add(identity)
            place = seen_by.place(layer)
            if place is None and identity in self._above:  # the mount that it is in is outside of that process's root
                return self._above[identity]
            for path, wanted in self._places.items():
                if place and place.holds(wanted):
                    return path
        return ""

    def _held_somewhere(self, layer: str, view: View, namespace: _Namespace) -> str:
        """Nobody knows what the path is relative to: any directory will do, if the mount shows what it then has to show.

        An overlay shows the times of what is below it.
        """
        for path, place in self._places.items():
            _, found, way = f"{place.path}/".partition(f"/{os.path.normpath(layer)}/")
            shown = os.path.join(view.mount_point, way)
            if found and any(_changed_alike(self._ours, path, namespace, shown, name) for name in (".", V1)):
                return path
        return ""


def _changed_alike(ours: _Namespace, path: str, theirs: _Namespace, shown: str, name: str) -> bool:
    changed = ours.changed(os.path.join(path, name))
    return changed is not None and changed == theirs.changed(os.path.join(shown, name))


def _upwards(path: str) -> Iterator[str]:
    yield path
    while path != (path := os.path.dirname(path)):
        yield path


def _refusal(path: str, view: View, pid: str) -> str:
    where = f" (as process {pid} sees it)" if pid else ""
    return (
        f"{printable(path)}: lies in {printable(view.layer)}, which {view.what} at {printable(view.mount_point)}{where} shows, "
        "too, with locks of its own: a daemon that works there would not notice the change, and would damage the cache. Stop "
        f"it and unmount {printable(view.mount_point)}, or name the cache by its path below that mount point"
    )


# -- what is mounted


def _namespaces(checkpoint: Checkpoint, ours: _Namespace) -> Iterator[tuple[_Namespace, list[View]]]:
    """Each mount namespace as one of its processes sees it, with what is mounted there; ours first.

    A process with another root directory sees other mounts of the same namespace.  Those that may not be looked at are left
    out: without root these are all processes of others.
    """
    seen = set()
    for pid in _processes():
        checkpoint()
        with suppress(OSError), ExitStack() as stack:
            process = f"/proc/{pid}"
            name = os.readlink(f"{process}/ns/mnt"), os.readlink(f"{process}/root")
            views = list(_fuse_overlays(process))
            if name in seen and not views:
                continue
            namespace = ours if pid == ours.pid else _Namespace(pid, stack)
            if name not in seen:
                views += _views(namespace.mounts.values())
            seen.add(name)
            yield namespace, views


def _processes() -> list[int]:
    own = os.getpid()
    return [own, *(pid for name in os.listdir("/proc") if name.isdigit() and (pid := int(name)) != own)]


def _fields(line: bytes) -> list[bytes]:
    """The nine fields of a mount, none for a line of another form.

    ``36 35 98:0 /root /mount/point rw master:1 - ext4 /dev/sda rw,errors=continue``; those before the dash that may be missing
    are left out.
    """
    mount, _, kind = line.rstrip(b"\n").partition(b" - ")
    fields = [*mount.split(b" ")[:6], *kind.split(b" ")]
    return fields if len(fields) == 9 else []


def _views(mounts: Iterable[list[bytes]]) -> Iterator[View]:
    known = set()
    for fields in mounts:
        mount_point, kind, source, options = _text(fields[4]), fields[6], fields[7], fields[8]
        if kind == b"overlay":
            layers, what = list(_layers(options.split(b","))), "an overlay"
        elif kind.startswith(b"fuse"):
            # bindfs, mergerfs, unionfs-fuse and others name there what they show.
            layers, what = [layer for layer in source.split(b":") if layer.startswith(b"/")], "a FUSE file system"
        else:
            continue
        for layer in layers:
            if layer not in known:
                yield View(_text(layer), mount_point, what)
            if layer.startswith(b"/"):
                known.add(layer)


def _layers(options: Iterable[bytes]) -> Iterator[bytes]:
    for option in options:
        name, _, value = option.partition(b"=")
        if name in _LAYERS:
            yield from filter(None, [value] if name == b"upperdir" else _UNESCAPED_COLON.split(value))


def _fuse_overlays(process: str) -> Iterator[View]:
    """fuse-overlayfs names its layers on its command line only."""
    with open(f"{process}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    if not any(os.path.basename(word).endswith(_FUSE_OVERLAY) for word in words[:2]):  # the first may be an interpreter
        return
    for before, word in pairwise(words):
        if before == b"-o" or word.startswith(b"-o"):
            for layer in _layers(_UNESCAPED_COMMA.split(word.removeprefix(b"-o"))):
                yield View(os.fsdecode(layer), os.fsdecode(words[-1]), "a fuse-overlayfs")


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))


def _below(path: str) -> str:
    """An absolute path as one below a root directory."""
    return path.lstrip("/") or "."


def _opened(stack: ExitStack, path: str, base: int | None = None) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
    stack.callback(close, fd)
    return fd
