"""Everything in a cache that is not a database: blob files and snapshot directories."""

from __future__ import annotations

import os
from collections.abc import Iterable

from asyncmig.bolt import Checkpoint
from asyncmig.synth.records import Blob, Kind, Record, Tick


def write_file(path: str, data: bytes, mode: int) -> int:
    """Write a new file; return its size in bytes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        return os.write(fd, data)
    finally:
        os.close(fd)


def write_blobs(directory: str, blobs: Iterable[Blob], checkpoint: Checkpoint) -> int:
    """Write the files of the content store; return their size in bytes."""
    written = 0
    for blob in blobs:
        checkpoint()
        written += write_file(f"{directory}/{blob.digest[7:].decode()}", blob.content(), 0o444)
    return written


def make_snapshots(directory: str, snapshots: Iterable[Record], snapshotter: str, tick: Tick) -> None:
    """Make the (empty) directories of the snapshots."""
    native = snapshotter == "native"
    for record in snapshots:
        tick()
        path = f"{directory}/{record.backend_id}"
        os.mkdir(path, 0o755 if native else 0o700)
        if not native:
            os.mkdir(f"{path}/fs", 0o755)
            if record.kind is not Kind.VIEW:
                os.mkdir(f"{path}/work", 0o711)
