"""The directories in which a snapshotter keeps the files of its snapshots, ``snapshots/<id>`` beside its database."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import stepping
from asyncmig.errors import StoreError, printable

TREES = {"overlayfs": "fs", "fuse-overlayfs": "fs", "stargz": "fs", "native": ""}
"""Snapshotters that keep a snapshot in a directory of its own, and where in it the files are.

Those that are not here keep them in volumes (btrfs, zfs, devmapper), or where is not known.
"""
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_UNREACHABLE = (errno.EACCES, errno.EPERM)


def missing_of(checkpoint: Checkpoint, paths: Mapping[str, str]) -> dict[str, str]:
    """Those of the paths at which there is no directory.  Raises :class:`StoreError` if that can't be known of one."""
    missing = {}
    for name, path in stepping(checkpoint, paths.items()):
        if not _is_there(path):
            missing[name] = path
    return missing


def _is_there(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in _MISSING:
            return False
        if error.errno == errno.ENOTCONN:
            return True  # a file system of stargz's was mounted here, and its daemon is gone: that needs a directory
        remedy = "run asyncmig as the user whose daemon it is, or as root" if error.errno in _UNREACHABLE else "check the disk"
        raise StoreError(f"{printable(path)}: cannot look for this directory: {error.strerror}; {remedy}") from error
