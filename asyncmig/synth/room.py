"""What a cache of so many records takes, and whether there is as much."""

from __future__ import annotations

import os

from rich.filesize import decimal as size_text

from asyncmig.errors import OptionError, StoreError, printable

MAX_RECORDS = 10_000_000
"""Ten times what a migration was ever measured with; it takes about 10 GB of memory to invent them."""

_BYTES = 8000
"""Of the databases and blobs, for each record; 7,300 were measured."""
_FEW_BYTES = 256 << 10
"""Of a cache without any record."""
_FEW_FILES = 16
_BLOBS = 0.3
"""Files of the content store for each record; 0.27 were measured."""
_DIRECTORIES = 3
"""Of a snapshot."""


def check_count(records: int) -> None:
    """Raise :class:`OptionError` for a number of records that no cache can have."""
    if not 0 <= records <= MAX_RECORDS:
        raise OptionError("records", f"is {records}; give a number from 0 to {MAX_RECORDS:,}")


def needed(records: int, snapshots: int, block: int) -> tuple[int, int]:
    """Bytes and inodes, rather too many than too few, on a file system with blocks of ``block`` bytes."""
    files = int(_BLOBS * records) + _DIRECTORIES * snapshots + _FEW_FILES
    return _BYTES * records + block * files + _FEW_BYTES, files


def check_room(directory: str, records: int, snapshots: int) -> None:
    """Raise :class:`StoreError` if so many records, and directories of so many snapshots, do not fit.

    ``directory`` need not be there yet: what counts is the file system that it would be in.
    """
    place = directory
    while not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    try:
        status = os.statvfs(place)
    except OSError as error:
        raise StoreError(f"{printable(place)}: cannot find out how much space is free: {error.strerror}") from error
    size, files = needed(records, snapshots, status.f_frsize)
    free = status.f_bavail * status.f_frsize
    if size > free:
        raise StoreError(
            f"{printable(place)}: {records:,} records take about {size_text(size)}, but only {size_text(free)} are free"
        )
    if status.f_files and files > status.f_favail:  # some file systems make inodes as they need them, and say 0
        raise StoreError(
            f"{printable(place)}: {records:,} records take about {files:,} inodes, but only {status.f_favail:,} are free"
        )
