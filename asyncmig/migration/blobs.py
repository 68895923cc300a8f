"""Stage blobs: which records have a blob.

v1 stores a pair of blob digest and diffID; a record whose blob the content store does not know goes without.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.record import Changes
from asyncmig.concurrency import in_thread
from asyncmig.errors import printable
from asyncmig.migration.cache import Cache, stepping
from asyncmig.migration.report import Notice
from asyncmig.stores.ports import ContentInfo, ContentStore

_DIGEST = re.compile("sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
"""What containerd takes for a digest (opencontainers/go-digest)."""


async def find_blobs(cache: Cache, content: ContentStore) -> None:
    """Set blob, diffID and media type of the records whose blob exists.

    Raises :class:`RecordError` for a blob that no lease could hold, or that could not be released: everything that would
    fail in the tail.
    """
    digests = await in_thread(_digests, cache)
    infos = await content.info_many(digests)
    await in_thread(_apply, cache, digests, infos)


def _digests(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    found = set()
    for record in stepping(checkpoint, cache.records):
        found.add(record.blob)  # of a database that was migrated in part before
        if record.blob_mapping:
            found.add(record.blob_mapping[0])
    found.discard("")
    return list(found)


def _apply(checkpoint: Checkpoint, cache: Cache, digests: list[str], infos: Sequence[ContentInfo | None]) -> None:
    existing = {digest for digest, info in zip(digests, infos, strict=True) if info is not None}
    for record in stepping(checkpoint, cache.records):
        if record.blob_mapping:
            digest, diff_id = record.blob_mapping
            if digest in existing:
                record.blob, record.diff_id = digest, diff_id
                record.media_type = cache.semantics.media_type(record)
                record.changes |= Changes.BLOB
            elif digest:
                text = f"blob {printable(digest)} is not in the content store; the record goes without it"
                cache.report.notices.append(Notice("blob-missing", record.id, text))
        if record.blob and not _DIGEST.fullmatch(record.blob):
            raise cache.error(record, f"blob {printable(record.blob)} is not a digest that a lease can hold")
        if record.blob and record.blob not in existing and cache.semantics.is_released(record):
            raise cache.error(record, f"cache.blob names {record.blob}, which is not in the content store")
