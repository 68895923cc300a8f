"""What a migration would change, one change at a time."""

from __future__ import annotations

from collections.abc import Iterator

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import stepping
from asyncmig.migration.changes import Change, LabelChange, LeaseChange
from asyncmig.migration.pipeline import Pipeline
from asyncmig.stores.ports import GC_ROOT


def changes(checkpoint: Checkpoint, pipeline: Pipeline) -> Iterator[Change]:
    """What the prepared migration would change: records, index entries, leases, labels."""
    yield from pipeline.cache.database.changes(pipeline.cache.revision, checkpoint=checkpoint)
    for lease in stepping(checkpoint, pipeline.leases.leases):
        before = pipeline.leases.held.get(lease.id)
        lacking = tuple(resource for resource in lease.resources if before is None or resource not in before)
        if lacking or before is None:
            yield LeaseChange(lease.id, before is None, tuple(lease.labels) if before is None else (), lacking)
    release = pipeline.release
    for kind, roots in (("snapshot", release.snapshot_roots), ("blob", release.blob_roots)):
        for name, value in stepping(checkpoint, roots.items()):
            yield LabelChange(kind, name, GC_ROOT, value)
