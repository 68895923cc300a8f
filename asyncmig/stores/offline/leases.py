"""Leases in containerd's metadata database: ``v1/<namespace>/leases/<id>``.

A lease holds ``createdat``, a bucket of labels if it has any, and its resources as keys with empty values:
``snapshots/<snapshotter>/<key>`` and ``content/<digest>``.  Other writers also add ``ingests/<ref>`` and, from containerd 2.0
on, ``images/<name>``.  A lease has no ``updatedat``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from asyncmig.bolt import BucketValue, Checkpoint, Contents, Tx, edit_buckets, nested_contents, read_contents, write_contents
from asyncmig.bolt.build import write_small_bucket
from asyncmig.concurrency import in_thread, stepping
from asyncmig.errors import BucketError, StoreError, printable
from asyncmig.sorting import sorted_in_steps
from asyncmig.stores.fanout import Progress
from asyncmig.stores.offline import codec
from asyncmig.stores.offline.entries import CREATED_AT, LABELS
from asyncmig.stores.offline.files import CONTENT, LEASES, SNAPSHOTS, VERSION, OfflineFiles, update, view
from asyncmig.stores.ports import Lease, Protected, Resource

# Never confirmed: reading all leases back costs only one transaction and proves that we wrote what we meant.
_NEW = Protected(is_new=True, confirmed=False)
_EXISTING = Protected(is_new=False, confirmed=False)
_MOST_LABELS = 64
_FLAT = (CONTENT, b"ingests", b"images")
"""Resource types that have a bucket of their own.  No migration makes the last two, but other leases may hold them."""


class OfflineLeases:
    """The lease port."""

    def __init__(self, files: OfflineFiles, progress: Progress) -> None:
        self._files = files
        self._progress = progress

    @property
    def atomic(self) -> bool:
        """Always: one transaction makes all leases."""
        return True

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        """All leases from one read transaction."""
        return await in_thread(self._list_many, ids)

    def _list_many(self, checkpoint: Checkpoint, ids: Sequence[str]) -> list[Lease | None]:
        result: list[Lease | None] = []
        known: dict[bytes, Mapping[str, str]] = {}
        with view(self._files.metadata) as tx:
            leases = tx and tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for lease_id in stepping(checkpoint, ids, self._progress):
                stored = leases.value(codec.to_bytes(lease_id)) if leases else None
                result.append(_read(tx, lease_id, stored, known) if tx and type(stored) is BucketValue else None)
        return result

    async def list_all(self) -> list[Lease]:
        """All leases from one read transaction."""
        return await in_thread(self._list_all)

    def _list_all(self, checkpoint: Checkpoint) -> list[Lease]:
        found = []
        known: dict[bytes, Mapping[str, str]] = {}
        with view(self._files.metadata) as tx:
            leases = tx and tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for name, value in stepping(checkpoint, leases.entries()) if leases else ():
                if tx and type(value) is BucketValue:
                    found.append(_read(tx, codec.to_text(name), value, known))
        return found

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        """Make all leases with their resources in one transaction, so a cancelled call has no effect."""
        return await in_thread(self._protect_many, leases)

    def _protect_many(self, checkpoint: Checkpoint, leases: Sequence[Lease]) -> list[Protected]:
        if not leases:
            return []
        now = codec.now()
        outcomes: list[Protected] = []
        with update(self._files.metadata) as tx:

            def edit(name: bytes, stored: BucketValue | None) -> BucketValue:
                lease = next(pending)
                if stored is None:
                    outcomes.append(_NEW)
                    return _new_lease(tx, lease, now, labels_of(lease.labels))
                outcomes.append(_EXISTING)
                entry = read_contents(tx, stored)
                _add_resources(tx, entry, lease.resources)
                return write_contents(tx, entry)

            labels_of = _LabelWriter(tx)
            pending = iter(leases)
            bucket = tx.create_path(VERSION, self._files.namespace, LEASES)
            edit_buckets(bucket, (codec.to_bytes(lease.id) for lease in stepping(checkpoint, leases, self._progress)), edit)
        return outcomes

    async def delete_many(self, ids: Sequence[str]) -> None:
        """Delete all leases in one transaction, so a cancelled call has no effect."""
        await in_thread(self._delete_many, ids)

    def _delete_many(self, checkpoint: Checkpoint, ids: Sequence[str]) -> None:
        if not ids or self._files.metadata is None:
            return
        with update(self._files.metadata) as tx:
            leases = tx.path_bucket(VERSION, self._files.namespace, LEASES)
            for lease_id in stepping(checkpoint, sorted_in_steps(list(ids)), self._progress) if leases else ():
                name = codec.to_bytes(lease_id)
                if leases and leases.bucket(name):
                    leases.delete_bucket(name)

    async def remove_resources_many(self, leases: Sequence[Lease]) -> None:
        """Remove the resources from all leases in one transaction, so a cancelled call has no effect.

        Their buckets stay even if they become empty, as with containerd's DeleteResource (``metadata/leases.go``).
        """
        await in_thread(self._remove_resources_many, leases)

    def _remove_resources_many(self, checkpoint: Checkpoint, leases: Sequence[Lease]) -> None:
        if not leases or self._files.metadata is None:
            return
        with update(self._files.metadata) as tx:
            bucket = tx.path_bucket(VERSION, self._files.namespace, LEASES)

            def edit(name: bytes, stored: BucketValue | None) -> BucketValue | None:
                lease = next(pending)
                if stored is None:
                    return None
                entry = read_contents(tx, stored)
                _remove_resources(tx, entry, lease.resources)
                return write_contents(tx, entry)

            pending = iter(leases)
            if bucket:
                edit_buckets(bucket, (codec.to_bytes(lease.id) for lease in stepping(checkpoint, leases, self._progress)), edit)


class _LabelWriter:
    """Writes the labels of leases; encodes them once, because all leases of a migration have the same labels."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._labels: Mapping[str, str] = {}
        self._value: BucketValue | None = None

    def __call__(self, labels: Mapping[str, str]) -> BucketValue | None:
        if labels is not self._labels or (self._value and self._value.root):  # no two buckets may share a page
            self._labels = labels
            texts = {codec.to_bytes(name): codec.to_bytes(value) for name, value in labels.items()}
            self._value = write_contents(self._tx, Contents(texts)) if labels else None
        return self._value


def _new_lease(tx: Tx, lease: Lease, now: bytes, labels: BucketValue | None) -> BucketValue:
    """Write a lease that does not exist yet.  Writing its entries in key order costs half as much as :func:`_add_resources`."""
    held = _by_place(lease.resources, (CONTENT,))
    content = held.pop((CONTENT,), None)
    entry: dict[bytes, bytes] = {} if content is None else {CONTENT: _keys(tx, content)}
    entry[CREATED_AT] = now
    if labels is not None:
        entry[LABELS] = labels
    if held:
        places = sorted(held)
        values: list[bytes] = [_keys(tx, held[place]) for place in places]
        entry[SNAPSHOTS] = write_small_bucket(tx.writer, [snapshotter for _, snapshotter in places], values, 0)
    return write_small_bucket(tx.writer, list(entry), list(entry.values()), 0)


def _keys(tx: Tx, names: list[bytes]) -> BucketValue:
    """A bucket with these keys and empty values."""
    ordered = sorted(set(names)) if len(names) > 1 else names
    return write_small_bucket(tx.writer, ordered, [b""] * len(ordered), 0)


def _add_resources(tx: Tx, entry: Contents, resources: Sequence[Resource]) -> None:
    for place, names in _by_place(resources, (CONTENT,)).items():
        way = [entry]
        for bucket_name in place:
            below = nested_contents(tx, way[-1], bucket_name)
            if below is None and bucket_name in way[-1]:
                raise BucketError(f"key {bucket_name!r} already exists")
            way.append(Contents() if below is None else below)
        for name in names:
            if type(way[-1].get(name)) is BucketValue:
                raise BucketError(f"key {name[:64]!r} is a bucket")
            way[-1][name] = b""
        _put_back(tx, way, place)


def _remove_resources(tx: Tx, entry: Contents, resources: Sequence[Resource]) -> None:
    for place, names in _by_place(resources, _FLAT).items():
        way = [entry]
        for bucket_name in place:
            below = nested_contents(tx, way[-1], bucket_name)
            if below is None:
                break
            way.append(below)
        else:
            for name in names:
                if type(way[-1].get(name)) is not BucketValue:
                    way[-1].pop(name, None)
            _put_back(tx, way, place)


def _put_back(tx: Tx, way: list[Contents], place: tuple[bytes, ...]) -> None:
    """Write the buckets on the way to a place, the innermost first; all except ``way[0]``, which the caller writes."""
    for i in range(len(place), 0, -1):
        way[i - 1][place[i - 1]] = write_contents(tx, way[i])


def _by_place(resources: Sequence[Resource], flat: tuple[bytes, ...]) -> dict[tuple[bytes, ...], list[bytes]]:
    """The keys of the resources, by the names of the buckets that hold them."""
    found: dict[tuple[bytes, ...], list[bytes]] = {}
    for resource in resources:
        found.setdefault(_place(resource.type, flat), []).append(codec.to_bytes(resource.id))
    return found


@lru_cache(maxsize=64)
def _place(resource_type: str, flat: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Names of the buckets that hold a resource of this type.  ``flat``: the allowed types that consist of one word."""
    place = tuple(codec.to_bytes(resource_type).split(b"/"))
    if not (len(place) == 1 and place[0] in flat) and not (len(place) == 2 and place[0] == SNAPSHOTS):
        raise StoreError(f"a lease can't hold a resource of type {printable(resource_type)}")
    return place


def _read(tx: Tx, lease_id: str, stored: BucketValue, known: dict[bytes, Mapping[str, str]]) -> Lease:
    """A lease.  ``known`` has labels that were decoded before, because all leases of one migration have the same labels."""
    entry = read_contents(tx, stored)
    raw = entry.get(LABELS, b"")
    if type(raw) is not BucketValue:
        raw = b""  # no labels, even if another lease has a bucket with the same bytes
    labels = known.get(raw)
    if labels is None:
        contents = nested_contents(tx, entry, LABELS) or Contents()
        labels = {codec.to_text(k): "" if type(v) is BucketValue else codec.to_text(v) for k, v in contents.items()}
        if len(known) < _MOST_LABELS and not (type(raw) is BucketValue and raw.root):
            known[raw] = labels
    return Lease(lease_id, labels, tuple(_resources(tx, entry)))


def _resources(tx: Tx, entry: Contents) -> Iterator[Resource]:
    for kind in _FLAT:
        if kind in entry:
            for key in nested_contents(tx, entry, kind) or ():
                yield Resource(codec.to_text(kind), codec.to_text(key))
    snapshots = nested_contents(tx, entry, SNAPSHOTS) or Contents()
    for snapshotter in snapshots:
        kind_name = _snapshots_of(snapshotter)
        for key in nested_contents(tx, snapshots, snapshotter) or ():
            yield Resource(kind_name, codec.to_text(key))


@lru_cache(maxsize=64)
def _snapshots_of(snapshotter: bytes) -> str:
    return f"snapshots/{codec.to_text(snapshotter)}"
