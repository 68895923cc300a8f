"""The directories of the snapshots: is the data there that the databases speak of."""

from __future__ import annotations

from asyncmig.audit.findings import FindingCode
from asyncmig.audit.state import CacheState, Findings
from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import stepping
from asyncmig.errors import printable
from asyncmig.stores.ports import Kind

_WITH_DATA = (Kind.COMMITTED, Kind.ACTIVE)


def needed_snapshots(checkpoint: Checkpoint, state: CacheState) -> list[str]:
    """The committed and active snapshots of the records, and those that they are built on."""
    of_records = (record.snapshot for record in state.records if not record.deleted)
    needed = state.with_ancestors(checkpoint, of_records)
    return [name for name in stepping(checkpoint, needed) if state.snapshots[name].kind in _WITH_DATA]


def check_directories(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Report the needed snapshots whose directories do not exist; all of them in one finding."""
    missing = state.missing
    if not missing:
        return
    if len(missing) == len(state.needed) > 1:
        first = printable(next(iter(missing.values())))
        findings.add(
            FindingCode.DIRECTORIES_MISSING,
            state.snapshotter,
            f"none of the {len(missing):,} snapshots that the records need has its directory, {first} for example; put the "
            "directories back, or mount the disk with them. If they are lost, so is this cache",
        )
        return
    owners = {record.snapshot: record.id for record in stepping(checkpoint, state.records) if not record.deleted}
    for name, path in stepping(checkpoint, missing.items()):
        of_what = "of its snapshot" if name in owners else "of this snapshot, on which records are built,"
        text = f"the directory {of_what} does not exist: {printable(path)}"
        findings.add(FindingCode.DIRECTORY_MISSING, owners.get(name, name), text)
