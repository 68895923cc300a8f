"""Where the files of one cache are: what all kinds of caches have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from asyncmig.errors import LayoutError, printable
from asyncmig.layouts.paths import exists

V1 = "metadata.db"
V2 = "metadata_v2.db"
_DAEMON_LOCK = "buildkitd.lock"
DOCKER_SNAPSHOTS = "snapshots.db"
NO_DOCKER = "this is the cache of a dockerd (it has a snapshots.db); this version of asyncmig can't migrate it"
DEFAULT_SNAPSHOTTER = "overlayfs"
"""Every BuildKit that made v1 caches in containerd used this one; it is also containerd's own default."""
DEFAULT_NAMESPACE = "buildkit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(ABC):
    """Where the files of one cache are.

    ``directory`` is the worker directory with links resolved; ``links`` are the links that led there.  ``snapshotter`` is ""
    as long as it is unknown.
    """

    directory: str
    namespace: str
    snapshotter: str = ""
    links: tuple[str, ...] = ()

    name: ClassVar[str]
    """The kind of cache, as ``--layout`` names it."""

    # -- BuildKit's own files

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
        """The journal, which says what a migration changes."""
        return self.v2 + ".journal"

    @property
    def temporary(self) -> list[str]:
        """The names under which new files are written.  An earlier attempt may have left files there; they are removed."""
        return [self.v2 + ".tmp", self.journal + ".tmp"]

    @property
    def daemon_locks(self) -> list[str]:
        """The possible lock files of a buildkitd.  A running one keeps one of them locked; versions before v0.5.1 have none.

        The file is in the daemon's root: beside the worker directory, or beside a link to it if the daemon uses the link.
        """
        locks = (os.path.join(os.path.dirname(path), _DAEMON_LOCK) for path in (self.directory, *self.links))
        # Each file only once: a second lock on it would conflict with the first.
        return list(dict.fromkeys(map(os.path.realpath, locks)))

    # -- the stores

    @property
    def address(self) -> str | None:
        """The socket of the running containerd that has the stores; ``None`` if they are in files."""
        return None

    @property
    def place(self) -> str:
        """Where the stores are: a socket or a root directory; "" for the worker directory itself."""
        return self.address or (self.root if self.root != self.directory else "")

    @property
    @abstractmethod
    def root(self) -> str:
        """The directory that holds the files of the stores; no link may lead out of it."""

    @property
    @abstractmethod
    def is_shared(self) -> bool:
        """Whether the stores may have other users than this cache."""

    @property
    @abstractmethod
    def containerd_metadata(self) -> str:
        """containerd's metadata database."""

    @property
    @abstractmethod
    def content_directory(self) -> str:
        """Where the content store keeps the data of its blobs."""

    @property
    @abstractmethod
    def snapshotter_metadata(self) -> str:
        """The snapshotter's database; "" as long as the snapshotter is unknown and the path depends on it."""

    @property
    def edited(self) -> list[str]:
        """The databases that a migration edits itself: none if a running containerd edits its own."""
        return [] if self.address else [path for path in (self.containerd_metadata, self.snapshotter_metadata) if path]

    def check_reachable(self) -> None:
        """Raise :class:`LayoutError` if the stores are obviously not where the layout has them."""
        if exists(os.path.join(self.directory, DOCKER_SNAPSHOTS)):
            raise LayoutError(f"{printable(self.directory)}: {NO_DOCKER}")
