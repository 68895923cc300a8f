"""Stage chains: chain IDs, which name a layer together with all layers below it.

With D for a diffID, B for a blob digest and + for strings joined by a space::

    chainID     = D                     on a parent:  sha256(parent's chainID + D)
    blobChainID = sha256(B + D)         on a parent:  sha256(parent's blobChainID + sha256(B + D))

A parent without blob or diffID counts with empty IDs, as upstream has it.
"""

from __future__ import annotations

from hashlib import sha256

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.gojson import to_valid
from asyncmig.buildkit.record import Changes, Record
from asyncmig.errors import printable
from asyncmig.migration.cache import ADVICE, Cache, stepping


def compute_chains(checkpoint: Checkpoint, cache: Cache) -> None:
    """Set both chain IDs of every record that has a blob and a diffID; IDs that are there already stay.

    Sequential, each record once, and iterative: chains may be deeper than Python's stack.  Raises :class:`RecordError` for a
    cycle of parents, and for a missing parent of a record with a blob.
    """
    for record in stepping(checkpoint, cache.records):
        if not _has_chain(record):
            continue
        for link in reversed(_unresolved(cache, record)):
            parent = cache.by_id[to_valid(link.parent)] if link.parent else None
            _set_chain_ids(link, parent)
            cache.database.index_keys(link)  # raises for keys that bolt can't hold


def _has_layer(record: Record) -> bool:
    return bool(record.diff_id and record.blob)


def _has_chain(record: Record) -> bool:
    return _has_layer(record) and not (record.chain_id and record.blob_chain_id)


def _unresolved(cache: Cache, record: Record) -> list[Record]:
    """The record and its ancestors, up to the first whose chain IDs are known or are none."""
    links: list[Record] = []
    on_the_way = set()
    while _has_chain(record):
        if record.id in on_the_way:
            raise cache.error(record, "it is its own ancestor: the parents form a cycle")
        on_the_way.add(record.id)
        links.append(record)
        if not record.parent:
            break
        parent = cache.by_id.get(to_valid(record.parent))
        if parent is None:
            raise cache.error(record, f"its parent {printable(record.parent)} is not a record of this cache; {ADVICE}")
        record = parent
    return links


def _set_chain_ids(record: Record, parent: Record | None) -> None:
    chain_id = record.diff_id
    blob_chain_id = _digest(f"{record.blob} {record.diff_id}")
    if parent is not None:
        has_layer = _has_layer(parent)
        chain_id = _digest(f"{parent.chain_id if has_layer else ''} {chain_id}")
        blob_chain_id = _digest(f"{parent.blob_chain_id if has_layer else ''} {blob_chain_id}")
    record.chain_id, record.blob_chain_id = chain_id, blob_chain_id
    record.changes |= Changes.CHAIN


def _digest(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()
