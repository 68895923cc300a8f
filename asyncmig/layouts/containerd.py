"""The containerd worker: its stores are in a containerd, which is running or stopped.

Source of the paths: containerd's plugin ids.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import ClassVar

from asyncmig.errors import LayoutError, StrPath, printable
from asyncmig.layouts.layout import DEFAULT_NAMESPACE, DEFAULT_SNAPSHOTTER, Layout
from asyncmig.layouts.oci import CONTAINERD_META
from asyncmig.layouts.paths import exists
from asyncmig.stores.containerd.address import ADDRESS_VARIABLE, DEFAULT_ADDRESS, NAMESPACE_VARIABLE, socket_path


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerdLayout(Layout):
    """A cache of a containerd worker.

    ``address`` is the socket of the running containerd.  If it is ``None``, containerd is stopped and ``containerd_root`` is
    its root directory with links resolved.
    """

    address: str | None = None
    containerd_root: str = ""

    name: ClassVar[str] = "containerd"

    @classmethod
    def of(
        cls,
        directory: str,
        links: tuple[str, ...],
        *,
        snapshotter: str,
        namespace: str | None,
        containerd_root: StrPath | None,
        address: str | None,
    ) -> ContainerdLayout:
        """The layout of the cache in ``directory``.

        Namespace and address default to the environment variables that ctr reads, then to ctr's defaults.  Raises
        :class:`LayoutError` if the address is not that of a unix socket.
        """
        namespace = namespace or os.environ.get(NAMESPACE_VARIABLE) or DEFAULT_NAMESPACE
        if containerd_root is not None:
            root = os.path.realpath(os.fspath(containerd_root))
            return cls(directory=directory, links=links, namespace=namespace, snapshotter=snapshotter, containerd_root=root)
        socket = socket_path(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        snapshotter = snapshotter or DEFAULT_SNAPSHOTTER
        return cls(directory=directory, links=links, namespace=namespace, snapshotter=snapshotter, address=socket)

    def at(self, place: str) -> ContainerdLayout:
        """The same cache with its stores at ``place``: a socket, or the root directory of a stopped containerd."""
        if os.path.isdir(place):
            return replace(self, address=None, containerd_root=place)
        return replace(self, address=place, containerd_root="")

    @property
    def root(self) -> str:
        """The root directory of the stopped containerd."""
        return self.containerd_root

    @property
    def is_shared(self) -> bool:
        """Always: a containerd may have any number of users."""
        return True

    @property
    def containerd_metadata(self) -> str:
        """The database of the metadata plugin."""
        return os.path.join(self.containerd_root, "io.containerd.metadata.v1.bolt", "meta.db")

    @property
    def content_directory(self) -> str:
        """The directory of the content plugin."""
        return os.path.join(self.containerd_root, "io.containerd.content.v1.content")

    @property
    def snapshotter_metadata(self) -> str:
        """The database of the snapshotter's plugin."""
        if not self.snapshotter:
            return ""
        return os.path.join(self.containerd_root, f"io.containerd.snapshotter.v1.{self.snapshotter}", "metadata.db")

    def check_reachable(self) -> None:
        """Raise :class:`LayoutError` if the stores are in the cache's own directory, or if the root is not a containerd's."""
        super(ContainerdLayout, self).check_reachable()
        if exists(os.path.join(self.directory, CONTAINERD_META)):
            raise LayoutError(
                f"{printable(self.directory)}: the stores of this cache are in the directory itself ({CONTAINERD_META}), "
                "not in a containerd; leave out --address, --containerd-root and --layout"
            )
        if self.address is None and not exists(self.containerd_metadata):
            raise LayoutError(
                f"{printable(self.containerd_metadata)}: no such file; give containerd's root directory with --containerd-root "
                "(usually /var/lib/containerd)"
            )
