"""Stage blobs: which records have a blob.

v1 stores a pair of blob digest and diffID; a record whose blob the content store does not have goes without, and BuildKit makes
the blob anew when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit import keys
from asyncmig.buildkit.record import Changes, Record
from asyncmig.concurrency import drop, in_thread, stepping
from asyncmig.errors import printable
from asyncmig.migration.cache import Cache
from asyncmig.migration.decisions import Action, Code
from asyncmig.migration.media import media_type_of
from asyncmig.stores.ports import ContentInfo, ContentStore

_DIGEST = re.compile("sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
"""What containerd takes for a digest (opencontainers/go-digest)."""


def is_digest(text: str) -> bool:
    """Whether containerd takes it for a digest."""
    return _DIGEST.fullmatch(text) is not None


async def find_blobs(cache: Cache, content: ContentStore) -> None:
    """Set blob, diffID, media type and size of the records whose blob exists.

    Raises :class:`RecordError` for a blob that no lease could hold, or that could not be released: everything that would
    fail in the tail.
    """
    digests = await in_thread(_digests, cache)
    existing = await in_thread(_existing, await content.info_many(digests))
    if cache.semantics.examines_blobs:
        heads = await content.head_many(existing)
        await in_thread(_apply_examined, cache, existing, heads)
        await in_thread(drop, heads)
    else:
        await in_thread(_apply, cache, existing)
    await in_thread(drop, existing)


def _existing(checkpoint: Checkpoint, infos: Sequence[ContentInfo | None]) -> list[ContentInfo]:
    found = []
    for info in stepping(checkpoint, infos):
        if info is not None:
            found.append(info)
    return found


def _digests(checkpoint: Checkpoint, cache: Cache) -> list[str]:
    found = set()
    for record in stepping(checkpoint, cache.records):
        found.add(record.blob)  # of a database that was migrated in part before
        if record.blob_mapping:
            found.add(record.blob_mapping[0])
    found.discard("")
    return list(found)


# -- as upstream does it


def _apply(checkpoint: Checkpoint, cache: Cache, existing: Sequence[ContentInfo]) -> None:
    blobs = {info.digest for info in existing}
    for record in stepping(checkpoint, cache.records):
        if record.blob_mapping:
            digest, diff_id = record.blob_mapping
            if digest in blobs:
                record.blob, record.diff_id, record.media_type = digest, diff_id, keys.DOCKER_LAYER_GZIP
                record.changes |= Changes.BLOB
            elif digest:
                text = f"blob {printable(digest)} is not in the content store; the record does without it"
                cache.reporter.note("blob-missing", text, record.id)
        if record.blob and not is_digest(record.blob):
            raise cache.error(record, f"blob {printable(record.blob)} is not a digest, so no lease can hold it")
        if record.blob and record.blob not in blobs and not record.is_holder:
            raise cache.error(record, f"cache.blob names {record.blob}, which is not in the content store")


# -- with a look at the blobs


def _apply_examined(
    checkpoint: Checkpoint, cache: Cache, existing: Sequence[ContentInfo], heads: Sequence[bytes | None]
) -> None:
    usable = {}  # size and media type of each blob whose data is there
    for info, head in stepping(checkpoint, zip(existing, heads, strict=True)):
        if head is not None and is_digest(info.digest):
            usable[info.digest] = info.size, media_type_of(head)
    known = {info.digest for info in existing}
    if usable:  # where none has data, the content store's directory is likelier to be elsewhere, or not mounted
        cache.dead_blobs = known.difference(usable)
    for record in stepping(checkpoint, cache.records):
        mapped = record.blob_mapping if record.blob_mapping and record.blob_mapping[0] else None
        digest, diff_id = mapped or (record.blob, record.diff_id)
        if not digest:
            continue
        cache.wanted_blobs += 1
        if digest not in usable or not diff_id:
            cache.lost_blobs += digest not in usable
            _go_without(cache, record, digest, known)
            continue
        record.blob, record.diff_id = digest, diff_id
        record.blob_size, record.media_type = usable[digest]
        record.changes |= Changes.BLOB | Changes.SIZE


def _go_without(cache: Cache, record: Record, digest: str, known: set[str]) -> None:
    blob = f"blob {printable(digest)}"
    if digest not in known:
        code, text = "blob-missing", f"{blob} is not in the content store"
    elif record.blob_mapping and not record.blob_mapping[1]:
        code, text = "blob-without-diffid", f"{blob} has no diffID, and BuildKit can't use a blob without one"
    else:
        code, text = "blob-data-missing", f"the data of {blob} is missing, or has another length than the content store says"
    cache.reporter.note(code, f"{text}; the record does without it, and BuildKit makes it again when it needs it", record.id)
    if record.blob:
        _clear_layer(cache, record)


def _clear_layer(cache: Cache, record: Record) -> None:
    """Of a database that was migrated in part before: no BuildKit that made v1 records wrote these keys."""
    text = f"its blob {printable(record.blob)} can't be used; what the record says about the blob is cleared"
    cache.decide(Code.BLOB_GONE, record, Action.REPAIRED, text)
    for name in (*keys.LAYER, *keys.CHAIN):
        record.edit(name, b"")
    record.blob = record.diff_id = record.chain_id = record.blob_chain_id = ""
