"""Stage resolve, for semantics that don't repair: which records are committed, and which is whose parent.

The snapshotter knows it of every record that has a snapshot.  A holder has none: it is committed by nature, and takes the
parent of the mutable record that owns its data.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.gojson import to_valid
from asyncmig.buildkit.record import Changes, Record
from asyncmig.concurrency import drop, in_thread, stepping
from asyncmig.errors import counted, printable
from asyncmig.migration.cache import ADVICE, Cache
from asyncmig.stores.ports import Kind, SnapshotInfo, SnapshotStore


async def resolve(cache: Cache, snapshots: SnapshotStore) -> None:
    """Set committed, parent and snapshot of all records.

    Raises :class:`RecordError` for a record without its snapshot, and for a holder whose mutable record is missing.
    """
    with_snapshot = await in_thread(_with_snapshot, cache)
    infos = await snapshots.stat_many(await in_thread(_names, with_snapshot))
    await in_thread(_apply, cache, with_snapshot, infos, snapshots.snapshotter)
    await in_thread(drop, infos)
    await in_thread(_resolve_holders, cache)


def _with_snapshot(checkpoint: Checkpoint, cache: Cache) -> list[Record]:
    return [record for record in stepping(checkpoint, cache.records) if not record.is_holder]


def _names(checkpoint: Checkpoint, records: list[Record]) -> list[str]:
    return [record.id for record in stepping(checkpoint, records)]


def _apply(
    checkpoint: Checkpoint, cache: Cache, records: list[Record], infos: Sequence[SnapshotInfo | None], snapshotter: str
) -> None:
    missing = [record for record, info in zip(records, infos, strict=True) if info is None]
    if missing:
        raise cache.error(missing[0], _missing_snapshots(len(missing), len(records), snapshotter))
    for record, info in zip(stepping(checkpoint, records), infos, strict=True):
        assert info is not None
        record.changes |= Changes.SNAPSHOT
        if info.kind is Kind.COMMITTED:
            record.changes |= Changes.COMMITTED
        if info.parent:
            record.parent = info.parent
            record.changes |= Changes.PARENT


def _missing_snapshots(missing: int, total: int, snapshotter: str) -> str:
    if missing == total > 1:
        return no_snapshot_at_all(total, snapshotter)
    others = f" (nor do those of {counted(missing - 1, 'other record')})" if missing > 1 else ""
    return f"its snapshot does not exist in snapshotter {printable(snapshotter)}{others}; {ADVICE}"


def no_snapshot_at_all(total: int, snapshotter: str) -> str:
    """What is wrong if none of several records has a snapshot."""
    return (
        f"none of {total:,} records has its snapshot in snapshotter {printable(snapshotter)}; "
        "check that snapshotter and namespace are those of this cache"
    )


def _resolve_holders(checkpoint: Checkpoint, cache: Cache) -> None:
    for record in stepping(checkpoint, cache.records):
        if record.is_holder:
            record.changes |= Changes.SNAPSHOT | Changes.COMMITTED
    for record in stepping(checkpoint, cache.records):
        if record.is_holder and not _has_parent(record):
            _take_parents(cache, record)


def _has_parent(record: Record) -> bool:
    return bool(record.parent or record.changes & Changes.PARENT)


def _take_parents(cache: Cache, holder: Record) -> None:
    """Give the holder the parent of the record that owns its data.

    That this record is a holder itself never happens in caches that BuildKit wrote; upstream's answer then depends on the
    order of a Go map, and the one that follows to the end is among them.  All holders on the way get their parent at once.
    """
    way: list[Record] = []
    on_the_way = set()
    record = holder
    while record.is_holder and not _has_parent(record) and record.id not in on_the_way:
        way.append(record)
        on_the_way.add(record.id)
        mutable = cache.by_id.get(record.equal_mutable)
        if mutable is None:
            raise cache.error(
                record, f"its cache.equalMutable names record {printable(record.equal_mutable)}, which does not exist; {ADVICE}"
            )
        record = mutable
    for link in way:
        link.parent = to_valid(record.parent)  # what upstream writes here, it has read from JSON
        link.changes |= Changes.PARENT
