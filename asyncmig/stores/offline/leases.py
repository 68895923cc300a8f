"""Leases in containerd's metadata database: ``v1/<namespace>/leases/<id>``.

A lease holds ``createdat``, a bucket of labels if it has any, and its resources as keys with empty values:
``snapshots/<snapshotter>/<key>`` and ``content/<digest>``.  It has no ``updatedat``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asyncmig.bolt import Bucket, Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.files import CONTENT, CREATED_AT, LABELS, LEASES, SNAPSHOTS, VERSION, OfflineFiles, update, view
from asyncmig.stores.ports import Lease, Resource


class OfflineLeases:
    """The lease port."""

    def __init__(self, files: OfflineFiles) -> None:
        self._files = files

    @property
    def atomic(self) -> bool:
        """One transaction makes all leases."""
        return True

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        """All leases from one read transaction."""
        return await in_thread(self._list_many, ids)

    def _list_many(self, checkpoint: Checkpoint, ids: Sequence[str]) -> list[Lease | None]:
        result: list[Lease | None] = []
        with view(self._files.metadata) as tx:
            leases = tx and tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for lease_id in ids:
                checkpoint()
                lease = leases.bucket(codec.to_bytes(lease_id)) if leases else None
                result.append(_read(lease_id, lease) if lease else None)
        return result

    async def protect_many(self, leases: Sequence[Lease], *, complete_existing: bool) -> list[bool]:
        """Create all leases with their resources in one transaction: a cancelled call has no effect."""
        return await in_thread(self._protect_many, leases, complete_existing)

    def _protect_many(self, checkpoint: Checkpoint, leases: Sequence[Lease], complete_existing: bool) -> list[bool]:
        if not leases:
            return []
        now, created = codec.now(), []
        with update(self._files.metadata) as tx:
            bucket = tx.create_path(VERSION, self._files.namespace, LEASES)
            for lease in leases:
                checkpoint()
                name = codec.to_bytes(lease.id)
                is_new = name not in bucket
                created.append(is_new)
                if is_new:
                    _create(bucket, name, lease, now)
                if is_new or complete_existing:
                    _add_resources(bucket.create_bucket_if_not_exists(name), lease.resources)
                    bucket.spill_child(name)
        return created


def _create(leases: Bucket, name: bytes, lease: Lease, now: bytes) -> None:
    entry = leases.create_bucket(name)
    entry.put(CREATED_AT, now)
    if lease.labels:
        labels = entry.create_bucket(LABELS)
        for key, value in lease.labels.items():
            labels.put(codec.to_bytes(key), codec.to_bytes(value))


def _add_resources(entry: Bucket, resources: Sequence[Resource]) -> None:
    for resource in resources:
        kind = codec.to_bytes(resource.type).split(b"/")
        if kind != [CONTENT] and not (len(kind) == 2 and kind[0] == SNAPSHOTS):
            raise StoreError(f"a lease can't hold a resource of type {resource.type!r}")
        bucket = entry
        for name in kind:
            bucket = bucket.create_bucket_if_not_exists(name)
        bucket.put(codec.to_bytes(resource.id), b"")


def _read(lease_id: str, entry: Bucket) -> Lease:
    labels = entry.bucket(LABELS)
    return Lease(
        lease_id,
        {codec.to_text(k): codec.to_text(v or b"") for k, v in labels.items()} if labels else {},
        tuple(_resources(entry)),
    )


def _resources(entry: Bucket) -> Iterator[Resource]:
    content, snapshots = entry.bucket(CONTENT), entry.bucket(SNAPSHOTS)
    for key, _ in content.items() if content else ():
        yield Resource("content", codec.to_text(key))
    for snapshotter, _ in snapshots.items() if snapshots else ():
        held = snapshots.bucket(snapshotter) if snapshots else None
        for key, _ in held.items() if held else ():
            yield Resource(f"snapshots/{codec.to_text(snapshotter)}", codec.to_text(key))
