"""Changes to a migrated cache on disk, each a function of its worker directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from asyncmig.bolt import Db
from asyncmig.stores.offline import codec
from tests.caches import ROOT, digest

_PLACE = (b"v1", b"buildkit")
SNAPSHOTS = ("v1", "buildkit", "snapshots", "overlayfs")
LEASES = ("v1", "buildkit", "leases")
BLOBS = ("v1", "buildkit", "content", "blob")
META = "containerdmeta.db"
FLAT = {"containerd.io/gc.flat": "T"}
OLD = {**FLAT, "containerd.io/gc.expire": "2020-01-01T00:00:00Z"}


def put(record: str, key: str, content: bytes) -> Callable[[Path], None]:
    """Set a value of a record."""

    def act(worker: Path) -> None:
        with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
            tx.create_path(b"_main", record.encode()).put(key.encode(), content)

    return act


def both(*acts: Callable[[Path], None]) -> Callable[[Path], None]:
    def act(worker: Path) -> None:
        for one in acts:
            one(worker)

    return act


def drop(*path: str, name: str, database: str = "metadata_v2.db") -> Callable[[Path], None]:
    """Delete a bucket or a key."""

    def act(worker: Path) -> None:
        with Db.open(worker / database, writable=True) as db, db.update() as tx:
            bucket = tx.path_bucket(*map(str.encode, path))
            assert bucket is not None
            if bucket.bucket(name.encode()) is None:
                assert name.encode() in bucket
                bucket.delete(name.encode())
            else:
                bucket.delete_bucket(name.encode())

    return act


def index(entry: str) -> Callable[[Path], None]:
    def act(worker: Path) -> None:
        with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
            tx.create_path(b"_index").put(entry.encode(), b"")

    return act


def lease(name: str, labels: dict[str, str], snapshots: tuple[str, ...] = ()) -> Callable[[Path], None]:
    def act(worker: Path) -> None:
        with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
            entry = tx.create_path(*_PLACE, b"leases", name.encode())
            entry.put(b"createdat", codec.now())
            for key, text in labels.items():
                entry.create_bucket_if_not_exists(b"labels").put(key.encode(), text.encode())
            for snapshot in snapshots:
                tx.create_path(*_PLACE, b"leases", name.encode(), b"snapshots", b"overlayfs").put(snapshot.encode(), b"")

    return act


def label(*path: str) -> Callable[[Path], None]:
    def act(worker: Path) -> None:
        with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
            tx.create_path(*_PLACE, *map(str.encode, path), b"labels").put(ROOT.encode(), b"T")

    return act


def cut_blob(worker: Path) -> None:
    (worker / "content/blobs" / digest("blob d").replace(":", "/")).write_bytes(b"short")


def store(*path: str, database: str = META, **values: str) -> Callable[[Path], None]:
    """Set values in a bucket of containerd's namespace."""

    def act(worker: Path) -> None:
        with Db.open(worker / database, writable=True) as db, db.update() as tx:
            bucket = tx.create_path(*_PLACE, *map(str.encode, path))
            for key, text in values.items():
                bucket.put(key.encode(), text.encode())

    return act


def directory_of(worker: Path, snapshot: str, *, snapshots: str = "snapshots") -> Path:
    """The directory of a snapshot."""
    with Db.open(worker / snapshots / "metadata.db") as db, db.view() as tx:
        entries = tx.path_bucket(b"v1", b"snapshots")
        assert entries is not None
        [key] = [key for key, _ in entries.items() if key.split(b"/", 2)[2] == snapshot.encode()]
        entry = entries.bucket(key)
        assert entry is not None
        return worker / snapshots / "snapshots" / str(codec.decode_uvarint(entry.get(b"id") or b""))


def remove_directory(snapshot: str) -> Callable[[Path], None]:
    return lambda worker: shutil.rmtree(directory_of(worker, snapshot))


def remove_directories(worker: Path) -> None:
    shutil.rmtree(worker / "snapshots/snapshots")


def drop_record(name: str) -> Callable[[Path], None]:
    """Delete a record as BuildKit does, with its lease."""

    def act(worker: Path) -> None:
        with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
            main, entries = tx.create_path(b"_main"), tx.create_path(b"_index")
            main.delete_bucket(name.encode())
            for key in [key for key, _ in entries.items() if key.endswith(f"::{name}".encode())]:
                entries.delete(key)
        drop(*LEASES, name=name, database=META)(worker)

    return act


def set_size(snapshot: str, size: int) -> Callable[[Path], None]:
    """Record the size of a snapshot, as a snapshotter does when it commits one."""

    def act(worker: Path) -> None:
        with Db.open(worker / "snapshots/metadata.db", writable=True) as db, db.update() as tx:
            entries = tx.create_path(b"v1", b"snapshots")
            [key] = [key for key, _ in entries.items() if key.split(b"/", 2)[2] == snapshot.encode()]
            tx.create_path(b"v1", b"snapshots", key).put(b"size", codec.encode_varint(size))

    return act
