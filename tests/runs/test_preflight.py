"""Whether there is room for what is begun, and what else a run knows before it begins."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options, Outcome, StoreError
from asyncmig.bolt import Db
from asyncmig.synth import synthesize
from tests.caches import sample_cache
from tests.conftest import copy_tree, missing
from tests.states import tree_state

pytestmark = pytest.mark.anyio


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system in memory with these options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
        if done.returncode:
            missing(f"a small file system can't be mounted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", place], check=False)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes free."""
    status = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - free))


def grow(path: Path) -> None:
    """Much in a database that is deleted again: pages that are free, as a long life leaves them."""
    with Db.open(path, writable=True) as db:
        with db.update() as tx:
            bucket = tx.create_path(b"deleted")
            for i in range(2000):
                bucket.put(b"%06d" % i, bytes(3000))
        with db.update() as tx:
            tx.root.delete_bucket(b"deleted")


@pytest.mark.parametrize("name", ["metadata.db", "containerdmeta.db", "snapshots/metadata.db"])
async def test_free_pages_need_no_room(name: str, disk: Callable[[str], Path]) -> None:
    place = disk("size=32m")
    worker = sample_cache().write(place / "runc-overlayfs")
    grow(worker / name)
    length = (worker / name).stat().st_size
    assert length > 6_000_000
    fill(place, length // 4)
    report = await asyncmig.plan(worker)
    assert not report.refused
    assert sum(report.bytes_needed.values()) < length // 4
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    assert (await asyncmig.verify(worker)).clean


async def test_holes_behind_the_pages_are_no_room(tmp_path: Path) -> None:
    """bbolt makes files longer by 16 MB that are not on the disk."""
    worker = Path(synthesize(tmp_path / "runc-overlayfs", records=300).directory)
    needed = (await asyncmig.plan(worker)).bytes_needed
    for name in ("containerdmeta.db", "snapshots/metadata.db"):
        path = worker / name
        os.truncate(path, path.stat().st_size + (16 << 20))
    assert (await asyncmig.plan(worker)).bytes_needed == needed


@pytest.mark.parametrize("inodes", [0, 1])
async def test_inodes_are_looked_at_too(inodes: int, disk: Callable[[str], Path]) -> None:
    place = disk("size=32m,nr_inodes=100")
    worker = sample_cache().write(place / "runc-overlayfs")
    for i in range(os.statvfs(place).f_favail - inodes):
        (place / f"file{i}").touch()
    before = tree_state(worker)
    expected = f"makes 2 files, but only {inodes} inodes are free"
    assert expected in (await asyncmig.plan(worker)).refused
    with pytest.raises(StoreError, match=expected):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before
    for i in range(2 - inodes):
        (place / f"file{i}").unlink()
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


async def test_a_file_system_without_a_number_of_inodes_has_enough(disk: Callable[[str], Path]) -> None:
    place = disk("size=32m,nr_inodes=0")
    worker = sample_cache().write(place / "runc-overlayfs")
    assert os.statvfs(place).f_files == 0
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


@pytest.mark.parametrize("verb", ["rollback", "completion"])
async def test_room_is_looked_at_before_going_back_or_completing(
    verb: str, disk: Callable[[str], Path], tmp_path: Path
) -> None:
    made = Path(synthesize(tmp_path / "made" / "runc-overlayfs", records=300).directory)
    await asyncmig.migrate(made)
    place = disk("size=32m")
    worker = copy_tree(made, place / "runc-overlayfs")
    run = asyncmig.rollback
    if verb == "completion":
        run = asyncmig.migrate
        journal = worker / "metadata_v2.db.journal"
        journal.write_text(journal.read_text().replace('\n["complete"]\n', ""))
    fill(place, 0)
    before = tree_state(worker)
    expected = r"of free space on this file system, but only 0 bytes are free"
    with pytest.raises(StoreError, match=expected):
        await run(worker)
    if verb == "rollback":
        with pytest.raises(StoreError, match=expected):
            await run(worker, Options(dry_run=True))
    else:
        assert "but only 0 bytes are free" in (await asyncmig.plan(worker)).refused
    assert tree_state(worker) == before
    (place / "ballast").unlink()
    assert (await run(worker)).outcome in (Outcome.ROLLED_BACK, Outcome.COMPLETED)


@pytest.mark.parametrize(("snapshotter", "codes"), [("native", ["worker-not-default"]), ("overlayfs", [])])
async def test_a_worker_that_a_newer_daemon_may_leave_unused(snapshotter: str, codes: list[str], tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / f"runc-{snapshotter}", snapshotter=snapshotter)
    assert [note.code for note in (await asyncmig.plan(worker)).notes] == codes
    assert [note.code for note in (await asyncmig.migrate(worker)).notes] == codes
