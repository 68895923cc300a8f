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

from asyncmig.bolt import Bucket, Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, StrPath, printable
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.files import (
    BLOB,
    CONTENT,
    VERSION,
    OfflineFiles,
    check_shape,
    label_values,
    root_label,
    set_label,
    update,
    view,
)
from asyncmig.stores.ports import HEAD_SIZE, ContentInfo

_SIZE = b"size"
_DIGEST = re.compile(r"(sha256):([a-f0-9]{64})|(sha384):([a-f0-9]{96})|(sha512):([a-f0-9]{128})")
"""What containerd takes for a digest (opencontainers/go-digest ``algorithm.go``)."""
_NOT_THE_DATAS_FAULT = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class OfflineContent:
    """The content port."""

    def __init__(self, files: OfflineFiles, directory: StrPath, progress: Progress) -> None:
        self._files = files
        self._directory = os.fspath(directory)
        self._progress = progress

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        """Info of all blobs from one read transaction.

        Raises :class:`StoreError` for one whose labels could not be removed.
        """
        return await in_thread(self._info_many, digests)

    def _info_many(self, checkpoint: Checkpoint, digests: Sequence[str]) -> list[ContentInfo | None]:
        found: dict[str, ContentInfo] = {}
        with view(self._files.metadata) as tx:
            blobs = tx and tx.path_bucket(VERSION, self._files.namespace, CONTENT, BLOB)
            for digest in sorted_in_steps(list(digests)) if blobs else ():
                checkpoint()
                self._progress(1)
                entry = blobs.bucket(codec.to_bytes(digest)) if blobs else None
                if entry is not None:
                    check_shape(entry, self._files.metadata_path, f"blob {digest}")
                    found[digest] = _info(digest, entry)
        return [found.get(digest) for digest in digests]

    async def list_all(self, *, rooted: bool = False) -> list[ContentInfo]:
        """All blobs from one read transaction, in the order of containerd's Walk, which passes over what is no digest, too.

        Whether the labels of one could be changed is not looked at; :meth:`info_many` tells.
        """
        return await in_thread(self._list_all, rooted)

    def _list_all(self, checkpoint: Checkpoint, rooted: bool) -> list[ContentInfo]:
        found = []
        with view(self._files.metadata) as tx:
            blobs = tx and tx.path_bucket(VERSION, self._files.namespace, CONTENT, BLOB)
            for name, value in blobs.items() if blobs else ():
                checkpoint()
                entry = blobs.bucket(name) if blobs and value is None else None
                if entry is None or (rooted and root_label(entry) is None):
                    continue
                digest = codec.to_text(name)
                if _DIGEST.fullmatch(digest):
                    found.append(_info(digest, entry))
        return found

    async def head_many(self, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        """The heads from the blobs' files.

        Raises :class:`StoreError` if it is not the data's fault that one can't be read, such as a missing permission.
        """
        return await in_thread(self._head_many, blobs)

    def _head_many(self, checkpoint: Checkpoint, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        heads = []
        for blob in blobs:
            checkpoint()
            self._progress(1)
            path = self._path(blob.digest)
            heads.append(_head(path, blob.size) if path else None)
        return heads

    def _path(self, digest: str) -> str | None:
        """The file of a blob; ``None`` for what is no digest, which might lead anywhere."""
        match = _DIGEST.fullmatch(digest)
        return os.path.join(self._directory, "blobs", *filter(None, match.groups())) if match else None

    async def remove_label_many(self, digests: Sequence[str], label: str) -> list[bool]:
        """Remove the label from all blobs in one transaction: a cancelled call has no effect."""
        return await in_thread(self._remove_label_many, digests, label)

    def _remove_label_many(self, checkpoint: Checkpoint, digests: Sequence[str], label: str) -> list[bool]:
        return self._update_many(checkpoint, digests, label, lambda _: "")

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
        self, checkpoint: Checkpoint, digests: Sequence[str], label: str, value_of: Callable[[str], str]
    ) -> list[bool]:
        if not digests:
            return []
        now, found = codec.now(), set()
        with update(self._files.metadata) as tx:
            blobs = tx.path_bucket(VERSION, self._files.namespace, CONTENT, BLOB)
            for digest in sorted_in_steps(list(digests)) if blobs else ():
                checkpoint()
                self._progress(1)
                name = codec.to_bytes(digest)
                entry = blobs.bucket(name) if blobs else None
                if blobs is not None and entry is not None:
                    set_label(entry, codec.to_bytes(label), codec.to_bytes(value_of(digest)), now)
                    blobs.spill_child(name)
                    found.add(digest)
        return [digest in found for digest in digests]


def _info(digest: str, entry: Bucket) -> ContentInfo:
    return ContentInfo(digest, codec.decode_varint(entry.get(_SIZE) or b""), root_label(entry))


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
            os.close(fd)
    except OSError as error:
        if error.errno in _NOT_THE_DATAS_FAULT:
            raise StoreError(f"{printable(path)}: cannot read: {error.strerror}") from error
        return None
    return head if len(head) == min(size, HEAD_SIZE) else None
