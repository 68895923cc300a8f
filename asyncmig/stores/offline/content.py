"""Blobs in containerd's metadata database: ``v1/<namespace>/content/blob/<digest>``.

As in containerd, Info, List and Update look at the database alone.  The data is a file of its own, in the content store's
directory: ``blobs/<algorithm>/<hex>``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence

from asyncmig.bolt import BucketValue, Checkpoint, edit_buckets
from asyncmig.bolt.files import close
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import StoreError, StrPath, printable, reason
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress, no_progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.entries import EntryReader, by_key, label_edit
from asyncmig.stores.offline.files import BLOB, CONTENT, VERSION, OfflineFiles, label_values, update, view
from asyncmig.stores.offline.looking import look_at_all
from asyncmig.stores.offline.scan import Scan, share_of
from asyncmig.stores.ports import HEAD_SIZE, ContentInfo

_SIZE = b"size"
_DIGEST = re.compile(r"(sha256):([a-f0-9]{64})|(sha384):([a-f0-9]{96})|(sha512):([a-f0-9]{128})")
"""What containerd takes for a digest (opencontainers/go-digest ``algorithm.go``)."""
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # the last for a socket


class OfflineContent:
    """The content port."""

    def __init__(self, files: OfflineFiles, directory: StrPath, progress: Progress) -> None:
        self._files = files
        self._directory = os.fspath(directory)
        self._progress = progress
        self._scan: Scan[ContentInfo] | None = None

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        """Info of all blobs from one read transaction, of which :meth:`list_all` answers, too.

        Raises :class:`StoreError` for one whose labels could not be removed.
        """
        return await in_thread(self._info_many, digests)

    def _info_many(self, checkpoint: Checkpoint, digests: Sequence[str]) -> list[ContentInfo | None]:
        scan = self._scanned(checkpoint, self._progress, digests)
        scan.check(digests)
        return [scan.get(digest) for digest in stepping(checkpoint, digests)]

    async def list_all(self, *, rooted: bool = False) -> list[ContentInfo]:
        """All blobs from one read transaction, in the order of containerd's Walk, which passes over what is no digest, too.

        Whether the labels of one could be changed is not looked at; :meth:`info_many` tells.
        """
        return await in_thread(self._list_all, rooted)

    def _list_all(self, checkpoint: Checkpoint, rooted: bool) -> list[ContentInfo]:
        infos = self._scanned(checkpoint).all()
        wanted = (info for info in stepping(checkpoint, infos) if info.root is not None or not rooted)
        return [info for info in wanted if _DIGEST.fullmatch(info.digest)]

    def _scanned(
        self, checkpoint: Checkpoint, progress: Progress = no_progress, digests: Sequence[str] = ()
    ) -> Scan[ContentInfo]:
        with share_of(len(digests), progress) as advance:
            if self._scan is None:
                self._scan = self._read(checkpoint, advance, digests)
        return self._scan

    def _read(self, checkpoint: Checkpoint, progress: Progress, digests: Sequence[str]) -> Scan[ContentInfo]:
        """Read all blobs, whatever their names.  Of strings that are equal there is to be one only."""
        shared = {digest: digest for digest in stepping(checkpoint, digests)}
        scan = Scan(ContentInfo)
        with view(self._files.metadata) as tx:
            blobs = tx.path_bucket(VERSION, self._files.namespace, CONTENT, BLOB) if tx else None
            if tx is None or blobs is None:
                return scan
            read = EntryReader(tx, self._files.metadata_path, "blob", _SIZE)
            for key, value in stepping(checkpoint, blobs.entries(), progress):
                if type(value) is BucketValue:
                    (size,), root, fault = read(key, value)
                    name = codec.to_text(key)
                    name = shared.get(name, name)
                    scan.facts[name] = (codec.decode_varint(size), root)
                    scan.note(name, fault)
        return scan

    async def head_many(self, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        """The heads from the blobs' files.

        Raises :class:`StoreError` if it is not the data's fault that one can't be read, such as a missing permission.
        """
        return await in_thread(self._head_many, blobs)

    def _head_many(self, checkpoint: Checkpoint, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        return look_at_all(checkpoint, self._head, blobs, lambda blob: self._path(blob.digest), self._progress)

    def _head(self, blob: ContentInfo) -> bytes | None:
        path = self._path(blob.digest)
        return _head(path, blob.size) if path else None

    def _path(self, digest: str) -> str | None:
        """The file of a blob; ``None`` for what is no digest, which might lead anywhere."""
        match = _DIGEST.fullmatch(digest)
        return os.path.join(self._directory, "blobs", *filter(None, match.groups())) if match else None

    async def remove_label_many(self, digests: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        """Remove the label from all blobs in one transaction: a cancelled call has no effect."""
        return await in_thread(self._remove_label_many, digests, label, tidy)

    def _remove_label_many(self, checkpoint: Checkpoint, digests: Sequence[str], label: str, tidy: bool) -> list[bool]:
        return self._update_many(checkpoint, digests, label, tidy=tidy)

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        """Set the label of all blobs in one transaction: a cancelled call has no effect.

        An empty value removes the label; of several values for one blob the last one counts.  Raises :class:`StoreError` for a
        label that is longer than containerd allows.
        """
        return await in_thread(self._set_label_many, values, label)

    def _set_label_many(self, checkpoint: Checkpoint, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        wanted = label_values(checkpoint, values, label)
        return self._update_many(checkpoint, [digest for digest, _ in values], label, wanted.__getitem__)

    def _update_many(
        self,
        checkpoint: Checkpoint,
        digests: Sequence[str],
        label: str,
        value_of: Callable[[str], str] | None = None,
        *,
        tidy: bool = False,
    ) -> list[bool]:
        if not digests:
            return []
        scan, self._scan = self._scan, None
        if scan is not None:
            scan.forget(checkpoint)
        now, found, name = codec.now(), set(), codec.to_bytes(label)
        with update(self._files.metadata) as tx:
            blobs = tx.path_bucket(VERSION, self._files.namespace, CONTENT, BLOB)

            def edit(key: bytes, stored: BucketValue | None) -> BucketValue | None:
                if stored is not None:
                    found.add(codec.to_text(key))
                return change(key, stored)

            change = label_edit(tx, name, now, value_of and by_key(value_of), tidy=tidy)
            if blobs:
                ordered = sorted_in_steps(list(digests))
                edit_buckets(blobs, map(codec.to_bytes, stepping(checkpoint, ordered, self._progress)), edit)
        return [digest in found for digest in digests]


def _head(path: str, size: int) -> bytes | None:
    try:
        # Without waiting for a writer, should somebody have put a pipe there.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return None
            head = os.pread(fd, HEAD_SIZE, 0)
        finally:
            close(fd)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        # A disk in trouble must not cost records that it may still have: whoever knows that the data is lost can say so.
        remedy = "; check the disk. To go on without this blob, move the file away" if error.errno == errno.EIO else ""
        raise StoreError(f"{printable(path)}: cannot read: {reason(error)}{remedy}") from error
    return head if len(head) == min(size, HEAD_SIZE) else None
