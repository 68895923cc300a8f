"""Stage chains: chain IDs, which name a layer together with all layers below it.

With D for a diffID, B for a blob digest and + for strings joined by a space::

    chainID     = D                     on a parent:  sha256(parent's chainID + D)
    blobChainID = sha256(B + D)         on a parent:  sha256(parent's blobChainID + sha256(B + D))

A parent without blob or diffID counts with empty IDs in upstream.  Such an ID names nothing, and BuildKit never computes it
again, so other semantics leave both out where a layer below has none: BuildKit computes them when it makes the missing blob.
"""

from __future__ import annotations

from hashlib import sha256

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit import keys
from asyncmig.buildkit.gojson import to_valid
from asyncmig.buildkit.record import Changes, Record
from asyncmig.concurrency import stepping
from asyncmig.errors import RecordError, printable
from asyncmig.migration.cache import ADVICE, Cache


def compute_chains(checkpoint: Checkpoint, cache: Cache) -> None:
    """Set both chain IDs of every record that has a blob and a diffID.

    Sequential, each record once, and iterative: chains may be deeper than Python's stack.  Raises :class:`RecordError` for a
    cycle of parents, and for a missing parent of a record with a blob.
    """
    if cache.semantics.whole_chains_only:
        _compute_whole_chains(checkpoint, cache)
    else:
        _compute_missing_chains(checkpoint, cache)


# -- as upstream does it: IDs that are there already stay


def _compute_missing_chains(checkpoint: Checkpoint, cache: Cache) -> None:
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
            raise cache.error(record, "it is its own ancestor: its parents form a cycle")
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
    if parent is None:
        ids = chain_id(record.diff_id), blob_chain_id(record.blob, record.diff_id)
    else:
        below = (parent.chain_id, parent.blob_chain_id) if _has_layer(parent) else ("", "")
        ids = chain_id(record.diff_id, below[0]), blob_chain_id(record.blob, record.diff_id, below[1])
    record.chain_id, record.blob_chain_id = ids
    record.changes |= Changes.CHAIN


# -- only where every layer has them: all are computed, and parents are known to be there and to form no cycle


def _compute_whole_chains(checkpoint: Checkpoint, cache: Cache) -> None:
    halves = [record for record in stepping(checkpoint, cache.records) if record.chain_id or record.blob_chain_id]
    stored = {record.id: (record.chain_id, record.blob_chain_id) for record in halves}
    settled: set[str] = set()
    for record in stepping(checkpoint, cache.records):
        links: list[Record] = []
        link: Record | None = record
        while link is not None and link.id not in settled:
            links.append(link)
            settled.add(link.id)
            link = cache.by_id[link.parent] if link.parent else None
        for link in stepping(checkpoint, reversed(links)):
            parent = cache.by_id[link.parent] if link.parent else None
            link.chain_id = link.blob_chain_id = ""
            if _has_layer(link) and (parent is None or parent.chain_id):
                _set_chain_ids(link, parent)
                _clear_if_too_long(cache, link)
    for record in halves:
        if stored[record.id] != (record.chain_id, record.blob_chain_id):
            for name in keys.CHAIN:
                record.edit(name, b"")  # unless new ones are written


def _clear_if_too_long(cache: Cache, record: Record) -> None:
    """Take the chain IDs away again if the index can't hold them with a name as long as the record's."""
    try:
        cache.database.index_keys(record)
    except RecordError as error:
        record.chain_id = record.blob_chain_id = ""
        record.changes &= ~Changes.CHAIN
        text = f"{error.cause}; the record, and what is built on it, get no chain IDs"
        cache.reporter.note("chain-too-long", text, record.id)


# -- the formulas


def chain_id(diff_id: str, parent: str | None = None) -> str:
    """The chain ID of a layer, on a parent with the chain ID ``parent`` unless that is ``None``."""
    return diff_id if parent is None else _digest(f"{parent} {diff_id}")


def blob_chain_id(blob: str, diff_id: str, parent: str | None = None) -> str:
    """The blob chain ID of a layer, on a parent with the blob chain ID ``parent`` unless that is ``None``."""
    own = _digest(f"{blob} {diff_id}")
    return own if parent is None else _digest(f"{parent} {own}")


def _digest(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()
