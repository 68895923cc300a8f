"""Leases in containerd's metadata database: ``v1/<namespace>/leases/<id>``.

A lease holds ``createdat``, a bucket of labels if it has any, and its resources as keys with empty values:
``snapshots/<snapshotter>/<key>`` and ``content/<digest>``, with other writers also ``ingests/<ref>`` and, from containerd 2.0
on, ``images/<name>``.  It has no ``updatedat``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from asyncmig.bolt import Bucket, BucketBuilder, BucketValue, Checkpoint, build_bucket
from asyncmig.concurrency import in_thread
from asyncmig.errors import StoreError, printable
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.files import CONTENT, CREATED_AT, LABELS, LEASES, SNAPSHOTS, VERSION, OfflineFiles, update, view
from asyncmig.stores.ports import Lease, Protected, Resource

# Reading all leases back costs one transaction; it shows that what was written is what was meant.
_NEW = Protected(is_new=True, confirmed=False)
_EXISTING = Protected(is_new=False, confirmed=False)
_FLAT = (CONTENT, b"ingests", b"images")
"""Types that stand in a bucket of their own.  No migration makes the last two, but they count for who holds a lease."""


class OfflineLeases:
    """The lease port."""

    def __init__(self, files: OfflineFiles, progress: Progress) -> None:
        self._files = files
        self._progress = progress

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
                self._progress(1)
                lease = leases.bucket(codec.to_bytes(lease_id)) if leases else None
                result.append(_read(lease_id, lease) if lease else None)
        return result

    async def list_all(self) -> list[Lease]:
        """All leases from one read transaction."""
        return await in_thread(self._list_all)

    def _list_all(self, checkpoint: Checkpoint) -> list[Lease]:
        found = []
        with view(self._files.metadata) as tx:
            leases = tx and tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for name, value in leases.items() if leases else ():
                checkpoint()
                lease = leases.bucket(name) if leases and value is None else None
                if lease is not None:
                    found.append(_read(codec.to_text(name), lease))
        return found

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        """Make all leases with their resources in one transaction: a cancelled call has no effect."""
        return await in_thread(self._protect_many, leases)

    def _protect_many(self, checkpoint: Checkpoint, leases: Sequence[Lease]) -> list[Protected]:
        if not leases:
            return []
        now, outcomes = codec.now(), []
        with update(self._files.metadata) as tx:
            bucket = tx.create_path(VERSION, self._files.namespace, LEASES)
            for lease in leases:
                checkpoint()
                self._progress(1)
                name = codec.to_bytes(lease.id)
                is_new = name not in bucket
                outcomes.append(_NEW if is_new else _EXISTING)
                if is_new:
                    build_bucket(bucket, name, partial(_fill, lease, now))
                else:
                    _add_resources(bucket.create_bucket_if_not_exists(name), lease.resources)
                    bucket.spill_child(name)
        return outcomes

    async def delete_many(self, ids: Sequence[str]) -> None:
        """Delete all leases in one transaction: a cancelled call has no effect."""
        await in_thread(self._delete_many, ids)

    def _delete_many(self, checkpoint: Checkpoint, ids: Sequence[str]) -> None:
        if not ids or self._files.metadata is None:
            return
        with update(self._files.metadata) as tx:
            leases = tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for lease_id in sorted_in_steps(list(ids)) if leases else ():
                checkpoint()
                self._progress(1)
                name = codec.to_bytes(lease_id)
                if leases and leases.bucket(name):
                    leases.delete_bucket(name)

    async def remove_resources_many(self, leases: Sequence[Lease]) -> None:
        """Take the resources from all leases in one transaction: a cancelled call has no effect.

        The buckets they stood in stay, if empty, as with containerd's DeleteResource (``metadata/leases.go``).
        """
        await in_thread(self._remove_resources_many, leases)

    def _remove_resources_many(self, checkpoint: Checkpoint, leases: Sequence[Lease]) -> None:
        if not leases or self._files.metadata is None:
            return
        with update(self._files.metadata) as tx:
            bucket = tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for lease in leases:
                checkpoint()
                self._progress(1)
                name = codec.to_bytes(lease.id)
                entry = bucket.bucket(name) if bucket else None
                if bucket is not None and entry is not None:
                    _remove_resources(entry, lease.resources)
                    bucket.spill_child(name)


def _fill(lease: Lease, now: bytes, entry: BucketBuilder) -> None:
    """The entries of a new lease, in key order."""
    held: dict[tuple[bytes, ...], set[bytes]] = {}
    for resource in lease.resources:
        held.setdefault(_place(resource), set()).add(codec.to_bytes(resource.id))
    if (CONTENT,) in held:
        entry.put(CONTENT, _flat(entry, dict.fromkeys(held.pop((CONTENT,)), b"")))
    entry.put(CREATED_AT, now)
    if lease.labels:
        entry.put(LABELS, _flat(entry, {codec.to_bytes(k): codec.to_bytes(v) for k, v in lease.labels.items()}))
    if held:
        snapshots = entry.child()
        for (_, snapshotter), keys in sorted(held.items()):
            snapshots.put(snapshotter, _flat(entry, dict.fromkeys(keys, b"")))
        entry.put(SNAPSHOTS, snapshots.finish())


def _flat(entry: BucketBuilder, content: dict[bytes, bytes]) -> BucketValue:
    bucket = entry.child()
    for key in sorted(content):
        bucket.put(key, content[key])
    return bucket.finish()


def _add_resources(entry: Bucket, resources: Sequence[Resource]) -> None:
    for resource in resources:
        bucket = entry
        for name in _place(resource):
            bucket = bucket.create_bucket_if_not_exists(name)
        bucket.put(codec.to_bytes(resource.id), b"")


def _remove_resources(entry: Bucket, resources: Sequence[Resource]) -> None:
    for resource in resources:
        bucket: Bucket | None = entry
        for name in _place(resource, _FLAT):
            bucket = bucket.bucket(name) if bucket else None
        key = codec.to_bytes(resource.id)
        if bucket is not None and bucket.get(key) is not None:
            bucket.delete(key)


def _place(resource: Resource, flat: tuple[bytes, ...] = (CONTENT,)) -> tuple[bytes, ...]:
    """Names of the buckets that a resource stands in; ``flat`` are the types allowed that are one word."""
    place = tuple(codec.to_bytes(resource.type).split(b"/"))
    if not (len(place) == 1 and place[0] in flat) and not (len(place) == 2 and place[0] == SNAPSHOTS):
        raise StoreError(f"a lease can't hold a resource of type {printable(resource.type)}")
    return place


def _read(lease_id: str, entry: Bucket) -> Lease:
    labels = entry.bucket(LABELS)
    return Lease(
        lease_id,
        {codec.to_text(k): codec.to_text(v or b"") for k, v in labels.items()} if labels else {},
        tuple(_resources(entry)),
    )


def _resources(entry: Bucket) -> Iterator[Resource]:
    for kind in _FLAT:
        flat = entry.bucket(kind)
        for key, _ in flat.items() if flat else ():
            yield Resource(codec.to_text(kind), codec.to_text(key))
    snapshots = entry.bucket(SNAPSHOTS)
    for snapshotter, _ in snapshots.items() if snapshots else ():
        held = snapshots.bucket(snapshotter) if snapshots else None
        for key, _ in held.items() if held else ():
            yield Resource(f"snapshots/{codec.to_text(snapshotter)}", codec.to_text(key))
