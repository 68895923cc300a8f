"""What failing calls have shown, each by itself; tests/torture/errors.py tries them all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncmig
from asyncmig import AsyncmigError, IncompleteMigrationError, IncompleteRollbackError, Outcome, StoreError
from asyncmig.errors import DatabaseError, LayoutError, UncertainCommitError
from asyncmig.migration.journal import JournalFile
from tests.caches import marked_cache
from tests.faults.injection import Fault, injected
from tests.faults.states import migrated_state
from tests.states import tree_state

pytestmark = pytest.mark.anyio


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return marked_cache().write(tmp_path / "runc-overlayfs")


def record(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, str]]:
    """The calls that are made from now on, each with the name of the file."""
    calls: list[tuple[str, str]] = []

    def watch(name: str, real: Callable[..., Any]) -> None:
        def watched(subject: Any, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else os.fspath(subject)
            calls.append((name, os.path.basename(path)))
            return real(subject, *args)

        monkeypatch.setattr(os, name, watched)

    for name in names:
        watch(name, getattr(os, name))
    return calls


async def interrupt(worker: Path, fault: Fault) -> None:
    with injected(worker, fault), pytest.raises(IncompleteMigrationError):
        await asyncmig.migrate(worker)


@pytest.mark.parametrize("name", ["fsync", "fdatasync"])
async def test_a_failed_sync_says_that_what_is_shown_may_not_be_on_the_disk(name: str, worker: Path) -> None:
    with injected(worker, Fault(name, 1, "EIO")), pytest.raises(DatabaseError) as caught:
        await asyncmig.migrate(worker)
    assert "cannot sync: Input/output error" in str(caught.value)
    assert "may not be on the disk; check the disk, and unmount and mount its file system or reboot" in str(caught.value)


async def test_a_commit_of_which_it_is_open_whether_it_took_effect_says_it_too(worker: Path) -> None:
    with injected(worker, Fault("fdatasync", 5, "EIO")), pytest.raises(IncompleteMigrationError) as caught:
        await asyncmig.migrate(worker)
    assert isinstance(caught.value.__cause__, UncertainCommitError)
    assert "unmount and mount its file system or reboot" in str(caught.value)


async def test_what_a_killed_run_has_left_in_memory_is_synced_before_it_is_relied_upon(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit whose last sync is missing: the leases are seen, and no disk has them."""
    await interrupt(worker, Fault("fdatasync", 5, "EIO"))
    calls = record(monkeypatch, "fdatasync", "rename")
    await asyncmig.migrate(worker)
    published = calls.index(("rename", "metadata_v2.db.tmp"))
    assert ("fdatasync", "containerdmeta.db") in calls[:published]


async def test_the_name_of_the_new_database_is_on_disk_before_a_rerun_removes_labels(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupt(worker, Fault("fsync", 4, "EIO"))  # the new database, the journal and its name, this name
    assert (worker / "metadata_v2.db").exists()
    calls = record(monkeypatch, "fsync", "pwritev")
    report = await asyncmig.migrate(worker)
    assert report.outcome is Outcome.COMPLETED
    assert calls[0] == ("fsync", "runc-overlayfs")
    assert ("pwritev", "containerdmeta.db") in calls


async def test_a_journal_that_can_t_be_removed_is_told_of(worker: Path) -> None:
    left = 0
    for number in range(5, 20):
        with injected(worker, Fault("writing", number, "EIO", stays=True)), pytest.raises(AsyncmigError) as caught:
            await asyncmig.migrate(worker)
        is_left = (worker / "metadata_v2.db.journal").exists()
        assert isinstance(caught.value, IncompleteMigrationError) is is_left, (number, caught.value)
        left += is_left
        for name in ("metadata_v2.db", "metadata_v2.db.tmp", "metadata_v2.db.journal", "metadata_v2.db.journal.tmp"):
            (worker / name).unlink(missing_ok=True)
    assert left


async def test_a_rollback_that_can_t_be_noted_takes_the_note_back(worker: Path) -> None:
    await asyncmig.migrate(worker)
    before = tree_state(worker)
    for number, code in ((1, "ENOSPC"), (2, "EIO")):
        with injected(worker, Fault("write", number, code)) as calls:
            if number == 1:
                with pytest.raises(DatabaseError, match="No space left on device"):
                    await asyncmig.rollback(worker)
                assert tree_state(worker) == before
            else:
                await asyncmig.rollback(worker)
                assert not calls.failed, "it is one call"


async def test_a_half_written_note_is_taken_back(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncmig.migrate(worker)
    before = tree_state(worker)
    real = os.write
    calls = 0

    def half(fd: int, data: bytes) -> int:
        nonlocal calls
        if b"roll" not in data and not calls:
            return real(fd, data)
        calls += 1
        if calls == 1:
            return real(fd, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(DatabaseError, match="No space left on device"):
        await asyncmig.rollback(worker)
    monkeypatch.undo()
    assert calls == 2
    assert tree_state(worker) == before


async def test_a_rollback_whose_note_may_be_on_disk_is_incomplete(worker: Path) -> None:
    await asyncmig.migrate(worker)
    with injected(worker, Fault("fsync", 1, "EIO")), pytest.raises(IncompleteRollbackError, match="cannot sync"):
        await asyncmig.rollback(worker)
    journal = JournalFile(str(worker / "metadata_v2.db")).read()
    assert journal is not None
    assert journal.is_rolling_back
    assert (await asyncmig.rollback(worker)).outcome is Outcome.ROLLED_BACK


async def test_a_completed_run_does_not_fail_for_what_it_looks_at_afterwards(worker: Path) -> None:
    await interrupt(worker, Fault("fsync", 4, "EIO"))
    state = tree_state(worker)
    seen = 0
    for number in range(1, 100):
        for name, (mode, content) in state.items():
            (worker / name).write_bytes(content)
            (worker / name).chmod(mode)
        with injected(worker, Fault("lstat", number, "EIO", stays=True)) as calls:
            try:
                report = await asyncmig.migrate(worker)
            except AsyncmigError:
                assert not JournalFile(str(worker / "metadata_v2.db")).read().is_complete  # type: ignore[union-attr]
            else:
                assert report.outcome is Outcome.COMPLETED
                seen += calls.failed > 0
        if not calls.failed:
            break
    assert seen


@pytest.mark.parametrize("operation", ["fstat", "close"])
async def test_no_error_of_the_operating_system_gets_out_bare(operation: str, worker: Path) -> None:
    """A file system that is reached over a network fails in calls that never fail elsewhere."""
    expected = None
    for number in range(1, 200, 3):
        for name in ("metadata_v2.db", "metadata_v2.db.journal"):
            (worker / name).unlink(missing_ok=True)
        marked_cache_again(worker)
        with injected(worker, Fault(operation, number, "EIO")) as calls, contextlib.suppress(AsyncmigError):
            await asyncmig.migrate(worker)
        await asyncmig.migrate(worker)
        expected = expected or migrated_state(worker)
        assert migrated_state(worker) == expected
        if not calls.failed:
            break


def marked_cache_again(worker: Path) -> None:
    fresh = marked_cache().write(worker.parent / "fresh")
    for path in sorted(fresh.rglob("*.db")):
        os.replace(path, worker / path.relative_to(fresh))
    for path in sorted(fresh.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    fresh.rmdir()


async def test_looking_at_the_directory_or_its_space_fails_with_a_reason(worker: Path) -> None:
    with injected(worker, Fault("stat", 1, "EIO", stays=True)), pytest.raises(LayoutError, match="Input/output error"):
        await asyncmig.migrate(worker)
    with injected(worker, Fault("statvfs", 1, "EIO")), pytest.raises(StoreError, match=r"how much space.*Input/output error"):
        await asyncmig.migrate(worker)
