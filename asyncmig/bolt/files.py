"""Calls on open files whose errors need more than their own words."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from asyncmig.errors import DatabaseError, reason

_NOT_ON_DISK = (
    "what this machine shows of it from now on may not be on the disk; check the disk, and unmount and mount its file system "
    "or reboot, before it is used again"
)
"""Linux forgets after a failed sync that the pages were to be written: they look clean, and the next sync succeeds."""


def sync(fd: int, path: str) -> None:
    """``fdatasync``.  Raises :class:`DatabaseError`."""
    _sync(os.fdatasync, fd, path)


def sync_all(fd: int, path: str) -> None:
    """``fsync``, which a new file and a directory need.  Raises :class:`DatabaseError`."""
    _sync(os.fsync, fd, path)


def sync_directory(path: str) -> None:
    """Make a rename or removal in the directory durable.  Raises :class:`DatabaseError`."""
    path = path or "."
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DatabaseError(path, f"cannot open: {reason(error)}") from error
    try:
        sync_all(fd, path)
    finally:
        close(fd)


def _sync(call: Callable[[int], None], fd: int, path: str) -> None:
    try:
        call(fd)
    except OSError as error:
        raise DatabaseError(path, f"cannot sync: {error.strerror}; {_NOT_ON_DISK}") from error


def status(fd: int, path: str) -> os.stat_result:
    """``fstat``, which fails on file systems that are reached over a network.  Raises :class:`DatabaseError`."""
    try:
        return os.fstat(fd)
    except OSError as error:
        raise DatabaseError(path, f"cannot look: {error.strerror}") from error


def close(fd: int) -> None:
    """Close; the file is closed even if that fails, and whatever must last was synced before."""
    with suppress(OSError):
        os.close(fd)
