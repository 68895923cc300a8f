"""The database files behind the offline stores: opened, locked and checked together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from asyncmig.bolt import (
    Bucket,
    Checkpoint,
    Db,
    PageFile,
    Tx,
    verify_pages,
)
from asyncmig.bolt.pagefile import freelist_pages
from asyncmig.bolt.walk import free_pages, no_checkpoint
from asyncmig.concurrency import stepping
from asyncmig.errors import LayoutError, StoreError, StrPath, printable
from asyncmig.stores.offline.codec import to_bytes, to_text

VERSION = b"v1"
SNAPSHOTS = b"snapshots"
CONTENT = b"content"
BLOB = b"blob"
LEASES = b"leases"
_LONGEST_LABEL = 4096
_PAGES_PER_TREE = 64
_PAGES_PER_ENTRY = 8
"""Pages that an edit writes anew at most: those of the entry, and of the tree above that no other entry shares."""


class OfflineFiles:
    """containerd's metadata database and the snapshotter's own, locked until :meth:`close`.

    ``metadata`` is ``containerdmeta.db`` of an OCI worker or ``meta.db`` of a containerd; ``backend`` is the snapshotter's
    ``metadata.db``.  A missing file is an empty store.  All methods block.
    """

    def __init__(self, metadata_path: StrPath, backend_path: StrPath, namespace: str) -> None:
        self.metadata_path = os.fspath(metadata_path)
        self.backend_path = os.fspath(backend_path)
        self.namespace = to_bytes(namespace)
        self.metadata: Db | None = None
        self.backend: Db | None = None

    @classmethod
    def open(
        cls,
        metadata: StrPath,
        backend: StrPath,
        *,
        namespace: str,
        writable: bool,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> OfflineFiles:
        """Open and lock both files, exclusively if ``writable``, and check them from end to end.

        The check comes before any change: an edit of a damaged file could make it worse.  Raises :class:`DatabaseError` and
        its kinds.
        """
        files = cls(metadata, backend, namespace)
        try:
            files.metadata = _open(files.metadata_path, writable, checkpoint)
            files.backend = _open(files.backend_path, writable, checkpoint)
        except BaseException:
            files.close()
            raise
        return files

    def require(self) -> None:
        """Raise :class:`LayoutError` unless both files exist and have content."""
        for path, db in ((self.metadata_path, self.metadata), (self.backend_path, self.backend)):
            if db is None or db.pages is None:
                raise LayoutError(
                    f"{printable(path)}: {'missing' if db is None else 'empty'}; this cache is not complete: is "
                    "every volume mounted?"
                )

    def growth(self, checkpoint: Checkpoint, leases: int, entries: int | None) -> list[tuple[str, int]]:
        """By how many bytes each file may grow on disk, for so many new leases and edits of so many entries (``None``: of all).

        Copy-on-write writes every changed page anew.  A lease takes a little over two pages, being a bucket with a bucket in
        it.  A snapshot in the snapshotter's database takes one page more, because the bucket of labels that it gets keeps it
        from being stored inline any longer.
        """
        with view(self.backend) as tx:
            snapshots = tx.path_bucket(VERSION, SNAPSHOTS) if tx else None
            count = sum(1 for _ in stepping(checkpoint, snapshots.entries())) if snapshots else 0
        new_pages = ((self.metadata, leases * 9 // 4), (self.backend, count if entries is None else min(count, entries)))
        return [
            (db.path, _growth(checkpoint, db.pages, pages, entries))
            for db, pages in new_pages
            if db is not None and db.pages is not None
        ]

    def notes(self) -> list[str]:
        """What is odd about the files and does no harm, a sentence each."""
        return [note for db in (self.metadata, self.backend) if db is not None and (note := db.note())]

    def close(self) -> None:
        """Close both files, which releases their locks."""
        for db in (self.metadata, self.backend):
            if db is not None:
                db.close()

    def namespaces(self) -> list[str]:
        """Namespaces in the metadata database."""
        with view(self.metadata) as tx:
            return bucket_names(tx.bucket(VERSION) if tx else None)

    def snapshotters(self) -> list[str]:
        """Snapshotters that have snapshots in the namespace."""
        with view(self.metadata) as tx:
            return bucket_names(tx.path_bucket(VERSION, self.namespace, SNAPSHOTS) if tx else None)


def _growth(checkpoint: Checkpoint, pages: PageFile, new_pages: int, entries: int | None) -> int:
    """What the file has on disk beyond the pages in use is used first; bbolt makes files longer by holes, which are not."""
    free = len(free_pages(pages, checkpoint))
    in_use = pages.high_water_mark - free
    changed = in_use if entries is None else min(in_use, _PAGES_PER_TREE + entries * _PAGES_PER_ENTRY)
    written = changed + new_pages + freelist_pages(free + changed, pages.page_size)
    spare = max(0, pages.allocated - in_use * pages.page_size)
    return max(0, written * pages.page_size - spare)


def _open(path: str, writable: bool, checkpoint: Checkpoint) -> Db | None:
    if _is_missing(path):
        return None
    db = Db.open(path, writable=writable, follow=False)
    try:
        if writable:
            # A run that was killed in the midst of a commit leaves one that everybody sees and no disk has.  What is decided
            # by it must not outlast it: that a lease is there, for example, whose label may go.
            db.sync()
        if db.pages is not None:
            verify_pages(db.pages, checkpoint)
    except BaseException:
        db.close()
        raise
    return db


def _is_missing(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # not to be known: to open it fails, too, and tells why
    return False


def bucket_names(bucket: Bucket | None) -> list[str]:
    """Names of the buckets in ``bucket``."""
    return [to_text(key) for key, value in bucket.items() if value is None] if bucket else []


@contextmanager
def view(db: Db | None) -> Iterator[Tx | None]:
    """A read transaction, ``None`` for a file that does not exist."""
    if db is None:
        yield None
        return
    with db.view() as tx:
        yield tx


@contextmanager
def update(db: Db | None) -> Iterator[Tx]:
    """A write transaction.  Raises :class:`StoreError` for a file that does not exist."""
    if db is None:
        raise StoreError("containerd's metadata database does not exist")
    with db.update() as tx:
        yield tx


def label_values(checkpoint: Checkpoint, values: Sequence[tuple[str, str]], label: str) -> dict[str, str]:
    """The value of the label for each name; of several the last one counts.

    Raises :class:`StoreError` for a label that containerd refuses to store.
    """
    wanted = {}
    for name, value in values:
        checkpoint()
        _check_label(label, value)
        wanted[name] = value
    return wanted


def _check_label(label: str, value: str) -> None:
    """Raise :class:`StoreError` for a label that containerd refuses to store (``labels/validate.go``)."""
    size = len(to_bytes(label)) + len(to_bytes(value))
    if size > _LONGEST_LABEL:
        raise StoreError(f"label {printable(label)}: name and value have {size} bytes, containerd allows {_LONGEST_LABEL}")
