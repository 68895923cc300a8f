"""The directories of snapshots: looked for where they can be, and never guessed."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

import asyncmig
from asyncmig import DropLimitError, Options, Outcome, StoreError
from asyncmig.bolt import Checkpoint
from asyncmig.stores.offline import directories, snapshots
from asyncmig.synth import synthesize
from tests.audit.edits import directory_of, drop_record, put, remove_directory
from tests.caches import V1Cache, sample_cache, value
from tests.conftest import copy_tree
from tests.interop.livecache import containerd_root_from_worker

pytestmark = pytest.mark.anyio


async def found(worker: Path, options: Options | None = None) -> set[tuple[str, str]]:
    return {(finding.code, finding.name) for finding in (await asyncmig.verify(worker, options)).findings}


async def migrated(tmp_path: Path, snapshotter: str = "overlayfs") -> Path:
    worker = sample_cache().write(tmp_path / f"runc-{snapshotter}", snapshotter=snapshotter)
    await asyncmig.migrate(worker)
    return worker


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "fuse-overlayfs", "stargz"])
async def test_every_snapshotter_that_has_directories(snapshotter: str, tmp_path: Path) -> None:
    worker = await migrated(tmp_path, snapshotter)
    assert await found(worker) == set()
    path = directory_of(worker, "d")
    shutil.rmtree(path)
    assert await found(worker) == {("directory-missing", "d")}
    if snapshotter != "native":
        path.mkdir()
        assert await found(worker) == {("directory-missing", "d")}
        path /= "fs"
    path.write_bytes(b"")
    assert await found(worker) == {("directory-missing", "d")}
    path.unlink()
    path.mkdir()
    assert await found(worker) == set()
    shutil.rmtree(worker / "snapshots/snapshots")
    assert await found(worker) == {("directories-missing", snapshotter)}


async def test_stargz_has_them_one_level_deeper(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-stargz", snapshotter="stargz")
    (worker / "snapshots").rename(worker / "snapshotter")
    (worker / "snapshots").mkdir()
    (worker / "snapshotter").rename(worker / "snapshots/snapshotter")
    await asyncmig.migrate(worker)
    assert await found(worker) == set()
    shutil.rmtree(directory_of(worker, "d", snapshots="snapshots/snapshotter"))
    assert await found(worker) == {("directory-missing", "d")}


async def test_a_containerd_that_is_stopped(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "containerd-overlayfs")
    path = directory_of(worker, "d").relative_to(worker / "snapshots")
    root = containerd_root_from_worker(worker, tmp_path / "containerd", "overlayfs")
    options = Options(containerd_root=root)
    await asyncmig.migrate(worker, options)
    assert await found(worker, options) == set()
    shutil.rmtree(root / "io.containerd.snapshotter.v1.overlayfs" / path)
    assert await found(worker, options) == {("directory-missing", "d")}


@pytest.mark.parametrize("snapshotter", ["btrfs", "zfs", "devmapper", "of somebody else"])
async def test_nothing_is_said_of_snapshotters_without(snapshotter: str, tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / f"runc-{snapshotter}", snapshotter=snapshotter)
    shutil.rmtree(worker / "snapshots/snapshots")
    plan = await asyncmig.plan(worker)
    assert plan.notes == []
    await asyncmig.migrate(worker)
    assert await found(worker) == set()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "run asyncmig as the user"), (errno.EPERM, "run asyncmig as"), (errno.EIO, "check the disk")],
)
async def test_what_cannot_be_looked_at_is_an_error(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await migrated(tmp_path)
    failing(monkeypatch, directory_of(worker, "d") / "fs", number)
    with pytest.raises(StoreError, match=f"{directory_of(worker, 'd')}/fs: cannot look .*{os.strerror(number)}; {remedy}"):
        await asyncmig.verify(worker)


async def test_a_mount_whose_daemon_is_gone_has_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await migrated(tmp_path, "stargz")
    failing(monkeypatch, directory_of(worker, "d") / "fs", errno.ENOTCONN)
    assert await found(worker) == set()


async def test_the_event_loop_does_not_wait_for_the_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await migrated(tmp_path)
    threads = set()
    look = directories.missing_of

    def noting(checkpoint: Checkpoint, paths: Mapping[str, str]) -> dict[str, str]:
        threads.add(threading.get_ident())
        return look(checkpoint, paths)

    monkeypatch.setattr(snapshots, "missing_of", noting)
    monkeypatch.setattr(snapshots, "_LOOKS_AT_ONCE", 2)
    assert await found(worker) == set()
    for name in ("a", "b", "d"):
        remove_directory(name)(worker)
    assert await found(worker) == {("directory-missing", name) for name in ("a", "b", "d")}
    assert threads
    assert threading.get_ident() not in threads


def failing(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Let the look at one directory fail."""

    class Os:
        stat_result = os.stat_result

        @staticmethod
        def stat(wanted: str) -> os.stat_result:
            if wanted == str(path):
                raise OSError(number, os.strerror(number))
            return os.stat(wanted)

    monkeypatch.setattr(directories, "os", Os)


async def test_only_what_records_need_counts(tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    remove_directory("view")(worker)
    assert await found(worker) == set()
    drop_record("d")(worker)
    remove_directory("d")(worker)  # which nothing is built on
    assert await found(worker) == set()


async def test_a_snapshot_below_that_has_no_record(tmp_path: Path) -> None:
    worker = await migrated(tmp_path)
    put("lone", "snapshot.committed", value(True))(worker)
    put("lone", "cache.snapshot", value("c"))(worker)
    for record in ("a", "b"):
        drop_record(record)(worker)
    remove_directory("a")(worker)
    result = await asyncmig.verify(worker)
    [finding] = [finding for finding in result.findings if finding.code == "directory-missing"]
    assert finding.name == "a"
    assert "on which records are built" in finding.text


async def test_a_bare_synthetic_cache_is_found(tmp_path: Path) -> None:
    for name, bare in (("full", False), ("bare", True)):
        worker = tmp_path / name / "runc-overlayfs"
        synthesize(worker, records=60, bare=bare)
        await asyncmig.migrate(worker, Options(max_dropped=100))
        assert await found(worker) == ({("directories-missing", "overlayfs")} if bare else set())


@pytest.mark.parametrize("version", ["v0.7.2", "v0.13.2", "v0.27.1"])
async def test_what_upstream_has_migrated(version: str, shared: Path, tmp_path: Path) -> None:
    """The trees of these caches were not kept."""
    source = shared / "golden" / f"oci-native-migrated-by-{version}" / "runc-native"
    worker = copy_tree(source, tmp_path / "runc-native")
    for path in (worker, *worker.rglob("*")):
        path.chmod(path.stat().st_mode | 0o700)
    of_upstream = {"lease-surplus", "size-missing"}
    assert {code for code, _ in await found(worker)} == {"directories-missing", *of_upstream}
    for number in range(1, 20):
        (worker / "snapshots/snapshots" / str(number)).mkdir(parents=True)
    assert {code for code, _ in await found(worker)} == of_upstream


# -- before a migration


@pytest.mark.parametrize(("lost", "refused"), [(0, False), (1, False), (2, True), (20, True)])
async def test_a_migration_stops_and_asks_when_directories_are_missing(lost: int, refused: bool, tmp_path: Path) -> None:
    cache = V1Cache()
    for i in range(20):
        cache.layer(f"layer{i}")
    worker = cache.write(tmp_path / "runc-overlayfs")
    for i in range(lost):
        remove_directory(f"layer{i}")(worker)
    plan = await asyncmig.plan(worker)
    assert [note.code for note in plan.notes] == (["directories-missing"] if lost else [])
    assert bool(plan.refused) == refused
    if refused:
        with pytest.raises(DropLimitError, match=rf"{lost} of 20 snapshots \(.* %\) have no directory on disk.*mounted\?"):
            await asyncmig.migrate(worker)
        assert not (worker / "metadata_v2.db").exists()
    assert (await asyncmig.migrate(worker, Options(max_dropped=100))).outcome is Outcome.MIGRATED
