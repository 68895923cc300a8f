from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig.bolt import Bucket, Db, check
from asyncmig.buildkit import gojson, keys
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.record import Record
from asyncmig.errors import LayoutError, OptionError, StoreError
from asyncmig.stores.offline.codec import decode_uvarint, decode_varint
from asyncmig.synth import Synthesis, synthesize
from asyncmig.synth.records import Quota
from asyncmig.synth.room import MAX_RECORDS, needed

DATABASES = ("metadata.db", "containerdmeta.db", "snapshots/metadata.db")
SIZES = (0, 1, 2, 3, 10, 200)

Dump = dict[bytes, "Dump | bytes"]


def contents(bucket: Bucket) -> Dump:
    result: Dump = {}
    for name, value in bucket.items():
        child = bucket.bucket(name) if value is None else None
        result[name] = contents(child) if child is not None else value or b""
    return result


def read(path: str | Path, *names: bytes) -> Dump:
    db = Db.open(path)
    try:
        with db.view() as tx:
            bucket = tx.path_bucket(*names)
            return contents(bucket) if bucket else {}
    finally:
        db.close()


def sub(dump: Dump, *names: bytes) -> Dump:
    for name in names:
        value = dump[name]
        assert isinstance(value, dict)
        dump = value
    return dump


def leaf(dump: Dump, name: bytes) -> bytes:
    value = dump[name]
    assert isinstance(value, bytes)
    return value


def records_of(directory: str) -> list[Record]:
    database = MetadataDb.open(os.path.join(directory, "metadata.db"))
    try:
        return database.read()
    finally:
        database.close()


def files_of(directory: Path) -> Iterator[tuple[str, int, bytes]]:
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        yield str(path.relative_to(directory)), mode, path.read_bytes() if stat.S_ISREG(mode) else b""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    return synthesize(tmp_path_factory.mktemp("synth"), records=1000, seed=7)


@pytest.fixture(scope="module")
def worker(made: Synthesis) -> Path:
    return Path(made.directory)


# -- the function


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthesize(tmp_path / name, records=120, seed=5)
    assert list(files_of(tmp_path / "a")) == list(files_of(tmp_path / "b"))


def test_bytes_do_not_change_between_versions(tmp_path: Path) -> None:
    """A new digest is fine when the contents were changed on purpose, but not with a new Python."""
    worker = Path(synthesize(tmp_path, records=60, seed=1).directory)
    digest = hashlib.sha256()
    for name, _, data in files_of(worker):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    assert digest.hexdigest() == "ca96935eccd3cd540f30692aa6e655450f9a69e2e745dd72e7ff5a52c76a2eb7"


@pytest.mark.parametrize("other", [2, -1])
def test_other_seed_other_records(tmp_path: Path, other: int) -> None:
    one, two = (synthesize(tmp_path / str(seed), records=20, seed=seed) for seed in (1, other))
    assert {r.id for r in records_of(one.directory)}.isdisjoint(r.id for r in records_of(two.directory))


def test_bare_has_the_same_databases(tmp_path: Path) -> None:
    full = synthesize(tmp_path / "full", records=50)
    bare = synthesize(tmp_path / "bare", records=50, bare=True)
    for name in DATABASES:
        assert Path(full.directory, name).read_bytes() == Path(bare.directory, name).read_bytes()
    blobs = "content/blobs/sha256"
    assert os.listdir(Path(bare.directory, blobs)) == os.listdir(Path(full.directory, blobs))
    assert not os.listdir(Path(bare.directory, "snapshots/snapshots"))
    assert bare.bytes_written == full.bytes_written


@pytest.mark.parametrize("records", SIZES)
def test_exact_number_of_records(tmp_path: Path, records: int) -> None:
    made = synthesize(tmp_path, records=records)
    found = records_of(made.directory)
    assert made.records == len(found) == records
    assert made.holders == sum(r.is_holder for r in found)


@pytest.mark.parametrize("records", SIZES)
def test_databases_are_sound(tmp_path: Path, records: int) -> None:
    made = synthesize(tmp_path, records=records)
    for name in DATABASES:
        assert check(os.path.join(made.directory, name)).findings == []


@pytest.mark.parametrize("records", SIZES)
@pytest.mark.parametrize("bare", [False, True])
def test_can_be_migrated(tmp_path: Path, records: int, bare: bool) -> None:
    made = synthesize(tmp_path, records=records, bare=bare)
    if bare and records:
        assert "have no directory on disk" in anyio.run(asyncmig.plan, tmp_path).refused
    report = anyio.run(asyncmig.migrate, tmp_path, asyncmig.Options(max_dropped=100))
    assert report.outcome is asyncmig.Outcome.MIGRATED
    assert {note.code for note in report.notes} <= {"leftovers", "no-records", *(["directories-missing"] if bare else [])}
    assert not report.decisions
    assert report.counts.records == report.counts.leases_created + report.counts.holders == records
    assert report.counts.holders == made.holders
    assert report.counts.views_released == made.views


def test_worker_directory_can_be_named(tmp_path: Path) -> None:
    made = synthesize(tmp_path / "runc-native", records=20)
    assert made.directory == str(tmp_path / "runc-native")
    snapshots = tmp_path / "runc-native/snapshots/snapshots"
    assert len(os.listdir(snapshots)) == made.snapshots
    assert all(not os.listdir(snapshots / name) for name in os.listdir(snapshots))
    assert anyio.run(asyncmig.migrate, tmp_path).snapshotter == "native"


def test_root_may_be_missing_or_have_other_files(tmp_path: Path) -> None:
    assert synthesize(tmp_path / "a/b", records=1).directory == str(tmp_path / "a/b/runc-overlayfs")
    (tmp_path / "cache.db").touch()
    (tmp_path / "runc-overlayfs").mkdir()
    assert synthesize(tmp_path, records=1).directory == str(tmp_path / "runc-overlayfs")


def test_refuses_what_is_there(tmp_path: Path) -> None:
    synthesize(tmp_path, records=1)
    before = list(files_of(tmp_path))
    with pytest.raises(LayoutError, match="already exists"):
        synthesize(tmp_path, records=1)
    assert list(files_of(tmp_path)) == before


def test_refuses_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runc-overlayfs").touch()
    with pytest.raises(LayoutError):
        synthesize(tmp_path, records=1)
    with pytest.raises(StoreError):
        synthesize(tmp_path / "runc-overlayfs" / "root", records=1)


def test_refuses_a_containerd_worker(tmp_path: Path) -> None:
    with pytest.raises(LayoutError):
        synthesize(tmp_path / "containerd-overlayfs", records=1)


@pytest.mark.parametrize("records", [-1, MAX_RECORDS + 1, 10**12])
def test_refuses_a_number_of_records_that_no_cache_has(records: int, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"records is {records}; give a number from 0 to 10,000,000"):
        synthesize(tmp_path, records=records)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("bare", [False, True])
def test_it_takes_no_more_than_was_asked_for(bare: bool, tmp_path: Path) -> None:
    """What is compared with the free space is what is used in the end, and not much more: directories and whole blocks, too."""
    synthesize(tmp_path / "cache", records=3000, bare=bare)
    made = [entry for path, _, _ in os.walk(tmp_path / "cache") for entry in os.scandir(path)]
    used = sum(entry.stat().st_blocks * 512 for entry in made)
    size, files = needed(3000, 0 if bare else Quota(3000).snapshots, os.statvfs(tmp_path).f_frsize)
    assert used <= size <= 2 * used
    assert len(made) <= files <= 2 * len(made)


def disk(size: int, inodes: int, total: int = 1 << 40) -> os.statvfs_result:
    """A file system with so many bytes and inodes free."""
    return os.statvfs_result((4096, 4096, 1 << 40, 0, size // 4096, total, 0, inodes, 0, 255))


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (disk(1 << 20, 1 << 30), r"100,000 records take about 2\.\d GB, but only 1\.0 MB are free"),
        (disk(1 << 40, 1000), r"100,000 records take about 3\d\d,\d\d\d inodes, but only 1,000 are free"),
    ],
)
def test_a_disk_that_is_too_small_is_left_alone(
    free: os.statvfs_result, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    with pytest.raises(StoreError, match=message):
        synthesize(tmp_path / "cache", records=100_000)
    assert not os.listdir(tmp_path)


def test_a_file_system_without_a_number_of_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs, for one: it says that it has none at all."""
    monkeypatch.setattr(os, "statvfs", lambda _: disk(1 << 40, 0, 0))
    assert synthesize(tmp_path / "cache", records=10).records == 10


@pytest.mark.parametrize("stop_at", [1, 300, 700, 1000])
def test_checkpoint_can_stop_it(tmp_path: Path, stop_at: int) -> None:
    class StopError(Exception):
        pass

    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise StopError

    with pytest.raises(StopError):
        synthesize(tmp_path, records=200, checkpoint=checkpoint)
    assert os.listdir(tmp_path / "runc-overlayfs") == []
    synthesize(tmp_path, records=200)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("records", SIZES)
def test_progress_adds_up(tmp_path: Path, records: int, bare: bool) -> None:
    told: list[int] = []
    synthesize(tmp_path, records=records, bare=bare, progress=told.append)
    assert sum(told) == records


# -- the files


def test_modes(worker: Path) -> None:
    modes = {"workerid": 0o400, "metadata.db": 0o600, "containerdmeta.db": 0o644, "snapshots/metadata.db": 0o600}
    assert {name: stat.S_IMODE((worker / name).stat().st_mode) for name in modes} == modes
    assert {stat.S_IMODE(p.stat().st_mode) for p in (worker / "content/blobs/sha256").iterdir()} == {0o444}
    assert sorted(os.listdir(worker)) == ["containerdmeta.db", "content", "metadata.db", "snapshots", "workerid"]
    assert os.listdir(worker / "content/ingest") == []
    assert len((worker / "workerid").read_bytes()) == 25


def test_bytes_written(made: Synthesis) -> None:
    assert made.bytes_written == sum(len(data) for _, _, data in files_of(Path(made.directory)))


def test_blob_files_are_what_their_names_and_labels_say(worker: Path) -> None:
    entries = read(worker / "containerdmeta.db", b"v1", b"buildkit", b"content", b"blob")
    files = {p.name: p.read_bytes() for p in (worker / "content/blobs/sha256").iterdir()}
    assert {b"sha256:" + name.encode() for name in files} == set(entries)
    for digest in entries:
        entry, data = sub(entries, digest), files[digest[7:].decode()]
        assert hashlib.sha256(data).hexdigest() == digest[7:].decode()
        assert decode_varint(leaf(entry, b"size")) == len(data)
        labels = sub(entry, b"labels")
        if b"containerd.io/uncompressed" in labels:
            tar = gzip.decompress(data)
            assert labels[b"containerd.io/uncompressed"] == b"sha256:" + hashlib.sha256(tar).hexdigest().encode()
            with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
                assert opened.getnames() == ["app/data.txt"]
        else:
            assert data.startswith(b"{")
        assert all(value in entries for name, value in labels.items() if name.startswith(b"containerd.io/gc.ref"))


def test_records_name_real_blobs(worker: Path) -> None:
    entries = read(worker / "containerdmeta.db", b"v1", b"buildkit", b"content", b"blob")
    mappings = [r.blob_mapping for r in records_of(str(worker)) if r.blob_mapping]
    for blob, diff_id in mappings:
        labels = sub(entries, blob.encode(), b"labels")
        assert labels[b"containerd.io/uncompressed"] == diff_id.encode()
        assert b"containerd.io/gc.root" in labels
    shared = Counter(blob for blob, _ in mappings)
    assert 1 <= sum(count > 1 for count in shared.values()) <= 20
    assert len(entries) > len(shared)  # configs and manifests belong to no record


def test_pulled_layers_have_their_chain_id(worker: Path) -> None:
    snapshots = read(worker / "containerdmeta.db", b"v1", b"buildkit", b"snapshots", b"overlayfs")
    pulled = {r.id: r for r in records_of(str(worker)) if r.id.startswith("sha256:")}
    assert pulled
    for record in pulled.values():
        assert record.blob_mapping
        diff_id = record.blob_mapping[1]
        parent = sub(snapshots, record.id.encode()).get(b"parent", b"")
        assert isinstance(parent, bytes)
        assert not parent or parent.decode() in pulled
        text = parent + b" " + diff_id.encode()
        assert record.id == (f"sha256:{hashlib.sha256(text).hexdigest()}" if parent else diff_id)


def test_snapshots_agree_in_both_databases(made: Synthesis, worker: Path) -> None:
    entries = read(worker / "containerdmeta.db", b"v1", b"buildkit", b"snapshots", b"overlayfs")
    backend = read(worker / "snapshots/metadata.db", b"v1", b"snapshots")
    assert len(entries) == len(backend) == made.snapshots
    children: set[tuple[bytes, bytes]] = set()
    parents: set[tuple[bytes, bytes]] = set()
    backend_parents = {}
    for key in entries:
        entry = sub(entries, key)
        other = sub(backend, leaf(entry, b"name"))
        namespace, _, name_key = leaf(entry, b"name").split(b"/", 2)
        assert (namespace, name_key) == (b"buildkit", key)
        assert list(sub(entry, b"labels")) == [b"containerd.io/gc.root"]
        committed = other[b"kind"] == b"\3"
        assert (b"size" in other) == (b"inodes" in other) == committed
        children |= {(key, child) for child in (sub(entry, b"children") if b"children" in entry else ())}
        if b"parent" in entry:
            parent = sub(entries, leaf(entry, b"parent"))
            parents.add((leaf(entry, b"parent"), key))
            assert other[b"parent"] == parent[b"name"]
            above = sub(backend, leaf(parent, b"name"))
            assert above[b"kind"] == b"\3"
            backend_parents[leaf(above, b"id") + b"\0" + leaf(other, b"id")] = entry[b"name"]
        else:
            assert b"parent" not in other
    assert children == parents
    assert read(worker / "snapshots/metadata.db", b"v1", b"parents") == backend_parents


def test_sequences_and_directories(worker: Path) -> None:
    backend = read(worker / "snapshots/metadata.db", b"v1", b"snapshots")
    ids = sorted(decode_uvarint(leaf(sub(backend, name), b"id")) for name in backend)
    numbers = [int(name.split(b"/")[1]) for name in backend]
    assert len(set(ids)) == len(set(numbers)) == len(backend)
    assert len(ids) < ids[-1]  # there are gaps
    assert sorted(map(int, os.listdir(worker / "snapshots/snapshots"))) == ids
    for path, names, last in (
        ("snapshots/metadata.db", (b"v1", b"snapshots"), ids[-1]),
        ("containerdmeta.db", (b"v1", b"buildkit", b"snapshots", b"overlayfs"), max(numbers)),
    ):
        db = Db.open(worker / path)
        try:
            with db.view() as tx:
                bucket = tx.path_bucket(*names)
                assert bucket is not None
                assert bucket.sequence == last
        finally:
            db.close()


def test_holders_name_mutable_records(worker: Path) -> None:
    backend = read(worker / "snapshots/metadata.db", b"v1", b"snapshots")
    kinds = {name.split(b"/", 2)[2].decode(): sub(backend, name)[b"kind"] for name in backend}
    records = {r.id: r for r in records_of(str(worker))}
    for record in records.values():
        if record.is_holder:
            assert record.id not in kinds
            assert kinds[record.equal_mutable] == b"\2"
            assert not records[record.equal_mutable].is_holder
        else:
            assert record.id in kinds
    assert {k for key, k in kinds.items() if key not in records} == {b"\1"}


def test_index_matches_the_values(worker: Path) -> None:
    main = read(worker / "metadata.db", keys.MAIN)
    expected = set()
    for record in main:
        for value in sub(main, record).values():
            assert isinstance(value, bytes)
            index = gojson.decode(value).index if value else ""
            if index:
                expected.add(f"{index}::{record.decode()}".encode())
    assert set(read(worker / "metadata.db", keys.INDEX)) == expected


def test_go_escapes(worker: Path) -> None:
    main = read(worker / "metadata.db", keys.MAIN)
    descriptions = [leaf(sub(main, r), b"cache.description") for r in main]
    assert any(rb"\u0026\u0026" in d and rb"\u003e" in d for d in descriptions)
    assert not any(char in d for d in descriptions for char in b"<>&")


def test_leases_are_old_and_short(worker: Path) -> None:
    leases = read(worker / "containerdmeta.db", b"v1", b"buildkit", b"leases")
    assert len(leases) == 9
    for name in leases:
        lease = sub(leases, name)
        assert set(lease) == {b"content", b"createdat", b"labels"}
        assert leaf(sub(lease, b"labels"), b"containerd.io/gc.expire").startswith(b"2020-")
        assert len(sub(lease, b"content")) == 2


def test_version_key(worker: Path) -> None:
    assert leaf(read(worker / "containerdmeta.db", b"v1"), b"version") == b"\x06"


# -- the proportions


def test_proportions(made: Synthesis, worker: Path) -> None:
    main = read(worker / "metadata.db", keys.MAIN)
    per_mille = Counter[str]()
    for record in main:
        values = sub(main, record)
        per_mille["holders"] += bool(values.get(b"cache.equalMutable"))
        per_mille["finalised"] += values.get(b"cache.equalMutable") == b""
        per_mille["blobs"] += b"blobmapping.blob" in values
        per_mille["pulled"] += record.startswith(b"sha256:")
        for name in ("cache-dir:", "local.sharedKey:", "git-remote", "git-snapshot", "http.checksum"):
            per_mille[name] += any(key.startswith(name.encode()) for key in values)
    bounds = {
        "holders": (212, 212),
        "finalised": (530, 560),
        "blobs": (200, 330),
        "pulled": (30, 30),
        "cache-dir:": (10, 45),
        "local.sharedKey:": (8, 40),
        "git-remote": (1, 15),
        "git-snapshot": (1, 25),
        "http.checksum": (1, 25),
    }
    assert {name: (low <= per_mille[name] <= high) for name, (low, high) in bounds.items()} == dict.fromkeys(bounds, True)
    assert made.views == 182
    assert 200 <= made.externals <= 300


def test_external_values(made: Synthesis, worker: Path) -> None:
    external = read(worker / "metadata.db", b"_external")
    sizes = sorted(len(leaf(sub(external, record), b"buildkit.contenthash.v0")) for record in external)
    assert len(sizes) == made.externals
    assert sizes[0] >= 200
    assert 5_000 < sizes[-1] <= 21_000
    assert sizes[len(sizes) // 2] < 2_000


def test_chains(worker: Path) -> None:
    snapshots = read(worker / "containerdmeta.db", b"v1", b"buildkit", b"snapshots", b"overlayfs")
    has_blob = {r.id.encode(): r.blob_mapping is not None for r in records_of(str(worker))}

    def depth(key: bytes) -> int:
        found = 1
        while b"parent" in (entry := sub(snapshots, key)):
            key, found = leaf(entry, b"parent"), found + 1
        return found

    assert 12 <= max(map(depth, snapshots)) <= 25
    pulled = [depth(key) for key in snapshots if key.startswith(b"sha256:")]
    assert 3 <= max(pulled) <= 8
    parentless = [
        key
        for key in has_blob
        if has_blob[key] and b"parent" in sub(snapshots, key) and not has_blob[leaf(sub(snapshots, key), b"parent")]
    ]
    assert len(parentless) < sum(has_blob.values()) / 20
