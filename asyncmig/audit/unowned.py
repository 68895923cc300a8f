"""What nothing keeps, as far as it is known: neither a record, nor a lease, nor a label, nor an image or a container."""

from __future__ import annotations

from rich.filesize import decimal as size_text

from asyncmig.audit.findings import NoteCode
from asyncmig.audit.state import CacheState, Findings
from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import stepping
from asyncmig.migration.protect import FLAT
from asyncmig.stores.ports import Kind, Resource

_GOES = "the next garbage collection removes it"
_OF_OTHERS = "belongs to no record, lease or label; an image or a container may need it"


def followed(checkpoint: Checkpoint, state: CacheState) -> list[Resource]:
    """What is kept together with what its labels refer to."""
    found: list[Resource] = []
    for lease in stepping(checkpoint, state.leases.values()):
        if FLAT not in lease.labels:
            found += lease.resources
    for name, snapshot in stepping(checkpoint, state.snapshots.items()):
        if snapshot.root is not None:
            found.append(Resource(_type(state), name))
    for digest, blob in stepping(checkpoint, state.blobs.items()):
        if blob.root is not None:
            found.append(Resource("content", digest))
    return found


def unowned_snapshots(checkpoint: Checkpoint, state: CacheState) -> list[str]:
    """The snapshots that nothing keeps."""
    kept = {record.snapshot for record in stepping(checkpoint, state.records)}
    kept.update(name for name, info in stepping(checkpoint, state.snapshots.items()) if info.root is not None)
    for lease in stepping(checkpoint, state.leases.values()):
        kept.update(resource.id for resource in lease.resources if resource.type == _type(state))
    if state.kept is not None:
        kept.update(state.kept.snapshots)
    needed = state.with_ancestors(checkpoint, kept)
    return [name for name in stepping(checkpoint, state.snapshots) if name not in needed]


def note_unowned(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Note what nothing keeps.  Where images and containers can't be looked at, it may be theirs."""
    for name in stepping(checkpoint, state.unowned):
        is_view = state.snapshots[name].kind is Kind.VIEW
        size = f" ({size_text(state.sizes[name])})" if name in state.sizes else ""
        if is_view and (state.kept is not None or name in state.released):
            by = "which the migration has released" if name in state.released else "which nothing keeps"
            findings.note(NoteCode.VIEW_STALE, name, f"a stale view, {by}; {_GOES}")
        elif state.kept is not None:
            findings.note(NoteCode.SNAPSHOT_UNOWNED, name, f"unreferenced{size}; {_GOES}")
        else:
            findings.note(NoteCode.SNAPSHOT_FOREIGN, name, _OF_OTHERS)
    _note_blobs(checkpoint, state, findings)


def _note_blobs(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    kept = {record.blob for record in stepping(checkpoint, state.records)}
    for lease in stepping(checkpoint, state.leases.values()):
        kept.update(resource.id for resource in lease.resources if resource.type == "content")
    if state.kept is not None:
        kept.update(state.kept.blobs)
    for name, blob in stepping(checkpoint, state.blobs.items()):
        if name in kept or blob.root is not None:
            continue
        if state.kept is not None:
            findings.note(NoteCode.BLOB_UNOWNED, name, f"unreferenced ({size_text(blob.size)}); {_GOES}")
        else:
            findings.note(NoteCode.BLOB_FOREIGN, name, _OF_OTHERS)


def _type(state: CacheState) -> str:
    return f"snapshots/{state.snapshotter}"
