"""Making realistic v1 caches of any size, for benchmarks and for trying things out.

The same seed and number of records give the same cache to the last byte, on any version of Python.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from asyncmig.bolt import Checkpoint
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit.metadata import Progress, no_progress
from asyncmig.errors import LayoutError, StoreError, StrPath, printable
from asyncmig.synth.files import containerd_fills, create_file, metadata_fills, snapshotter_fills
from asyncmig.synth.records import Inventory, Quota, invent
from asyncmig.synth.room import check_count, check_room
from asyncmig.synth.trees import make_snapshots, write_blobs, write_file

__all__ = ["Synthesis", "synthesize"]

_WORKER_NAME = re.compile(r"(runc|containerd)-(.+)")
_DEFAULT_WORKER = "runc-overlayfs"


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What was made.

    ``directory`` is the worker directory.  ``holders`` counts the records with ``cache.equalMutable``; ``blobs`` includes
    configs and manifests; ``snapshots`` includes the ``views``, which belong to no record; ``externals`` counts the records
    with checksums of their files.  ``bytes_written`` is the size of all files.
    """

    directory: str
    records: int
    holders: int
    blobs: int
    snapshots: int
    views: int
    externals: int
    bytes_written: int


def synthesize(
    path: StrPath,
    *,
    records: int,
    seed: int = 0,
    bare: bool = False,
    checkpoint: Checkpoint = no_checkpoint,
    progress: Progress = no_progress,
) -> Synthesis:
    """Make a v1 cache of an OCI worker with exactly ``records`` records at ``path``.

    ``path`` is the worker directory if its name is that of one (``runc-overlayfs``), else a BuildKit root in which
    ``runc-overlayfs`` is made.  ``bare`` leaves out the directories of snapshots, which no migration looks at, but
    a check does: it reports them as missing.
    ``progress`` is told ``records`` in total.  Blocking.

    Raises :class:`OptionError` for a number of records that no cache has, :class:`LayoutError` if the worker directory exists
    and is not empty, and :class:`StoreError` or :class:`DatabaseError` if it cannot be written, or does not fit.  Whatever is
    raised, also by ``checkpoint``, the worker directory is left empty.
    """
    check_count(records)
    directory, snapshotter = _worker(os.path.abspath(os.fspath(path)))
    quota = Quota(records)
    steps = 2 * records + (2 if bare else 3) * quota.snapshots
    meter = _Meter(records, steps, checkpoint, progress)
    check_room(directory, records, 0 if bare else quota.snapshots)
    with _new_directory(directory):
        inventory = invent(records, seed, meter.tick)
        return _write(inventory, directory, snapshotter, bare, meter)


def _worker(path: str) -> tuple[str, str]:
    """Worker directory and name of the snapshotter."""
    match = _WORKER_NAME.fullmatch(os.path.basename(path))
    if match is None:
        return os.path.join(path, _DEFAULT_WORKER), _DEFAULT_WORKER.removeprefix("runc-")
    if match[1] != "runc":
        raise LayoutError(
            f"{printable(path)}: the stores of such a worker are in a containerd; give a directory whose name begins with runc-"
        )
    return path, match[2]


@contextmanager
def _new_directory(directory: str) -> Iterator[None]:
    """Make the directory and the missing ones above it; after an error empty it again."""
    try:
        os.makedirs(os.path.dirname(directory), 0o700, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            if not os.path.isdir(directory) or os.listdir(directory):
                raise LayoutError(
                    f"{printable(directory)}: already exists and is not empty; give a new or an empty directory"
                ) from None
    except OSError as error:
        raise StoreError(f"{printable(directory)}: cannot create it: {error.strerror}") from error
    try:
        yield
    except BaseException as error:
        _empty(directory)
        if isinstance(error, OSError):
            raise StoreError(f"{printable(str(error.filename or directory))}: cannot write: {error.strerror}") from error
        raise


def _empty(directory: str) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


class _Meter:
    """Turns steps of the work into numbers of records for ``progress``, and calls ``checkpoint`` at each step."""

    def __init__(self, records: int, steps: int, checkpoint: Checkpoint, progress: Progress) -> None:
        self._records = records
        self._steps = steps
        self._done = self._told = 0
        self._progress = progress
        self.checkpoint = checkpoint

    def tick(self) -> None:
        """One more step is done."""
        self.checkpoint()
        self._done += 1
        records = self._done * self._records // self._steps
        if records > self._told:
            self._progress(records - self._told)
            self._told = records


def _write(inventory: Inventory, directory: str, snapshotter: str, bare: bool, meter: _Meter) -> Synthesis:
    blobs = os.path.join(directory, "content", "blobs", "sha256")
    snapshots = os.path.join(directory, "snapshots", "snapshots")
    for made in (blobs, os.path.join(directory, "content", "ingest")):
        os.makedirs(made)
    os.makedirs(os.path.dirname(snapshots), 0o700)
    os.mkdir(snapshots, 0o700)

    externals: list[int] = []
    written = write_file(os.path.join(directory, "workerid"), inventory.worker_id, 0o400)
    written += write_blobs(blobs, inventory.blobs, meter.checkpoint)
    if not bare:
        make_snapshots(snapshots, inventory.snapshots(), snapshotter, meter.tick)
    for name, fills, mode in (
        ("containerdmeta.db", containerd_fills(inventory, snapshotter, meter.tick), 0o644),
        ("snapshots/metadata.db", snapshotter_fills(inventory, meter.tick), 0o600),
        # Last, so that an incomplete cache does not look like a cache.
        ("metadata.db", metadata_fills(inventory, meter.tick, externals), 0o600),
    ):
        written += create_file(os.path.join(directory, name), fills, mode)
    quota = Quota(len(inventory.records))
    return Synthesis(
        directory=directory,
        records=len(inventory.records),
        holders=quota.pairs,
        blobs=len(inventory.blobs),
        snapshots=quota.snapshots,
        views=len(inventory.views),
        externals=len(externals),
        bytes_written=written,
    )
