"""Are these the stores that a migration has changed?

A rollback, and the completion of a migration, act on what the journal names.  In other stores nothing of it exists: with a disk
that is not mounted, a store that was made anew, another namespace or socket.  To take that for "somebody has removed it" would
use up the journal, and lose the data when the right stores come back.  So whoever acts on a journal looks first for what must
exist: what the records of today's database need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.v2 import read_records
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import StoreError, listed, printable
from asyncmig.migration.journal import Journal
from asyncmig.stores.ports import SnapshotInfo, Stores


@dataclass(slots=True)
class Expected:
    """What must exist in the stores: keys of snapshots, digests of blobs, ids of leases."""

    snapshots: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.snapshots) + len(self.blobs) + len(self.leases)


def expected_by_v1(checkpoint: Checkpoint, database: MetadataDb, journal: Journal, *, with_leases: bool) -> Expected:
    """What the records of ``metadata.db`` need, of what the journal names; ``with_leases``: also the leases of the migration.

    An old daemon that has run since has removed records together with their snapshots.
    """
    expected = Expected()
    blobs = set()
    for record in stepping(checkpoint, database.read(checkpoint=checkpoint, on_malformed=lambda *_: None)):
        if record.is_holder or record.deleted:
            continue
        if record.id in journal.snapshots:
            expected.snapshots.append(record.id)
        if record.blob_mapping and record.blob_mapping[0] in journal.blobs:
            blobs.add(record.blob_mapping[0])
    expected.blobs = sorted(blobs)
    if with_leases:
        expected.leases = [lease_id for lease_id, before in journal.leases.items() if before is None]
    return expected


def expected_by_v2(checkpoint: Checkpoint, database: MetadataDb, journal: Journal) -> Expected:
    """What the records of ``metadata_v2.db`` need, of what the journal names.

    A newer daemon that has run since has removed records together with their snapshots and leases.
    """
    expected = Expected()
    blobs = set()
    for record in stepping(checkpoint, read_records(database, checkpoint=checkpoint)):
        if record.is_holder or record.deleted:
            continue
        if record.snapshot in journal.snapshots:
            expected.snapshots.append(record.snapshot)
        if record.blob in journal.blobs:
            blobs.add(record.blob)
        if record.id in journal.leases:
            expected.leases.append(record.id)
    expected.blobs = sorted(blobs)
    return expected


async def recognise(stores: Stores, expected: Expected, journal: Journal, place: str, *, path: str, limit: float) -> None:
    """Raise :class:`StoreError` if more than ``limit`` percent of what must exist does not.

    Where nothing must exist, the stores must at least be in the ``place`` that the journal names.  Changes nothing; a
    cancellation takes effect at once.
    """
    if not expected:
        if journal.place != place and (journal.snapshots or journal.blobs):
            raise _not_the_stores(path, journal, f"nothing of what the migration changed can be recognised at {place or path}")
        return
    snapshots = _missing(await stores.snapshots.stat_many(expected.snapshots))
    blobs = _missing(await stores.content.info_many(expected.blobs))
    leases = _missing(await stores.leases.list_many(expected.leases))
    missing = snapshots + blobs + leases
    if missing * 100 > limit * len(expected):
        what = listed((snapshots, "snapshot"), (blobs, "blob"), (leases, "lease"))
        share = f"{missing * 100 / len(expected):.1f} % of what must exist; the limit is {limit:g} %, --max-dropped"
        raise _not_the_stores(path, journal, f"{what} of this cache do not exist ({share})")


def _missing(found: Sequence[object | None]) -> int:
    return sum(1 for one in found if one is None)


def _not_the_stores(path: str, journal: Journal, cause: str) -> StoreError:
    where = f"namespace {printable(journal.namespace)}, snapshotter {printable(journal.snapshotter)}"
    if journal.place:
        where += f", {printable(journal.place)}"
    return StoreError(
        f"{printable(path)}: {printable(cause)}. Are these the stores that the migration changed ({where})? Is every volume "
        "mounted? Nothing was changed, and the journal is still there"
    )


async def with_ancestors(stores: Stores, names: Sequence[str]) -> set[str]:
    """The snapshots with these keys and all that they are built on, as far as they exist."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        todo = await in_thread(_note_and_follow, found, await stores.snapshots.stat_many(todo))
    return found


def _note_and_follow(checkpoint: Checkpoint, found: set[str], infos: Sequence[SnapshotInfo | None]) -> list[str]:
    """The parents that are still to be looked up."""
    parents = set()
    for info in stepping(checkpoint, infos):
        if info is not None:
            found.add(info.name)
            parents.add(info.parent)
    return sorted(parents - found - {""})
