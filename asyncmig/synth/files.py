"""The three databases of a cache, written as a stream in key order."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter

from asyncmig.bolt import BucketBuilder, BucketValue, build_file
from asyncmig.bolt.build import Fill
from asyncmig.bolt.format import encode_inline
from asyncmig.buildkit.keys import INDEX, MAIN
from asyncmig.stores.offline.codec import encode_time, encode_uvarint, encode_varint
from asyncmig.synth.records import Blob, Inventory, Kind, Lease, Record, Tick
from asyncmig.synth.values import CONTENT_HASH, content_hash, record_values

NAMESPACE = b"buildkit"

_SCHEMA_VERSION = 3
_EXTERNAL = b"_external"
_GC_ROOT = b"containerd.io/gc.root"
_GC_EXPIRE = b"containerd.io/gc.expire"
_GC_REFERENCE = b"containerd.io/gc.ref.content."
_UNCOMPRESSED = b"containerd.io/uncompressed"
_SECOND = 1_000_000_000
_LEASE_SECONDS = 300
_BACKEND_KINDS = {Kind.VIEW: b"\1", Kind.MUTABLE: b"\2", Kind.COMMITTED: b"\3", Kind.PULLED: b"\3"}
_BACKEND_DELAY = 130_000
"""Nanoseconds between the times of an entry in containerd's database and in the snapshotter's."""

_by_id = attrgetter("id")


def create_file(path: str, fills: Mapping[bytes, Fill], mode: int) -> int:
    """Build a new database; return its size in bytes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        build_file(fd, path, fills)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _bucket(builder: BucketBuilder, content: dict[bytes, bytes]) -> BucketValue:
    """A small nested bucket."""
    names = sorted(content)
    return builder.leaf_bucket(names, [content[name] for name in names], 0)


# -- metadata.db


def metadata_fills(inventory: Inventory, tick: Tick, externals: list[int]) -> dict[bytes, Fill]:
    """The buckets of ``metadata.db``.  Appends the size of each external value to ``externals``."""
    if not inventory.records:
        return {}  # as in the database of a daemon that has not built anything
    in_order = sorted(inventory.records, key=_by_id)
    index = sorted(name + b"::" + record.id for record in in_order for name in record_values(record, inventory.started)[1])

    def fill_main(builder: BucketBuilder) -> None:
        for record in in_order:
            tick()
            builder.put(record.id, _bucket(builder, record_values(record, inventory.started)[0]))

    def fill_index(builder: BucketBuilder) -> None:
        for key in index:
            builder.put(key, b"")

    def fill_external(builder: BucketBuilder) -> None:
        for record in in_order:
            data = content_hash(record)
            if data:
                builder.put(record.id, builder.leaf_bucket([CONTENT_HASH], [data], 0))
                externals.append(len(data))

    return {MAIN: fill_main, INDEX: fill_index, _EXTERNAL: fill_external}


# -- containerdmeta.db


def containerd_fills(inventory: Inventory, snapshotter: str, tick: Tick) -> dict[bytes, Fill]:
    """The buckets of ``containerdmeta.db``."""

    def fill(builder: BucketBuilder) -> None:
        if inventory.records:
            namespace = builder.child()
            namespace.put(b"content", _content(namespace, inventory))
            namespace.put(b"leases", _leases(namespace, inventory.leases))
            namespace.put(b"snapshots", _snapshots(namespace, inventory, snapshotter.encode(), tick))
            builder.put(NAMESPACE, namespace.finish())
        builder.put(b"version", encode_varint(_SCHEMA_VERSION))

    return {b"v1": fill}


def _content(parent: BucketBuilder, inventory: Inventory) -> BucketValue:
    content = parent.child()
    blobs = content.child()
    for blob in sorted(inventory.blobs, key=attrgetter("digest")):
        blobs.put(blob.digest, _blob(blobs, blob, inventory.started))
    content.put(b"blob", blobs.finish())
    content.put(b"ingests", encode_inline([], [], 0))
    return content.finish()


def _blob(builder: BucketBuilder, blob: Blob, started: int) -> BucketValue:
    labels = {_GC_REFERENCE + _reference_name(blob, i): ref for i, ref in enumerate(blob.references)}
    if blob.rooted:
        labels[_GC_ROOT] = rfc3339(blob.created)
    if blob.diff_id:
        labels[_UNCOMPRESSED] = blob.diff_id
    entry = {
        b"createdat": encode_time(blob.created),
        b"labels": _bucket(builder, labels),
        b"size": encode_varint(blob.size),
        b"updatedat": encode_time(min(blob.created + _SECOND, started)),
    }
    return builder.leaf_bucket(list(entry), list(entry.values()), 0)


def _reference_name(blob: Blob, position: int) -> bytes:
    """BuildKit names the references of layers by digest; containerd names those of manifests by position."""
    return blob.references[position][7:19] if blob.diff_id else b"%d" % position


def _leases(parent: BucketBuilder, leases: list[Lease]) -> BucketValue:
    builder = parent.child()
    for lease in sorted(leases, key=_by_id):
        expires = rfc3339((lease.created // _SECOND + _LEASE_SECONDS) * _SECOND)
        entry: dict[bytes, bytes] = {
            b"content": builder.leaf_bucket(lease.blobs, [b""] * len(lease.blobs), 0),
            b"createdat": encode_time(lease.created),
            b"labels": builder.leaf_bucket([_GC_EXPIRE], [expires], 0),
        }
        builder.put(lease.id, _bucket(builder, entry))
    return builder.finish()


def _snapshots(parent: BucketBuilder, inventory: Inventory, snapshotter: bytes, tick: Tick) -> BucketValue:
    snapshotters = parent.child()
    builder = snapshotters.child(inventory.last_number)
    for record in sorted(inventory.snapshots(), key=_by_id):
        tick()
        builder.put(record.id, _snapshot(builder, record, inventory.started))
    snapshotters.put(snapshotter, builder.finish())
    return snapshotters.finish()


def _snapshot(builder: BucketBuilder, record: Record, started: int) -> BucketValue:
    # The daemon writes the label of each record anew when it starts, but it does not know of stale views.
    rooted = record.created if record.kind is Kind.VIEW else started + record.detail % _SECOND
    entry: dict[bytes, bytes] = {}
    if record.children:
        children = sorted(record.children)
        entry[b"children"] = builder.leaf_bucket(children, [b""] * len(children), 0)
    entry[b"createdat"] = encode_time(record.created)
    entry[b"labels"] = builder.leaf_bucket([_GC_ROOT], [rfc3339(rooted)], 0)
    entry[b"name"] = record.backend_name
    if record.parent:
        entry[b"parent"] = record.parent.id
    entry[b"updatedat"] = encode_time(rooted)
    return builder.leaf_bucket(list(entry), list(entry.values()), 0)


# -- the snapshotter's metadata.db


def snapshotter_fills(inventory: Inventory, tick: Tick) -> dict[bytes, Fill]:
    """The buckets of ``snapshots/metadata.db``."""
    snapshots = inventory.snapshots()
    if not snapshots:
        return {}

    def fill(builder: BucketBuilder) -> None:
        parents = builder.child()
        for record in sorted((r for r in snapshots if r.parent), key=_parents_key):
            parents.put(_parents_key(record), record.backend_name)
        builder.put(b"parents", parents.finish())
        entries = builder.child(inventory.last_backend_id)
        for record in sorted(snapshots, key=attrgetter("backend_name")):
            tick()
            entries.put(record.backend_name, _backend_entry(entries, record))
        builder.put(b"snapshots", entries.finish())

    return {b"v1": fill}


def _parents_key(record: Record) -> bytes:
    assert record.parent is not None
    return encode_uvarint(record.parent.backend_id) + b"\0" + encode_uvarint(record.backend_id)


def _backend_entry(builder: BucketBuilder, record: Record) -> BucketValue:
    created = encode_time(record.created + _BACKEND_DELAY)
    entry = {b"createdat": created, b"id": encode_uvarint(record.backend_id)}
    if record.is_committed:
        entry[b"inodes"] = encode_varint(record.inodes)
    entry[b"kind"] = _BACKEND_KINDS[record.kind]
    if record.parent:
        entry[b"parent"] = record.parent.backend_name
    if record.is_committed:
        entry[b"size"] = encode_varint(record.size)
    entry[b"updatedat"] = created
    return builder.leaf_bucket(list(entry), list(entry.values()), 0)


# -- time


def rfc3339(unix_ns: int) -> bytes:
    """A time in the form of Go's ``RFC3339Nano``: without trailing zeros."""
    seconds, nanoseconds = divmod(unix_ns, _SECOND)
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{_date(seconds)}{fraction}Z".encode()


@lru_cache(maxsize=1024)
def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
