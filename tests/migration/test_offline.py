"""Offline migrations from end to end: the public function on worker directories."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncmig
from asyncmig import (
    AsyncmigError,
    ContainerdUnavailableError,
    DatabaseError,
    DatabaseLockedError,
    DropLimitError,
    IncompleteMigrationError,
    LayoutError,
    OptionError,
    Options,
    Outcome,
    RecordError,
    Report,
    StoreError,
)
from asyncmig.bolt import Bucket, Db, check
from asyncmig.bolt.format import MAX_KEY_SIZE, NO_FREELIST
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.migration.pipeline import Pipeline
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.semantics import HARDENED, Semantics
from asyncmig.runs import migrate
from asyncmig.stores.offline import OfflineFiles, offline_stores
from asyncmig.stores.ports import Kind
from asyncmig.synth import synthesize
from tests.bolt.helpers import patch_metas, read_meta
from tests.caches import ROOT, Snapshot, V1Cache, digest, labels_of, marked_cache, migrate_with, sample_cache, value
from tests.conftest import missing
from tests.states import containerd_state, dump_lines, tree_state

pytestmark = pytest.mark.anyio

UPSTREAM = Options(semantics="upstream")
ALL_FILES = ("metadata_v2.db", "containerdmeta.db", "snapshots/metadata.db")


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return sample_cache().write(tmp_path / "runc-overlayfs")


def final_state(worker: Path) -> list[object]:
    return [containerd_state(worker / name) for name in ALL_FILES]


async def test_mode_and_owner_of_the_new_database_are_those_of_the_old(worker: Path) -> None:
    (worker / "metadata.db").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(worker / "metadata.db", -1, 54321)
    await asyncmig.migrate(worker)
    old, new = (worker / "metadata.db").stat(), (worker / "metadata_v2.db").stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)


async def test_the_buildkit_root_will_do_as_path(worker: Path) -> None:
    report = await asyncmig.migrate(worker.parent)
    assert (report.path, report.outcome) == (str(worker), Outcome.MIGRATED)


async def test_a_second_run_changes_nothing(worker: Path) -> None:
    await asyncmig.migrate(worker)
    before = tree_state(worker)
    report = await asyncmig.migrate(worker)
    assert report.outcome is Outcome.ALREADY_MIGRATED
    assert tree_state(worker) == before


@pytest.mark.parametrize("name", ["metadata.db", "containerdmeta.db", "snapshots/metadata.db"])
async def test_a_database_that_a_daemon_holds_stops_the_migration(name: str, worker: Path) -> None:
    before = tree_state(worker)
    with Db.open(worker / name, writable=True), pytest.raises(DatabaseLockedError, match=f"{name}.*stop the daemon"):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before


async def test_the_lock_file_of_a_running_buildkitd_stops_the_migration(worker: Path) -> None:
    with (worker.parent / "buildkitd.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        with pytest.raises(DatabaseLockedError, match=r"buildkitd\.lock"):
            await asyncmig.migrate(worker)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


@pytest.mark.parametrize("name", ["../buildkitd.lock", "metadata.db"])
@pytest.mark.parametrize(("held", "dry_run"), [(fcntl.LOCK_SH, False), (fcntl.LOCK_EX, True)])
async def test_a_migration_locks_exclusively_and_a_dry_run_shares(name: str, held: int, dry_run: bool, worker: Path) -> None:
    """A reader is enough to stop a migration; a dry run bears with readers and is stopped by a daemon."""
    before = tree_state(worker)
    with (worker / name).open("ab") as holder:
        fcntl.flock(holder, held)
        with pytest.raises(DatabaseLockedError, match=rf"{Path(name).name}: locked by .* \(pid {os.getpid()}\); stop"):
            await asyncmig.migrate(worker, Options(dry_run=dry_run))
        assert tree_state(worker) == before
        fcntl.flock(holder, fcntl.LOCK_SH)
        assert (await asyncmig.migrate(worker, Options(dry_run=True))).outcome is Outcome.WOULD_MIGRATE


async def test_a_migration_that_ends_before_the_locks_are_taken_is_not_repeated(worker: Path) -> None:
    class AnotherIsQuicker(Progress):
        def stage(self, stage: Stage, total: int | None) -> None:
            if stage is Stage.OPEN:  # it has been looked whether there is something to do, and nothing is locked yet
                (worker / "metadata_v2.db").write_bytes(b"")

    report = await asyncmig.migrate(worker, progress=AnotherIsQuicker())
    assert report.outcome is Outcome.ALREADY_MIGRATED
    assert (worker / "metadata_v2.db").read_bytes() == b""
    assert dump_lines(worker / "containerdmeta.db") == dump_lines(
        sample_cache().write(worker.parent / "untouched") / "containerdmeta.db"
    )


@pytest.mark.parametrize("place", ["root", "links"])
async def test_the_daemon_is_noticed_when_the_worker_directory_is_reached_through_a_link(
    place: str, worker: Path, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "cache"
    link.symlink_to(worker)
    before = tree_state(worker)
    lock = (worker.parent if place == "root" else link.parent) / "buildkitd.lock"
    with lock.open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        with pytest.raises(DatabaseLockedError, match=f"{lock}: locked"):
            await asyncmig.migrate(link)
    assert tree_state(worker) == before
    report = await asyncmig.migrate(link)
    assert (report.outcome, report.path, report.snapshotter) == (Outcome.MIGRATED, str(worker), "overlayfs")


@pytest.mark.parametrize("name", ["containerdmeta.db", "snapshots/metadata.db"])
async def test_a_damaged_store_is_not_touched(name: str, worker: Path) -> None:
    """A page that is both free and in use would be overwritten by the first edit."""
    path = worker / name
    with Db.open(path) as db:
        assert db.pages is not None
        meta = db.pages.meta
    raw = bytearray(path.read_bytes())
    at = meta.freelist * meta.page_size
    raw[at + 10 : at + 12] = (1).to_bytes(2, "little")
    raw[at + 16 : at + 24] = meta.root.to_bytes(8, "little")
    path.write_bytes(raw)
    before = tree_state(worker)
    text = rf"{name}: page {meta.root} is corrupt \(on the freelist although it is in use\); .* 'asyncmig db repair {path} NEW'"
    with pytest.raises(DatabaseError, match=text):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before


def labels_value(entry: Bucket) -> None:
    if entry.bucket(b"labels") is not None:
        entry.delete_bucket(b"labels")
    entry.put(b"labels", b"v")


def bucket_in_place_of(*path: bytes) -> Callable[[Bucket], None]:
    def damage(entry: Bucket) -> None:
        for name in path[:-1]:
            entry = entry.create_bucket_if_not_exists(name)
        entry.delete(path[-1])
        entry.create_bucket(path[-1])

    return damage


_BLOB = digest("blob b")
_SNAPSHOTS = (b"v1", b"buildkit", b"snapshots", b"overlayfs")
ENTRIES = {
    "snapshot b": ("containerdmeta.db", (*_SNAPSHOTS, b"b")),
    "snapshot view": ("containerdmeta.db", (*_SNAPSHOTS, b"view")),
    f"blob {_BLOB}": ("containerdmeta.db", (b"v1", b"buildkit", b"content", b"blob", _BLOB.encode())),
    "snapshot buildkit/2/b": ("snapshots/metadata.db", (b"v1", b"snapshots", b"buildkit/2/b")),
    "snapshot buildkit/7/view": ("snapshots/metadata.db", (b"v1", b"snapshots", b"buildkit/7/view")),
}
SHAPES = {
    "labels is a value where a bucket should be": labels_value,
    "createdat is a bucket where a time should be": bucket_in_place_of(b"createdat"),
    "updatedat is a bucket where a time should be": bucket_in_place_of(b"updatedat"),
    "label containerd.io/gc.root is a bucket where a value should be": bucket_in_place_of(b"labels", ROOT.encode()),
    "label x is a bucket where a value should be": bucket_in_place_of(b"labels", b"x"),
}


@pytest.mark.parametrize("what", ENTRIES)
@pytest.mark.parametrize("cause", SHAPES)
async def test_an_entry_that_could_not_be_released_is_found_before_anything_is_changed(
    what: str, cause: str, worker: Path, semantics: Semantics
) -> None:
    """The labels go last, and the leases would have been made; so it would fail half-way, each time anew."""
    carries_no_label = what == "snapshot view" and cause.startswith(("labels is", f"label {ROOT} is"))
    name, place = ENTRIES[what]
    with Db.open(worker / name, writable=True) as db, db.update() as tx:
        entry = tx.path_bucket(*place)
        assert entry is not None
        SHAPES[cause](entry)
    before = tree_state(worker)
    if semantics is HARDENED and carries_no_label:
        await asyncmig.migrate(worker)  # which leaves alone what needs no release
        return
    for dry_run in (True, False):
        with pytest.raises(StoreError, match=f"{worker / name}: {what}: {cause}; containerd never writes that"):
            await asyncmig.migrate(worker, Options(semantics=semantics.name, dry_run=dry_run))
        assert tree_state(worker) == before


async def test_a_snapshot_without_backend_counts_as_missing(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a")
    cache.snapshots["a"].in_backend = False
    worker = cache.write(tmp_path / "runc-overlayfs")
    with pytest.raises(RecordError, match="record a: its snapshot does not exist"):
        await asyncmig.migrate(worker, UPSTREAM)
    with pytest.raises(DropLimitError, match=r"1 of 1 records .* a: it has no snapshot"):
        await asyncmig.migrate(worker)


async def test_a_wrong_namespace_is_named_with_those_that_exist(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs", namespace="moby")
    before = tree_state(worker)
    with pytest.raises(LayoutError, match="has no namespace buildkit; there is: moby"):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before
    assert (await asyncmig.migrate(worker, Options(namespace="moby"))).outcome is Outcome.MIGRATED


async def test_a_wrong_snapshotter_is_named_with_those_that_exist(worker: Path) -> None:
    with pytest.raises(LayoutError, match="has no snapshotter native; there is: overlayfs"):
        await asyncmig.migrate(worker, Options(snapshotter="native"))


async def test_the_snapshotter_is_told_from_the_database_when_the_directory_does_not_tell(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "copy-of-the-worker", snapshotter="fuse-overlayfs")
    report = await asyncmig.migrate(worker)
    assert report.snapshotter == "fuse-overlayfs"


async def test_a_stopped_containerd_has_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", str(tmp_path / "nowhere.sock"))
    worker = sample_cache().write(tmp_path / "containerd-overlayfs")
    root = tmp_path / "containerd"
    (root / "io.containerd.metadata.v1.bolt").mkdir(parents=True)
    (root / "io.containerd.snapshotter.v1.overlayfs").mkdir()
    shutil.move(worker / "containerdmeta.db", root / "io.containerd.metadata.v1.bolt" / "meta.db")
    shutil.move(worker / "snapshots" / "metadata.db", root / "io.containerd.snapshotter.v1.overlayfs" / "metadata.db")
    shutil.move(worker / "snapshots" / "snapshots", root / "io.containerd.snapshotter.v1.overlayfs")
    shutil.move(worker / "content", root / "io.containerd.content.v1.content")
    with pytest.raises(ContainerdUnavailableError, match=r"nowhere\.sock.*--containerd-root"):
        await asyncmig.migrate(worker)

    report = await asyncmig.migrate(worker, Options(containerd_root=root))
    arguments = json.loads(json.dumps(report.to_dict()))["arguments"]
    assert (arguments["path"], arguments["containerd_root"]) == (str(worker), str(root))

    expected = sample_cache().write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(expected)
    assert dump_lines(worker / "metadata_v2.db") == dump_lines(expected / "metadata_v2.db")
    got = containerd_state(root / "io.containerd.metadata.v1.bolt" / "meta.db")
    assert got == containerd_state(expected / "containerdmeta.db")


async def test_a_path_that_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no BuildKit cache here"):
        await asyncmig.migrate(tmp_path)
    with pytest.raises(LayoutError, match="missing: there is no such directory"):
        await asyncmig.migrate(tmp_path / "missing")


@pytest.mark.parametrize("path", ["snapshots", "."])
async def test_the_database_of_a_snapshotter_is_not_taken_for_a_cache(path: str, worker: Path) -> None:
    directory = worker / "snapshots"
    before = tree_state(worker)
    with pytest.raises(LayoutError, match="database of a snapshotter or of containerd, not of a cache"):
        await asyncmig.migrate(directory if path == "snapshots" else directory / ".")
    assert tree_state(worker) == before


@pytest.mark.parametrize("missing", ["containerdmeta.db", "snapshots/metadata.db"])
@pytest.mark.parametrize("how", ["missing", "empty"])
async def test_an_incomplete_cache_is_named_and_nothing_is_changed(missing: str, how: str, worker: Path) -> None:
    (worker / missing).unlink()
    if how == "empty":
        (worker / missing).touch()
    before = tree_state(worker)
    with pytest.raises(LayoutError, match=rf"{missing}: {how}; this cache is not complete"):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before


@pytest.mark.parametrize("page_size", [1024, 16384, 65536])
@pytest.mark.parametrize("freelist", [True, False])
async def test_page_sizes_and_files_without_freelist(page_size: int, freelist: bool, tmp_path: Path) -> None:
    """A host with larger pages, and the databases of containerd 1.7 and later, which store no freelist."""
    expected = sample_cache().write(tmp_path / "expected" / "runc-overlayfs")
    await asyncmig.migrate(expected)
    worker = sample_cache().write(tmp_path / "runc-overlayfs", page_size=page_size)
    for name in ("metadata.db", *ALL_FILES[1:]):
        if not freelist:
            patch_metas(worker / name, freelist=NO_FREELIST)
    await asyncmig.migrate(worker)
    assert final_state(worker) == final_state(expected)
    for name in ALL_FILES:
        result = check(worker / name)
        assert (result.clean, result.page_size) == (True, page_size)
    for name in ALL_FILES[1:]:
        assert (read_meta(worker / name).freelist == NO_FREELIST) is not freelist


@pytest.mark.parametrize("name", ["metadata.db", *ALL_FILES[1:]])
async def test_lost_pages_are_no_obstacle(name: str, worker: Path) -> None:
    """bbolt itself leaves pages that are neither free nor in use."""
    with Db.open(worker / name, writable=True) as db:
        for i in range(2):
            with db.update() as tx:
                tx.create_bucket(b"rubbish %d" % i).put(b"k", b"v" * 50_000)
            with db.update() as tx:
                tx.delete_bucket(b"rubbish %d" % i)
    meta = read_meta(worker / name)
    raw = bytearray((worker / name).read_bytes())
    at = meta.freelist * meta.page_size + 10
    raw[at : at + 2] = (int.from_bytes(raw[at : at + 2], "little") - 3).to_bytes(2, "little")
    (worker / name).write_bytes(raw)
    assert [f.cause for f in check(worker / name).findings] == ["neither in use nor on the freelist"] * 3
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    assert check(worker / "metadata_v2.db").clean


async def test_a_named_layout_makes_an_empty_directory_a_worker(tmp_path: Path) -> None:
    assert (await asyncmig.migrate(tmp_path, Options(layout="oci"))).outcome is Outcome.NOTHING_TO_DO


async def test_an_empty_path(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="path is empty"):
        await asyncmig.migrate("")
    with pytest.raises(OptionError, match="containerd_root is empty"):
        await asyncmig.migrate(tmp_path, Options(containerd_root=""))


UNPRIVILEGED = """
import os, sys, anyio, asyncmig, asyncmig.runs.migrate
anyio.run(anyio.to_thread.run_sync, int)  # loads what a user without permission could not
os.setgid(65534); os.setuid(65534)
try:
    print(anyio.run(asyncmig.migrate, sys.argv[1]).outcome)
except asyncmig.AsyncmigError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("closed", "path"), [("worker", "root"), ("worker", "worker"), ("root", "root"), ("root", "worker")])
def test_what_cannot_be_looked_into_is_not_taken_for_empty(
    closed: str, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if os.geteuid() != 0:
        missing("only root can become somebody without permission")
    base = Path(tempfile.mkdtemp())  # pytest's own directories are closed to others
    try:
        base.chmod(0o755)
        root = base / "buildkit"
        worker = sample_cache().write(root / "runc-overlayfs")
        root.chmod(0o700 if closed == "root" else 0o755)
        worker.chmod(0o700 if closed == "worker" else 0o755)
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, root if path == "root" else worker],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.startswith("LayoutError")
        assert "Permission denied" in done.stdout
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"garbage", "it can't be read"), (b"", "it has 0 bytes, but metadata.db has 8 records"), (None, "it has no records")],
)
@pytest.mark.parametrize("entry_point", [asyncmig.migrate, asyncmig.plan])
async def test_a_v2_database_without_content_is_not_the_migrated_cache(
    content: bytes | None, said: str, entry_point: Callable[..., Awaitable[object]], worker: Path
) -> None:
    """A killed daemon or a full disk leaves such a file; BuildKit would go by its existence, and ignore the whole cache."""
    path = worker / "metadata_v2.db"
    if content is None:
        with Db.open(path, writable=True, create=True) as db, db.update() as tx:
            tx.create_path(b"_main")
    else:
        path.write_bytes(content)
    before = tree_state(worker)
    with pytest.raises(
        LayoutError, match=rf"metadata_v2\.db: this is not the migrated cache: {said}.*mv .*metadata_v2\.db\.aside"
    ):
        await entry_point(worker)
    assert tree_state(worker) == before
    path.unlink()
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


async def test_a_v2_database_that_a_daemon_has_made_beside_it_is_not_the_migrated_cache(worker: Path) -> None:
    """metadata.db was moved away when the daemon started, and has been put back."""
    with Db.open(worker / "metadata_v2.db", writable=True, create=True) as db, db.update() as tx:
        tx.create_path(b"_main", b"new").put(b"cache.createdAt", value(1))
    with pytest.raises(LayoutError, match=r"none of its 1 record is one of the 8 of metadata\.db"):
        await asyncmig.migrate(worker)
    with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"_main", b"a").put(b"cache.createdAt", value(1))
    assert (await asyncmig.migrate(worker)).outcome is Outcome.ALREADY_MIGRATED


@pytest.mark.parametrize("entry_point", [asyncmig.migrate, asyncmig.plan])
async def test_an_empty_v1_database_beside_full_stores_stops_and_asks(
    entry_point: Callable[..., Awaitable[Report]], worker: Path
) -> None:
    """After a power cut, for example."""
    (worker / "metadata.db").write_bytes(b"")
    before = tree_state(worker)
    expected = r"has no records, but 6 snapshots in the stores carry v1's label .*restore it from a backup"
    if entry_point is asyncmig.plan:
        assert re.search(expected, (await entry_point(worker)).refused)
    else:
        with pytest.raises(DropLimitError, match=expected):
            await entry_point(worker)
    assert tree_state(worker) == before
    assert (await asyncmig.migrate(worker, Options(max_dropped=100))).outcome is Outcome.MIGRATED


async def test_a_content_store_that_is_not_mounted_stops_and_asks(worker: Path) -> None:
    """Every reference to a blob would be cleared, for good."""
    shutil.rmtree(worker / "content")
    (worker / "content").mkdir()
    before = tree_state(worker)
    with pytest.raises(DropLimitError, match=r"3 of 3 records with a blob \(100.0 %\) would lose it.*mounted\?"):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before
    assert (await asyncmig.plan(worker)).refused


async def test_a_dry_run_finds_damage_that_only_the_writing_would_meet(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"_index", b"bucket")
    for dry_run in (True, False):
        with pytest.raises(DatabaseError, match="_index holds a bucket"):
            await asyncmig.migrate(worker, Options(dry_run=dry_run))


async def test_two_migrations_of_one_cache_exclude_each_other(tmp_path: Path) -> None:
    worker = V1Cache().write(tmp_path / "runc-overlayfs")
    (worker / "containerdmeta.db").unlink()
    (worker / "snapshots" / "metadata.db").unlink()
    with MetadataDb.open(worker / "metadata.db", exclusive=True), pytest.raises(DatabaseLockedError):
        await asyncmig.migrate(worker)


async def test_a_disk_that_goes_read_only_in_the_tail_ends_in_the_right_error(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def read_only(source: str, target: str) -> None:
        if target.endswith("metadata_v2.db"):
            raise OSError(30, "Read-only file system")
        rename(source, target)

    def no_unlink(path: str) -> None:
        if not os.path.lexists(path):
            raise FileNotFoundError
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", read_only)
    monkeypatch.setattr(os, "unlink", no_unlink)
    with pytest.raises(IncompleteMigrationError, match=r"stage publish: .*Read-only file system"):
        await asyncmig.migrate(worker)


async def test_a_full_disk_in_the_first_commit_leaves_the_files_as_they_were(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_state(worker)
    real = os.fdatasync

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(DatabaseError, match="No space left"):
        await asyncmig.migrate(worker)
    monkeypatch.setattr(os, "fdatasync", real)
    after = tree_state(worker)
    assert {n: len(content) for n, (_, content) in after.items()} == {n: len(content) for n, (_, content) in before.items()}
    assert dump_lines(worker / "containerdmeta.db")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        missing(f"a small file system can't be mounted here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


async def test_a_disk_that_is_too_full_is_noticed_before_anything_is_changed(small_disk: Path) -> None:
    worker = Path(synthesize(small_disk / "runc-overlayfs", records=300).directory)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    before = tree_state(worker)
    with (small_disk / "ballast").open("wb") as ballast:
        ballast.write(bytes(free - 1_000_000))
    expected = r"needs up to [67]\.\d MB of free space on this file system, but only (1\.0 MB|9\d\d\.\d kB) are free"
    with pytest.raises(StoreError, match=expected):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before
    report = await asyncmig.plan(worker)
    assert re.search(expected, report.refused)
    assert report.outcome is Outcome.WOULD_MIGRATE
    assert tree_state(worker) == before
    (small_disk / "ballast").unlink()
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


@pytest.mark.parametrize("records", [30, 300, 3000])
async def test_the_space_asked_for_is_enough_and_not_much_more(records: int, semantics: Semantics, tmp_path: Path) -> None:
    """Hardened needs less, because it leaves no empty buckets of labels; it may be asked for what upstream needs."""
    worker = Path(synthesize(tmp_path / "runc-overlayfs", records=records).directory)
    paths = (worker / "containerdmeta.db", worker / "snapshots" / "metadata.db")
    files = OfflineFiles.open(*paths, namespace="buildkit", writable=False)
    asked = dict(files.growth(no_checkpoint, records, None))
    files.close()
    sizes = {path: path.stat().st_size for path in paths}
    v1 = (worker / "metadata.db").stat().st_size
    await asyncmig.migrate(worker, Options(semantics=semantics.name))
    for path in paths:
        grown = path.stat().st_size - sizes[path]
        assert grown <= asked[str(path)]
        assert asked[str(path)] <= 2 * grown + 200_000 or semantics is HARDENED
    v2 = (worker / "metadata_v2.db").stat().st_size
    assert v2 <= v1 + 1536 * records + 100_000


async def test_several_caches_below_one_root_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("runc-native", "runc-overlayfs"):
        sample_cache().write(tmp_path / name, snapshotter=name[5:])
    with pytest.raises(LayoutError, match="runc-native, runc-overlayfs"):
        await asyncmig.migrate(tmp_path)
    await asyncmig.migrate(tmp_path / "runc-native")
    with pytest.raises(LayoutError, match="runc-native, runc-overlayfs"):
        await asyncmig.migrate(tmp_path)  # the same words mean the same cache, or none, whatever is migrated already


async def test_a_docker_cache_is_recognised(worker: Path) -> None:
    (worker / "snapshots.db").touch()
    with pytest.raises(LayoutError, match="dockerd"):
        await asyncmig.migrate(worker)


async def test_a_link_in_place_of_the_temporary_file_is_not_followed(worker: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    (worker / "metadata_v2.db.tmp").symlink_to(victim)
    await asyncmig.migrate(worker)
    assert victim.read_text() == "keep me"
    assert not (worker / "metadata_v2.db").is_symlink()


async def test_an_empty_file_is_an_empty_cache(tmp_path: Path) -> None:
    worker = V1Cache().write(tmp_path / "runc-overlayfs")
    (worker / "metadata.db").write_bytes(b"")
    assert (await asyncmig.migrate(worker)).counts.records == 0
    assert dump_lines(worker / "metadata_v2.db") == []


async def test_leftover_views_are_released_even_without_records(tmp_path: Path) -> None:
    cache = V1Cache(snapshots={"v": Snapshot(Kind.VIEW)})
    worker = cache.write(tmp_path / "runc-overlayfs")
    report = await asyncmig.migrate(worker)
    assert report.counts.views_released == 1


async def test_a_failing_disk_in_each_stage_of_the_tail(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fdatasync fails, nothing has changed or a rerun completes the work."""
    expected_worker = sample_cache().write(tmp_path / "expected" / "runc-overlayfs")
    await asyncmig.migrate(expected_worker)
    expected = final_state(expected_worker)
    real, failures = os.fdatasync, 0
    for fail_at in range(100):
        shutil.rmtree(worker)
        sample_cache().write(worker)
        before = [dump_lines(worker / name) for name in ALL_FILES[1:]]
        calls = 0

        def failing(fd: int, fail_at: int = fail_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fail_at + 1:
                raise OSError(5, "Input/output error")
            real(fd)

        monkeypatch.setattr(os, "fdatasync", failing)
        error: AsyncmigError | None = None
        try:
            await asyncmig.migrate(worker)
        except AsyncmigError as caught:
            error = caught
        monkeypatch.setattr(os, "fdatasync", real)
        failures += error is not None
        if fail_at < 4:  # both files when they are opened, the state that is there, and new pages
            assert isinstance(error, DatabaseError)
            assert [dump_lines(worker / name) for name in ALL_FILES[1:]] == before, "nothing was synced, so nothing changed"
        elif error is not None:
            assert isinstance(error, IncompleteMigrationError)
        assert not (worker / "metadata_v2.db.tmp").exists()
        await asyncmig.migrate(worker)
        assert final_state(worker) == expected
        if calls <= fail_at:
            break
    assert failures >= 8


@pytest.mark.parametrize("stage", list(Stage))
async def test_a_cancellation_at_each_stage_changes_nothing_or_completes(stage: Stage, worker: Path, tmp_path: Path) -> None:
    expected_worker = sample_cache().write(tmp_path / "expected" / "runc-overlayfs")
    await asyncmig.migrate(expected_worker)
    before = tree_state(worker)
    reached = False
    with anyio.CancelScope() as scope:

        class CancelAt(Progress):
            def stage(self, running: Stage, total: int | None) -> None:
                nonlocal reached
                if running is stage:
                    reached = True
                    scope.cancel()

        await asyncmig.migrate(worker, progress=CancelAt())
        await anyio.lowlevel.checkpoint()
    if stage in (Stage.PROTECT, Stage.VERIFY, Stage.RELEASE, Stage.PUBLISH):
        assert final_state(worker) == final_state(expected_worker)
    elif reached:
        assert tree_state(worker) == before
    # Whatever happened, all locks are free again.
    for name in ALL_FILES[1:]:
        Db.open(worker / name, writable=True).close()


# -- the same case offline and in memory


@st.composite
def caches(draw: st.DrawFn) -> V1Cache:
    """A random cache that upstream would migrate."""
    cache = V1Cache()
    names = draw(st.lists(st.text("abc<&é\u2028", min_size=1, max_size=3), min_size=1, max_size=12, unique=True))
    for i, name in enumerate(names):
        parent = draw(st.sampled_from(["", *names[:i]]))
        parent = parent if parent in cache.snapshots and cache.snapshots[parent].kind is Kind.COMMITTED else ""
        match draw(st.sampled_from(["layer", "layer", "bare", "unfinalised", "view"])):
            case "layer":
                cache.layer(name, parent)
            case "bare":
                cache.layer(name, parent, blob=False)
            case "unfinalised":
                cache.unfinalised(name + "-holder", name, parent)
            case "view":
                cache.view(name, parent)
    if draw(st.booleans()):
        for blob in draw(st.lists(st.sampled_from(sorted(cache.blobs) or [""]), max_size=2)):
            cache.blobs.pop(blob, None)
    return cache


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(cache=caches())
async def test_offline_and_in_memory_agree(
    cache: V1Cache, semantics: Semantics, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("agree")
    offline = cache.write(directory / "runc-overlayfs")
    (directory / "memory").mkdir()
    cache.write_metadata(directory / "memory" / "metadata.db")
    state = cache.in_memory()

    limit = 100.0 if semantics.repairs else 5.0
    one = await asyncmig.migrate(offline, Options(semantics=semantics.name, max_dropped=limit))
    other = await migrate_with(directory / "memory", state.stores(), semantics=semantics)

    assert dump_lines(offline / "metadata_v2.db") == dump_lines(directory / "memory" / "metadata_v2.db")
    assert one.counts == other.counts
    files = OfflineFiles.open(
        offline / "containerdmeta.db", offline / "snapshots" / "metadata.db", namespace="buildkit", writable=False
    )
    try:
        stores = offline_stores(files, "overlayfs", content_directory=offline / "content")
        for lease in await stores.leases.list_many(sorted(state.leases)):
            assert lease is not None
            assert set(lease.resources) == state.leases[lease.id].resources
            assert set(lease.labels) == {"containerd.io/gc.flat"}
        with_root = {n for n, labels in labels_of(state).items() if "containerd.io/gc.root" in labels}
        assert with_root == names_with_root(offline)
    finally:
        files.close()


def names_with_root(worker: Path) -> set[str]:
    found = set()
    for entry in containerd_state(worker / "containerdmeta.db"):
        if entry.get("k") == "containerd.io/gc.root":
            found.add(entry["p"][-2])
    return found


async def test_unusual_records_survive_as_they_are(tmp_path: Path) -> None:
    """Forms that no BuildKit writes: a plain key in _main, a bucket within a record, a record of several pages."""
    cache = V1Cache()
    cache.layer("a")
    cache.layer("b", "a")
    worker = cache.write(tmp_path / "runc-overlayfs")
    with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
        main = tx.path_bucket(b"_main")
        assert main is not None
        main.put(b"aa-plain", b"not a record")
        record = main.bucket(b"a")
        assert record is not None
        record.set_sequence(7)
        for i in range(500):
            record.put(b"x%04d" % i, value("y" * 50))
        nested = record.create_bucket(b"nested")
        for i in range(300):
            nested.put(b"n%04d" % i, b"raw" * 20)
        nested.create_bucket(b"deeper").put(b"k", b"v")
        tx.create_bucket(b"_foreign").create_bucket(b"b").put(b"k", b"v" * 5000)
    before = set(dump_lines(worker / "metadata.db"))

    await asyncmig.migrate(worker)

    after = set(dump_lines(worker / "metadata_v2.db"))
    assert before <= after
    assert check(worker / "metadata_v2.db").clean
    added = [line for line in after - before if '"_main"' in line]
    assert len(added) == 2 + 1 + 2 + 6 + 6
    assert any(digest("diff a") in line for line in added)


async def test_an_unusable_meta_page_is_noted(worker: Path) -> None:
    """The other one holds the state before it; whether the bad one was the newer nobody can tell."""
    for name in ("metadata.db", "snapshots/metadata.db"):
        with (worker / name).open("r+b") as file:
            file.seek(20)
            file.write(b"\xff")
    report = await asyncmig.migrate(worker)
    notes = [note.text for note in report.notes if note.code == "meta-page"]
    assert [note.split(": ")[0] for note in notes] == [str(worker / "snapshots/metadata.db"), str(worker / "metadata.db")]
    assert all("meta page 0 is unusable" in note for note in notes)


class Counting(Progress):
    """How much each stage said there was to do, and how much it said was done."""

    def __init__(self) -> None:
        self.totals: dict[Stage, int | None] = {}
        self.done: dict[Stage, int] = {}

    def stage(self, stage: Stage, total: int | None) -> None:
        self.totals[stage] = total
        self.done[stage] = 0
        self._stage = stage

    def advance(self, count: int) -> None:
        self.done[self._stage] += count


async def test_stages_come_to_what_they_announced(worker: Path) -> None:
    progress = Counting()
    await asyncmig.migrate(worker, progress=progress)
    announced = {stage: total for stage, total in progress.totals.items() if total is not None}
    assert set(announced) == {Stage.RESOLVE, Stage.BUILD, Stage.PROTECT, Stage.VERIFY, Stage.RELEASE}
    assert {stage: progress.done[stage] for stage in announced} == announced


async def test_a_name_that_is_too_long_for_the_index_of_chains(tmp_path: Path) -> None:
    """Upstream's own migration would fail over it; hardened goes without, and without what is built on it."""
    longest = MAX_KEY_SIZE - len(f"blobchainid:{digest('x')}::")
    fits, too_long = "f".ljust(longest, "x"), "t".ljust(longest + 1, "x")
    cache = V1Cache()
    cache.layer("base")
    cache.layer(fits, "base")
    cache.layer(too_long, "base")
    cache.layer("top", too_long)
    worker = cache.write(tmp_path / "runc-overlayfs")
    before = tree_state(worker)
    with pytest.raises(RecordError, match=f"its index entry would be {MAX_KEY_SIZE + 1} bytes long"):
        await asyncmig.migrate(worker, UPSTREAM)
    assert tree_state(worker) == before
    report = await asyncmig.migrate(worker)
    assert (report.counts.blobs, report.counts.chains) == (4, 2)
    assert [(note.code, note.name) for note in report.notes] == [("chain-too-long", too_long)]
    assert (await asyncmig.verify(worker)).clean
    with Db.open(worker / "metadata_v2.db") as db, db.view() as tx:
        for name, has_chain in (("base", True), (fits, True), (too_long, False), ("top", False)):
            record = tx.path_bucket(b"_main", name.encode())
            assert record is not None
            assert (b"cache.chainID" in record, b"cache.blob" in record) == (has_chain, True)


@pytest.mark.parametrize("outcome", ["migrated", "planned", "failed"])
async def test_what_was_computed_is_freed_before_the_event_loop_has_to(
    outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines: list[Pipeline] = []

    class Noted(Pipeline):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            pipelines.append(self)

    monkeypatch.setattr(migrate, "Pipeline", Noted)
    worker = marked_cache().write(tmp_path / "runc-overlayfs")
    if outcome == "failed":
        monkeypatch.setattr(migrate, "check_room", _fail)
        with pytest.raises(LookupError):
            await asyncmig.migrate(worker)
    else:
        await (asyncmig.migrate if outcome == "migrated" else asyncmig.plan)(worker)
    (pipeline,) = pipelines
    assert pipeline.cache.report.counts.leases
    assert not pipeline.cache.records
    assert not pipeline.cache.by_id
    assert not len(pipeline.leases.leases)
    assert not pipeline.release.snapshot_roots
    assert not pipeline.release.snapshots


def _fail(*_: object) -> None:
    raise LookupError
