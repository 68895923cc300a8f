"""Small v1 caches described in a few lines, laid out as an OCI worker directory or in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from asyncmig.bolt import Bucket, Db
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.migration.cache import Cache
from asyncmig.migration.completion import complete
from asyncmig.migration.decisions import Policy
from asyncmig.migration.journal import JournalFile
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.progress import Progress
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.reporter import Reporter
from asyncmig.migration.semantics import UPSTREAM, Semantics
from asyncmig.stores.memory import MemoryBlob, MemoryLease, MemorySnapshot, MemoryStores
from asyncmig.stores.offline import codec
from asyncmig.stores.ports import Kind, Resource, Stores
from tests.states import dump_lines

ROOT = "containerd.io/gc.root"
TIME = "2020-01-02T03:04:05.6Z"
_STAMP = codec.encode_time(1_577_934_245_600_000_000)


def digest(name: str) -> str:
    """A digest made of a name."""
    return "sha256:" + sha256(codec.to_bytes(name)).hexdigest()


def value(content: object, index: str = "") -> bytes:
    """A record value as BuildKit stores it."""
    fields = {"value": content, "index": index} if index else {"value": content}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass
class Snapshot:
    """A snapshot; ``in_backend=False`` for one that only containerd's database has."""

    kind: Kind = Kind.COMMITTED
    parent: str = ""
    labels: dict[str, str] = field(default_factory=lambda: {ROOT: TIME})
    in_backend: bool = True


@dataclass
class V1Cache:
    """A v1 cache: records with their values, snapshots, blobs with their labels."""

    records: dict[str, dict[str, bytes]] = field(default_factory=dict)
    index: list[str] = field(default_factory=list)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    blobs: dict[str, dict[str, str]] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    """Data of the blobs.  One that is not here has none, though the store believes that it has 100 bytes."""
    external: dict[str, dict[str, bytes]] = field(default_factory=dict)
    leases: dict[str, list[str]] = field(default_factory=dict)
    """Snapshots that leases hold already."""

    def layer(
        self,
        name: str,
        parent: str = "",
        *,
        blob: bool = True,
        more: Mapping[str, bytes] | None = None,
        data: bytes | None = None,
    ) -> None:
        """A finalised record with a committed snapshot and, perhaps, a blob."""
        self.snapshots[name] = Snapshot(parent=parent)
        self.records[name] = {"cache.createdAt": value(1), "cache.equalMutable": b"", **(more or {})}
        if blob:
            blob_sum = digest(f"blob {name}") if data is None else "sha256:" + sha256(data).hexdigest()
            mapping = {"Blobsum": blob_sum, "DiffID": digest(f"diff {name}")}
            self.data[blob_sum] = codec.to_bytes(f"blob {name}").ljust(100, b"\0") if data is None else data
            self.records[name]["blobmapping.blob"] = value(mapping, f"blobmap::{mapping['Blobsum']}")
            self.index.append(f"blobmap::{mapping['Blobsum']}::{name}")
            self.blobs[mapping["Blobsum"]] = {ROOT: TIME, "containerd.io/uncompressed": mapping["DiffID"]}

    def unfinalised(self, holder: str, mutable: str, parent: str = "") -> None:
        """A holder and the mutable record that owns its data."""
        self.snapshots[mutable] = Snapshot(Kind.ACTIVE, parent)
        self.records[mutable] = {"cache.createdAt": value(1)}
        self.records[holder] = {"cache.equalMutable": value(mutable)}

    def view(self, name: str, parent: str) -> None:
        """A view that an old daemon left behind."""
        self.snapshots[name] = Snapshot(Kind.VIEW, parent)

    # -- on disk

    def write(
        self, worker: Path, *, snapshotter: str = "overlayfs", namespace: str = "buildkit", page_size: int = 4096
    ) -> Path:
        """Lay the cache out as an OCI worker directory."""
        (worker / "snapshots").mkdir(parents=True)
        self.write_metadata(worker / "metadata.db", page_size=page_size)
        with _create(worker / "containerdmeta.db", page_size) as db, db.update() as tx:
            tx.create_bucket(b"v1").put(b"version", codec.encode_varint(3))
            space = tx.create_path(b"v1", namespace.encode())
            snapshots = space.create_bucket(b"snapshots").create_bucket(snapshotter.encode())
            for number, (key, snapshot) in enumerate(self.snapshots.items(), 1):
                entry = snapshots.create_bucket(codec.to_bytes(key))
                entry.put(b"name", codec.to_bytes(f"{namespace}/{number}/{key}"))
                _put_times(entry)
                if snapshot.parent:
                    entry.put(b"parent", codec.to_bytes(snapshot.parent))
                _put_labels(entry, snapshot.labels)
            snapshots.set_sequence(len(self.snapshots))
            blobs = space.create_bucket(b"content").create_bucket(b"blob")
            for name, labels in self.blobs.items():
                entry = blobs.create_bucket(name.encode())
                entry.put(b"size", codec.encode_varint(self._size(name)))
                _put_times(entry)
                _put_labels(entry, labels)
            for lease, held in self.leases.items():
                entry = tx.create_path(b"v1", namespace.encode(), b"leases", codec.to_bytes(lease))
                entry.put(b"createdat", _STAMP)
                for key in held:
                    tx.create_path(
                        b"v1", namespace.encode(), b"leases", codec.to_bytes(lease), b"snapshots", snapshotter.encode()
                    ).put(codec.to_bytes(key), b"")
        for name, data in self.data.items():
            file = worker / "content" / "blobs" / name.replace(":", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        with _create(worker / "snapshots" / "metadata.db", page_size) as db, db.update() as tx:
            backend = tx.create_path(b"v1", b"snapshots")
            for number, (key, snapshot) in enumerate(self.snapshots.items(), 1):
                if snapshot.in_backend:
                    entry = backend.create_bucket(codec.to_bytes(f"{namespace}/{number}/{key}"))
                    entry.put(b"id", codec.encode_uvarint(number))
                    entry.put(b"kind", bytes([snapshot.kind.value]))
                    _put_times(entry)
                    directory = worker / "snapshots" / "snapshots" / str(number)
                    (directory if snapshotter == "native" else directory / "fs").mkdir(parents=True)
        return worker

    def _size(self, name: str) -> int:
        return len(self.data[name]) if name in self.data else 100

    def write_metadata(self, path: Path, *, page_size: int = 4096) -> None:
        """Write metadata.db alone."""
        with _create(path, page_size) as db, db.update() as tx:
            for record, values in self.records.items():
                bucket = tx.create_path(b"_main", codec.to_bytes(record))
                for key, content in values.items():
                    bucket.put(key.encode(), content)
            for key in self.index:
                tx.create_path(b"_index").put(codec.to_bytes(key), b"")
            for record, values in self.external.items():
                bucket = tx.create_path(b"_external", codec.to_bytes(record))
                for key, content in values.items():
                    bucket.put(key.encode(), content)

    # -- in memory

    def in_memory(self, *, concurrency: int = 4) -> MemoryStores:
        """The stores of the cache in memory."""
        stores = MemoryStores(concurrency=concurrency)
        for key, snapshot in self.snapshots.items():
            if snapshot.in_backend:
                stores.snapshots[key] = MemorySnapshot(snapshot.kind, snapshot.parent, dict(snapshot.labels))
        for name, labels in self.blobs.items():
            stores.blobs[name] = MemoryBlob(self._size(name), dict(labels), self.data.get(name))
        for lease, held in self.leases.items():
            stores.leases[lease] = MemoryLease({}, {Resource(f"snapshots/{stores.snapshotter}", key) for key in held})
        return stores


def sample_cache() -> V1Cache:
    """Every kind of thing once or twice."""
    cache = V1Cache()
    cache.layer("a")
    cache.layer("b", "a")
    cache.layer("c", "b", blob=False)
    cache.layer("d", "b")
    cache.unfinalised("holder", "mutable", "c")
    cache.unfinalised("holder-of-root", "mutable-root")
    cache.view("view", "b")
    return cache


def marked_cache() -> V1Cache:
    """The sample with labels that can be told apart, and leases of somebody else's: one of a record's name, one on a view."""
    cache = sample_cache()
    cache.view("held view", "a")
    cache.leases = {"b": ["c"], "somebody": ["held view"]}
    labelled = [snapshot.labels for snapshot in cache.snapshots.values()] + list(cache.blobs.values())
    for number, labels in enumerate(labelled):
        labels[ROOT] = f"2020-01-02T03:04:{number:02}Z"
    return cache


def holders_of_holders(count: int) -> V1Cache:
    """Holders h0000 and so on, each of which names the one before as the owner of its data."""
    cache = V1Cache()
    cache.layer("base", blob=False)
    cache.unfinalised("h0000", "m", "base")
    for i in range(1, count):
        cache.records[f"h{i:04}"] = {"cache.equalMutable": value(f"h{i - 1:04}")}
    return cache


def new_reporter(
    worker: Path | str, outcome: Outcome, semantics: str = "hardened", progress: Progress | None = None
) -> Reporter[Report]:
    """The reporter of a run below the entry points."""
    return Reporter(Report(path=str(worker), layout="test", outcome=outcome, semantics=semantics), progress)


async def migrate_with(
    worker: Path,
    stores: Stores,
    *,
    semantics: Semantics = UPSTREAM,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run the pipeline on ``worker/metadata.db`` with stores of the caller's."""
    database = MetadataDb.open(worker / "metadata.db")
    try:
        reporter = new_reporter(worker, Outcome.MIGRATED, semantics.name, progress)
        cache = Cache(database, semantics, reporter, policy or Policy(max_dropped=100))
        pipeline = Pipeline(cache, stores, str(worker / "metadata_v2.db"))
        await pipeline.prepare()
        await pipeline.migrate()
        return reporter.result
    finally:
        database.close()


async def rerun_with(worker: Path, stores: Stores, *, semantics: Semantics = UPSTREAM, policy: Policy | None = None) -> Report:
    """Run again after an interruption: the whole, or what is left where the new database is published already."""
    file = JournalFile(str(worker / "metadata_v2.db"))
    journal = file.read()
    if not os.path.exists(worker / "metadata_v2.db"):  # noqa: ASYNC240
        return await migrate_with(worker, stores, semantics=semantics, policy=policy)
    reporter = new_reporter(worker, Outcome.COMPLETED, semantics.name)
    assert journal is not None
    await complete(journal, file, stores, reporter)
    return reporter.result


def start_again(worker: Path) -> None:
    """Remove what a migration has made in the worker directory."""
    for name in ("metadata_v2.db", "metadata_v2.db.journal"):
        (worker / name).unlink()


def labels_of(state: MemoryStores) -> Mapping[str, Mapping[str, str]]:
    """Labels of all snapshots and blobs."""
    snapshots = {name: dict(item.labels) for name, item in state.snapshots.items()}
    return snapshots | {name: dict(item.labels) for name, item in state.blobs.items()}


def final_state(state: MemoryStores, worker: Path) -> object:
    """All that a migration leaves behind, times aside."""
    leases = {name: (set(lease.labels), set(lease.resources)) for name, lease in state.leases.items()}
    return leases, labels_of(state), dump_lines(worker / "metadata_v2.db"), sorted(os.listdir(worker))


def original_state(state: MemoryStores, worker: Path) -> object:
    """All that a rollback brings back; not the new database that it has moved aside."""
    leases = {name: (dict(lease.labels), set(lease.resources)) for name, lease in state.leases.items()}
    files = set(os.listdir(worker)) - {"metadata_v2.db.rolled-back"}
    return leases, labels_of(state), (worker / "metadata.db").read_bytes(), files


def _create(path: Path, page_size: int) -> Db:
    return Db.open(path, writable=True, create=True, page_size=page_size)


def _put_times(entry: Bucket) -> None:
    entry.put(b"createdat", _STAMP)
    entry.put(b"updatedat", _STAMP)


def _put_labels(entry: Bucket, labels: Mapping[str, str]) -> None:
    if labels:
        bucket = entry.create_bucket(b"labels")
        for key, text in labels.items():
            bucket.put(key.encode(), text.encode())
