"""The check of a v2 cache: what BuildKit would load of it, whether the data is there, and whether it is protected.

Everything is read first; the checks, one function a subject, then work on what was read.  Nothing is changed, ever.
"""

from __future__ import annotations

from collections.abc import Set

from asyncmig.audit.directories import check_directories, needed_snapshots
from asyncmig.audit.findings import Inventory, NoteCode, Verification
from asyncmig.audit.records import check_chains, check_index, check_loading
from asyncmig.audit.state import CacheState, Findings
from asyncmig.audit.stores import check_blobs, check_labels, check_leases, check_snapshots
from asyncmig.audit.unowned import followed, note_unowned, unowned_snapshots
from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.v2 import read_records
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import LayoutError, printable
from asyncmig.migration.progress import Stage
from asyncmig.migration.reporter import Reporter
from asyncmig.stores.ports import ContentInfo, Stores

STAGES = (Stage.READ, Stage.RESOLVE, Stage.BLOBS, Stage.LEASES, Stage.VERIFY)
"""The stages of a check, in their order."""


async def audit(
    database: MetadataDb, stores: Stores, reporter: Reporter[Verification], *, released: Set[str] = frozenset()
) -> None:
    """Check the cache and report what is found.  ``released`` are the snapshots whose label a migration has removed.

    Raises :class:`DatabaseError` for a file that can't be read, :class:`StoreError`, and :class:`LayoutError` if none of the
    records has a snapshot: then this is the wrong place.  A cancellation takes effect at once.
    """
    state = CacheState(stores.snapshots.snapshotter, is_shared=stores.snapshots.shared, released=released)
    with reporter.stage(Stage.READ):
        await in_thread(_read, state, database, reporter)
    with reporter.stage(Stage.RESOLVE):
        await in_thread(state.take_snapshots, await stores.snapshots.list_all())
        await in_thread(_check_place, state, database)
        state.needed = await in_thread(needed_snapshots, state)
        state.missing = await stores.snapshots.missing_directories(state.needed)
    with reporter.stage(Stage.BLOBS):
        await in_thread(state.take_blobs, await stores.content.list_all())
        owned = await in_thread(_owned_blobs, state)
        await in_thread(state.take_heads, owned, await stores.content.head_many(owned))
    with reporter.stage(Stage.LEASES):
        await in_thread(state.take_leases, await stores.leases.list_all())
        state.kept = await stores.snapshots.kept_besides(await in_thread(followed, state))
        state.unowned = await in_thread(unowned_snapshots, state)
        state.sizes = await stores.snapshots.recorded_sizes(state.unowned)
    with reporter.stage(Stage.VERIFY):
        await in_thread(_check, state, database, reporter)


def _read(checkpoint: Checkpoint, state: CacheState, database: MetadataDb, reporter: Reporter[Verification]) -> None:
    database.check_pages(checkpoint)
    state.records = read_records(database, checkpoint=checkpoint, progress=reporter.advance)
    for record in stepping(checkpoint, state.records):
        state.by_id[record.id] = record


def _check_place(checkpoint: Checkpoint, state: CacheState, database: MetadataDb) -> None:
    wanted = []
    for record in stepping(checkpoint, state.records):
        if not (record.is_holder or record.blob_only or record.is_composed):
            wanted.append(record.snapshot)
    if len(wanted) > 1 and not any(name in state.snapshots for name in wanted):
        raise LayoutError(
            f"{printable(database.path)}: none of {len(wanted):,} records has its snapshot in snapshotter "
            f"{printable(state.snapshotter)}; check that snapshotter and namespace are those of this cache"
        )


def _owned_blobs(checkpoint: Checkpoint, state: CacheState) -> list[ContentInfo]:
    found = {}
    for record in stepping(checkpoint, state.records):
        if record.blob in state.blobs:
            found[record.blob] = state.blobs[record.blob]
    return list(found.values())


def _check(checkpoint: Checkpoint, state: CacheState, database: MetadataDb, reporter: Reporter[Verification]) -> None:
    findings = Findings(reporter)
    check_loading(checkpoint, state, findings)
    check_snapshots(checkpoint, state, findings)
    check_directories(checkpoint, state, findings)
    check_leases(checkpoint, state, findings)
    check_blobs(checkpoint, state, findings)
    check_chains(checkpoint, state, findings)
    check_index(checkpoint, state, database.index_entries(checkpoint), findings)
    check_labels(checkpoint, state, findings)
    note_unowned(checkpoint, state, findings)
    reporter.result.counts = _count(checkpoint, state)
    reporter.result.counts.free_bytes = _free_bytes(checkpoint, state, reporter.result)


def _count(checkpoint: Checkpoint, state: CacheState) -> Inventory:
    counts = Inventory(records=len(state.records), snapshots=len(state.snapshots), blobs=len(state.blobs))
    counts.leases = len(state.leases)
    for record in stepping(checkpoint, state.records):
        counts.committed += record.committed
        counts.holders += record.is_holder
        counts.mutable += not record.committed
        counts.lazy += record.blob_only
    # What was looked at is what the records own.
    counts.owned_blobs, counts.owned_bytes = len(state.heads), sum(state.blobs[digest].size for digest in state.heads)
    counts.unowned_blobs = counts.blobs - counts.owned_blobs
    counts.unowned_bytes = sum(blob.size for blob in state.blobs.values()) - counts.owned_bytes
    return counts


def _free_bytes(checkpoint: Checkpoint, state: CacheState, result: Verification) -> dict[str, int]:
    found: dict[str, int] = {}
    for note in stepping(checkpoint, result.notes):
        if note.code == NoteCode.BLOB_UNOWNED:
            size = state.blobs[note.name].size
        else:
            size = state.sizes.get(note.name, 0) if note.code in (NoteCode.VIEW_STALE, NoteCode.SNAPSHOT_UNOWNED) else 0
        if size:
            found[note.code] = found.get(note.code, 0) + size
    return found
