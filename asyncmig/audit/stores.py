"""Checks of the records against the stores: is the data there, is it protected, and may it go when its record goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from asyncmig.audit.findings import FindingCode, NoteCode
from asyncmig.audit.state import CacheState, Findings
from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.v2 import V2Record
from asyncmig.concurrency import stepping
from asyncmig.errors import printable
from asyncmig.migration.blobs import is_digest
from asyncmig.migration.media import compression_of, media_type_of
from asyncmig.migration.protect import FLAT
from asyncmig.migration.release import EXPIRE, is_expired
from asyncmig.stores.ports import GC_ROOT, Kind, Lease, Resource

_TEMPORARY = "buildkit/lease.temporary"
"""Label of the leases that BuildKit deletes when it starts."""
_BESIDE_A_RECORD = ("-view", "-variants")
"""What BuildKit adds to a record's id for further leases of it."""
_HISTORY = "ref_"
"""How the ids of leases of the build history begin."""


def check_snapshots(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Each committed record that has a snapshot of its own: is it there, committed, and built on the right one?"""
    chains = {record.snapshot: record.chain_id for record in stepping(checkpoint, state.records) if record.chain_id}
    for record in stepping(checkpoint, state.records):
        if not record.committed or record.is_holder or record.blob_only or record.deleted:
            continue
        found = state.snapshots.get(record.snapshot)
        if found is None and record.is_composed:
            continue  # none has been needed so far
        if found is None:
            findings.add(FindingCode.SNAPSHOT_MISSING, record.id, f"its snapshot {printable(record.snapshot)} does not exist")
        elif found.kind is not Kind.COMMITTED:
            text = f"it is committed, but its snapshot {printable(record.snapshot)} is {found.kind.name.lower()}"
            findings.add(FindingCode.SNAPSHOT_ACTIVE, record.id, text)
        elif not record.is_composed:
            _check_parent(state, findings, record, found.parent, chains)


def _check_parent(state: CacheState, findings: Findings, record: V2Record, actual: str, chains: Mapping[str, str]) -> None:
    """``chains``: the chain IDs of the layers in snapshots."""
    parent = state.by_id.get(record.parent)
    if (parent is None and record.parent) or (
        parent is not None and (parent.blob_only or parent.is_composed or parent.is_holder)
    ):
        return  # reported otherwise, or without a snapshot that could be told
    expected = parent.snapshot if parent else ""
    if parent is not None and parent.chain_id and chains.get(actual) == parent.chain_id:
        return  # the same layer: since v0.7 a record may use the snapshot of another one whose layers are the same
    if actual != expected:
        text = f"the parent of its snapshot is {printable(actual) or 'none'}, but should be {printable(expected) or 'none'}"
        findings.add(FindingCode.PARENT_MISMATCH, record.id, text)


# -- leases


def check_leases(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Is what each record has held by its lease, and does every lease have its record?"""
    now = datetime.now(UTC)
    for record in stepping(checkpoint, state.records):
        lease = state.leases.get(record.id)
        if record.is_holder:
            _check_surplus(state, findings, record, lease)
        elif not record.deleted:
            _check_lease(state, findings, record, lease, now)
    for lease in stepping(checkpoint, state.leases.values()):
        if lease.id not in state.by_id:
            _check_foreign(state, findings, lease)


def _check_surplus(state: CacheState, findings: Findings, record: V2Record, lease: Lease | None) -> None:
    if lease is not None and _snapshot(state, record) in lease.resources and record.snapshot not in state.snapshots:
        text = "it is not finalised, and its lease holds a snapshot that does not exist; nobody ever deletes the lease"
        findings.add(FindingCode.LEASE_SURPLUS, record.id, text)


def _check_lease(state: CacheState, findings: Findings, record: V2Record, lease: Lease | None, now: datetime) -> None:
    needed = _needed(state, record)
    if not needed:
        return
    if lease is None:
        findings.add(FindingCode.LEASE_MISSING, record.id, "it has no lease; the next garbage collection removes its data")
        return
    if is_expired(lease, now):
        findings.add(FindingCode.LEASE_EXPIRED, record.id, f"its lease has expired ({EXPIRE}); containerd removes it")
    lacking = [resource for resource in needed if resource not in lease.resources]
    if lacking:
        names = ", ".join(printable(f"{resource.type} {resource.id}") for resource in lacking)
        findings.add(
            FindingCode.LEASE_INCOMPLETE, record.id, f"its lease lacks {names}; the next garbage collection removes that"
        )
    if FLAT not in lease.labels:
        findings.note(NoteCode.LEASE_NOT_FLAT, record.id, f"its lease has no label {FLAT}, so it protects more than it must")


def _needed(state: CacheState, record: V2Record) -> list[Resource]:
    """What the lease of a record must hold, of what there is: what is missing is reported as such."""
    needed = []
    if record.snapshot in state.snapshots and not record.blob_only:
        needed.append(_snapshot(state, record))
    if record.blob in state.blobs and not record.blob_only:
        needed.append(Resource("content", record.blob))
    return needed


def _snapshot(state: CacheState, record: V2Record) -> Resource:
    return Resource(f"snapshots/{state.snapshotter}", record.snapshot)


def _check_foreign(state: CacheState, findings: Findings, lease: Lease) -> None:
    if _is_of_buildkit(state, lease):
        return
    text = "this lease belongs to no record"
    is_of_a_record = FLAT in lease.labels and EXPIRE not in lease.labels
    if is_of_a_record and not state.is_shared:
        findings.add(FindingCode.LEASE_WITHOUT_RECORD, lease.id, f"{text}; nobody ever deletes it, nor what it holds")
    else:
        findings.note(NoteCode.LEASE_WITHOUT_RECORD, lease.id, text)


def _is_of_buildkit(state: CacheState, lease: Lease) -> bool:
    """Whether the lease is one of those that BuildKit has besides those of its records."""
    if _TEMPORARY in lease.labels or lease.id.startswith(_HISTORY):
        return True
    return any(lease.id.endswith(end) and lease.id.removesuffix(end) in state.by_id for end in _BESIDE_A_RECORD)


# -- blobs


def check_blobs(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Each record with a blob: is it there, and is it what the record says?"""
    users = Counter(record.snapshot for record in stepping(checkpoint, state.records))
    for record in stepping(checkpoint, state.records):
        if record.blob:
            _check_description(findings, record)
        # A record that shares the snapshot of another one, whose layers are the same, may never have fetched its own blob.
        is_remote = record.blob not in state.blobs and users[record.snapshot] > 1
        if record.blob and not record.blob_only and not is_remote:
            _check_blob(state, findings, record)


def _check_description(findings: Findings, record: V2Record) -> None:
    if not is_digest(record.blob):
        findings.add(FindingCode.BLOB_MALFORMED, record.id, f"its blob {printable(record.blob)} is not a digest")
    if not record.diff_id:
        findings.add(FindingCode.DIFFID_MISSING, record.id, "it has a blob but no diffID")
    if record.blob_size < 0:
        text = "it does not record the size of its blob; to export or push it fails, or writes a manifest with size -1"
        findings.add(FindingCode.SIZE_MISSING, record.id, text)


def _check_blob(state: CacheState, findings: Findings, record: V2Record) -> None:
    found = state.blobs.get(record.blob)
    if found is None:
        findings.add(FindingCode.BLOB_MISSING, record.id, f"its blob {printable(record.blob)} is not in the content store")
        return
    head = state.heads.get(record.blob)
    if head is None:
        text = f"the data of its blob {record.blob} is missing, or has another length than the content store says"
        findings.add(FindingCode.BLOB_DATA_MISSING, record.id, text)
        return
    if 0 <= record.blob_size != found.size:
        text = f"it records {record.blob_size} bytes as the size of its blob, which has {found.size}"
        findings.add(FindingCode.SIZE_WRONG, record.id, text)
    _check_media_type(findings, record, head)


def _check_media_type(findings: Findings, record: V2Record, head: bytes) -> None:
    if not record.media_type:
        return  # BuildKit since v0.10 tells it from the blob
    said, actual = compression_of(record.media_type), media_type_of(head)
    if said is None:
        text = f"its media type {printable(record.media_type)} is unknown for layers"
        findings.note(NoteCode.MEDIA_TYPE_UNKNOWN, record.id, text)
    elif said is not compression_of(actual):
        text = f"its media type is {printable(record.media_type)}, but its blob begins like {actual}"
        findings.add(FindingCode.MEDIA_TYPE_WRONG, record.id, text)


# -- what is kept


def check_labels(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """What carries v1's label is never collected."""
    of_records = {record.snapshot for record in state.records if not record.is_holder}
    blobs_of_records = {record.blob for record in state.records}
    for kind, owned, infos in (
        ("snapshot", of_records, {name: info.root for name, info in state.snapshots.items()}),
        ("blob", blobs_of_records, {name: info.root for name, info in state.blobs.items()}),
    ):
        for name, root in stepping(checkpoint, infos.items()):
            if root is not None and name in owned:
                text = f"this {kind} of a record still carries v1's label {GC_ROOT}; it is never collected"
                findings.add(FindingCode.LABEL_LEFT, name, text)
            elif root is not None:
                text = f"this {kind} belongs to no record but carries v1's label {GC_ROOT}; it is never collected"
                findings.note(NoteCode.LABEL_WITHOUT_RECORD, name, text)
