"""Blobs in containerd's metadata database: ``v1/<namespace>/content/blob/<digest>``.

As in containerd, Info and Update look at the database alone, not at the blob's file.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.files import BLOB, CONTENT, VERSION, OfflineFiles, check_shape, remove_label, update, view
from asyncmig.stores.ports import ContentInfo

_SIZE = b"size"


class OfflineContent:
    """The content port."""

    def __init__(self, files: OfflineFiles, progress: Progress) -> None:
        self._files = files
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
                    found[digest] = ContentInfo(digest, codec.decode_varint(entry.get(_SIZE) or b""))
        return [found.get(digest) for digest in digests]

    async def remove_label_many(self, digests: Sequence[str], label: str) -> list[bool]:
        """Remove the label from all blobs in one transaction: a cancelled call has no effect."""
        return await in_thread(self._remove_label_many, digests, label)

    def _remove_label_many(self, checkpoint: Checkpoint, digests: Sequence[str], label: str) -> list[bool]:
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
                    remove_label(entry, codec.to_bytes(label), now)
                    blobs.spill_child(name)
                    found.add(digest)
        return [digest in found for digest in digests]
