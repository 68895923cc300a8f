"""The OCI worker, buildkitd's default: its stores are in the worker directory.

Source: moby/buildkit ``worker/runc/runc.go``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from asyncmig.layouts.layout import Layout
from asyncmig.layouts.paths import is_directory

CONTAINERD_META = "containerdmeta.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciLayout(Layout):
    """A cache of an OCI worker."""

    name: ClassVar[str] = "oci"

    @property
    def root(self) -> str:
        """The worker directory."""
        return self.directory

    @property
    def is_shared(self) -> bool:
        """Never: the stores belong to the worker alone."""
        return False

    @property
    def containerd_metadata(self) -> str:
        """The database of containerd's metadata store, which is built into the worker."""
        return os.path.join(self.directory, CONTAINERD_META)

    @property
    def content_directory(self) -> str:
        """The directory of its content store."""
        return os.path.join(self.directory, "content")

    @property
    def snapshotter_metadata(self) -> str:
        """The database of its only snapshotter."""
        snapshots = os.path.join(self.directory, "snapshots")
        # stargz inside an OCI worker keeps its database one level deeper.
        deeper = os.path.join(snapshots, "snapshotter")
        return os.path.join(deeper if is_directory(deeper) else snapshots, "metadata.db")
