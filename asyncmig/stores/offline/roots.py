"""What containerd's garbage collector keeps besides what leases hold, in its metadata database (containerd ``metadata/gc.go``).

Images keep their targets, containers their snapshots, and the labels of each thing that is kept what they refer to.  A snapshot
keeps its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from asyncmig.bolt import Bucket, Checkpoint
from asyncmig.concurrency import stepping
from asyncmig.stores.offline.codec import to_bytes, to_text
from asyncmig.stores.offline.entries import LABELS
from asyncmig.stores.offline.files import BLOB, CONTENT, SNAPSHOTS
from asyncmig.stores.ports import Kept, Resource

_REFERS_TO_CONTENT = b"containerd.io/gc.ref.content"
_REFERS_TO_SNAPSHOT = b"containerd.io/gc.ref.snapshot."
_CONTENT = "content"
_SNAPSHOTS = "snapshots/"


def kept_besides(checkpoint: Checkpoint, space: Bucket, snapshotter: str, roots: Sequence[Resource]) -> Kept:
    """What is reached in a namespace's bucket from its images and containers, and from ``roots``.  Blocking."""
    reached: set[Resource] = set()
    waiting = [*roots]
    waiting += stepping(checkpoint, _of_others(space))
    while waiting:
        checkpoint()
        found = waiting.pop()
        if found not in reached:
            reached.add(found)
            waiting += _needed(space, found)
    snapshots, blobs = set(), set()
    for found in stepping(checkpoint, reached):
        if found.type == _CONTENT:
            blobs.add(found.id)
        elif found.type == _SNAPSHOTS + snapshotter:
            snapshots.add(found.id)
    return Kept(snapshots, blobs)


def _of_others(space: Bucket) -> Iterator[Resource]:
    for entry in _buckets(space, b"images"):
        target = entry.bucket(b"target")
        if digest := target and target.get(b"digest"):
            yield Resource(_CONTENT, to_text(digest))
        yield from _labelled(entry)
    for entry in _buckets(space, b"containers"):
        snapshotter, key = entry.get(b"snapshotter"), entry.get(b"snapshotKey")
        if snapshotter and key:
            yield Resource(_SNAPSHOTS + to_text(snapshotter), to_text(key))
        yield from _labelled(entry)
    for entry in _buckets(space, b"sandboxes"):
        yield from _labelled(entry)


def _buckets(space: Bucket, name: bytes) -> Iterator[Bucket]:
    parent = space.bucket(name)
    for key, value in parent.items() if parent else ():
        if value is None and parent and (entry := parent.bucket(key)):
            yield entry


def _needed(space: Bucket, kept: Resource) -> Iterable[Resource]:
    if kept.type == _CONTENT:
        entry = _below(space, CONTENT, BLOB, to_bytes(kept.id))
    else:
        entry = _below(space, SNAPSHOTS, to_bytes(kept.type.removeprefix(_SNAPSHOTS)), to_bytes(kept.id))
    if entry is None:
        return
    if kept.type != _CONTENT and (parent := entry.get(b"parent")):
        yield Resource(kept.type, to_text(parent))
    yield from _labelled(entry)


def _below(space: Bucket, *names: bytes) -> Bucket | None:
    found: Bucket | None = space
    for name in names:
        found = found.bucket(name) if found is not None else None
    return found


def _labelled(entry: Bucket) -> Iterator[Resource]:
    labels = entry.bucket(LABELS)
    for key, value in labels.items() if labels else ():
        if value and key.startswith(_REFERS_TO_CONTENT):
            yield Resource(_CONTENT, to_text(value))
        elif value and key.startswith(_REFERS_TO_SNAPSHOT):
            snapshotter = key[len(_REFERS_TO_SNAPSHOT) :].partition(b"/")[0]
            yield Resource(_SNAPSHOTS + to_text(snapshotter), to_text(value))
