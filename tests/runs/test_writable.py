"""What can't be written makes every run refuse before its first change, and its dry run say so."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncmig
from asyncmig import LayoutError, Options, Outcome
from tests.caches import sample_cache
from tests.conftest import missing
from tests.states import tree_state

pytestmark = pytest.mark.anyio


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be mounted read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True, check=False)
    if mount.returncode:
        missing(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def make_read_only(place: Path, *, wanted: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if wanted else 'rw'}", place], check=True)


async def test_a_cache_that_can_not_be_written(disk: Path) -> None:
    worker = sample_cache().write(disk / "runc-overlayfs")
    expected = "not writable; mount its file system read-write"
    make_read_only(disk, wanted=True)
    before = tree_state(worker)
    assert expected in (await asyncmig.plan(worker)).refused
    with pytest.raises(asyncmig.AsyncmigError):
        await asyncmig.migrate(worker)
    make_read_only(disk, wanted=False)
    await asyncmig.migrate(worker)
    make_read_only(disk, wanted=True)
    migrated = tree_state(worker)
    with pytest.raises(LayoutError, match=expected):
        await asyncmig.rollback(worker, Options(dry_run=True))
    with pytest.raises(asyncmig.AsyncmigError) as caught:
        await asyncmig.rollback(worker)
    assert not isinstance(caught.value, asyncmig.IncompleteRollbackError)
    assert tree_state(worker) == migrated
    make_read_only(disk, wanted=False)
    assert (await asyncmig.rollback(worker)).outcome is Outcome.ROLLED_BACK
    assert set(tree_state(worker)) == {*before, "metadata_v2.db.rolled-back"}
