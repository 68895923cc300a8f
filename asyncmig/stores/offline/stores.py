"""The three ports over one set of files."""

from __future__ import annotations

from asyncmig.errors import StrPath
from asyncmig.stores.fanout import Progress, no_progress
from asyncmig.stores.offline.content import OfflineContent
from asyncmig.stores.offline.files import OfflineFiles
from asyncmig.stores.offline.leases import OfflineLeases
from asyncmig.stores.offline.snapshots import OfflineSnapshots
from asyncmig.stores.ports import Stores


def offline_stores(
    files: OfflineFiles,
    snapshotter: str,
    progress: Progress = no_progress,
    *,
    content_directory: StrPath,
    shared: bool = False,
) -> Stores:
    """The stores in ``files``, with the snapshots of ``snapshotter`` and the data of blobs in ``content_directory``.

    ``progress`` is called from worker threads.  ``shared``: whether the files belong to a containerd with other users.
    """
    return Stores(
        OfflineContent(files, content_directory, progress),
        OfflineSnapshots(files, snapshotter, progress, shared=shared),
        OfflineLeases(files, progress),
    )
