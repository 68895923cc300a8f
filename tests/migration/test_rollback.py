"""Going back, and what is said of a cache that was migrated before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig import AsyncmigError, DatabaseLockedError, IncompleteRollbackError, Options, Outcome
from asyncmig.bolt import Checkpoint, Db
from asyncmig.migration.journal import Journal, JournalFile
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.report import Report
from asyncmig.migration.rollback import Rollback
from asyncmig.migration.semantics import HARDENED, Semantics
from asyncmig.stores.memory import MemoryLease, MemoryStores
from asyncmig.stores.ports import Resource
from tests.caches import ROOT, final_state, labels_of, migrate_with, new_reporter, rerun_with, sample_cache, value
from tests.migration.test_pipeline import Calls
from tests.states import tree_state

pytestmark = pytest.mark.anyio


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return sample_cache().write(tmp_path / "runc-overlayfs")


# -- in memory


async def roll_back(worker: Path, state: MemoryStores) -> Report:
    target = str(worker / "metadata_v2.db")
    journal = JournalFile(target).read()
    assert journal is not None
    reporter = new_reporter(worker, Outcome.ROLLED_BACK)
    await Rollback(journal, target, state.stores(), reporter).run()
    return reporter.result


def times(state: MemoryStores) -> dict[str, str]:
    """What tells one label from another."""
    return {name: labels[ROOT] for name, labels in labels_of(state).items() if ROOT in labels}


def with_labels_of_its_own(state: MemoryStores) -> MemoryStores:
    labels = [item.labels for item in state.snapshots.values()] + [item.labels for item in state.blobs.values()]
    for i, own in enumerate(labels):
        own[ROOT] = f"2020-01-02T03:04:05.{i + 1}Z"
    state.leases["a"] = MemoryLease({"mine": "1"}, {Resource("snapshots/overlayfs", "a")})
    state.leases["foreign"] = MemoryLease({}, {Resource("snapshots/overlayfs", "b")})
    return state


async def migrated_in_memory(tmp_path: Path, semantics: Semantics) -> tuple[Path, MemoryStores]:
    tmp_path.mkdir(exist_ok=True)  # noqa: ASYNC240
    sample_cache().write_metadata(tmp_path / "metadata.db")
    state = with_labels_of_its_own(sample_cache().in_memory(concurrency=1))
    await migrate_with(tmp_path, state.stores(), semantics=semantics)
    return tmp_path, state


async def test_a_rollback_brings_back_labels_and_leases(tmp_path: Path, semantics: Semantics) -> None:
    original = with_labels_of_its_own(sample_cache().in_memory())
    worker, state = await migrated_in_memory(tmp_path, semantics)
    assert times(state) != times(original)
    report = await roll_back(worker, state)
    assert times(state) == times(original)
    assert labels_of(state) == labels_of(original)
    assert state.leases == original.leases
    assert sorted(os.listdir(worker)) == ["metadata.db", "metadata_v2.db.rolled-back"]
    assert report.counts.labels_restored == 10
    assert report.counts.leases_deleted == (5 if semantics is HARDENED else 7)


async def test_no_lease_goes_before_all_labels_are_back(tmp_path: Path, semantics: Semantics) -> None:
    worker, state = await migrated_in_memory(tmp_path, semantics)
    original = times(with_labels_of_its_own(sample_cache().in_memory()))

    async def look(verb: str, name: str) -> None:
        if verb in ("delete lease", "delete resource", "remove resource"):
            assert times(state) == original
            assert not (worker / "metadata_v2.db").exists()

    state.on_call = look
    await roll_back(worker, state)


async def test_a_rollback_that_fails_anywhere_is_completed_by_a_rerun_or_a_migration(
    tmp_path: Path, semantics: Semantics
) -> None:
    worker, state = await migrated_in_memory(tmp_path / "whole", semantics)
    migrated = final_state(state, worker)
    calls = Calls()
    state.on_call = calls
    await roll_back(worker, state)
    rolled_back = final_rollback(state, worker)

    def fail() -> None:
        raise AsyncmigError("the store is out of order")

    for at in range(len(calls.verbs)):
        for rerun in (True, False):
            worker, state = await migrated_in_memory(tmp_path / f"{at}-{rerun}", semantics)
            state.on_call = Calls(at, fail)
            with pytest.raises(IncompleteRollbackError, match="out of order"):
                await roll_back(worker, state)
            state.on_call = Calls()
            if rerun:
                await roll_back(worker, state)
                assert final_rollback(state, worker) == rolled_back
            elif not (worker / "metadata_v2.db").exists():
                await rerun_with(worker, state.stores(), semantics=semantics)
                (worker / "metadata_v2.db.rolled-back").unlink()
                assert final_state(state, worker) == migrated


def final_rollback(state: MemoryStores, worker: Path) -> object:
    leases = {name: (set(lease.labels), set(lease.resources)) for name, lease in state.leases.items()}
    return leases, labels_of(state), sorted(os.listdir(worker)), (worker / "metadata.db").read_bytes()


async def test_a_cancelled_rollback_completes(tmp_path: Path, semantics: Semantics) -> None:
    worker, state = await migrated_in_memory(tmp_path, semantics)
    with anyio.CancelScope() as scope:
        state.on_call = Calls(3, scope.cancel)
        await roll_back(worker, state)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert times(state) == times(with_labels_of_its_own(sample_cache().in_memory()))
    assert not (worker / "metadata_v2.db.journal").exists()


async def test_what_has_vanished_is_told(tmp_path: Path) -> None:
    worker, state = await migrated_in_memory(tmp_path, HARDENED)
    del state.snapshots["d"]
    report = await roll_back(worker, state)
    assert [note.code for note in report.notes] == ["vanished"]


# -- on disk


async def test_a_rollback_on_disk(worker: Path, semantics: Semantics) -> None:
    before = tree_state(worker)
    await asyncmig.migrate(worker, Options(semantics=semantics.name))
    seen = await asyncmig.rollback(worker, Options(dry_run=True))
    assert (seen.outcome, seen.counts.snapshots_labelled, seen.counts.blobs_labelled) == (Outcome.WOULD_ROLL_BACK, 7, 3)
    assert (worker / "metadata_v2.db").exists()
    report = await asyncmig.rollback(worker)
    assert (report.outcome, report.semantics) == (Outcome.ROLLED_BACK, semantics.name)
    after = tree_state(worker)
    assert set(after) == {*before, "metadata_v2.db.rolled-back"}
    assert after["metadata.db"] == before["metadata.db"]
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


async def refused(worker: Path, match: str) -> None:
    """A rollback is refused and changes nothing."""
    before = tree_state(worker)
    with pytest.raises(AsyncmigError, match=match) as caught:
        await asyncmig.rollback(worker)
    assert not isinstance(caught.value, IncompleteRollbackError)
    assert tree_state(worker) == before


async def test_a_rollback_is_refused_when_a_new_daemon_has_worked(worker: Path) -> None:
    await asyncmig.migrate(worker)
    with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"_main", b"new").put(b"cache.createdAt", value(1))
    await refused(worker, r"metadata_v2\.db has changed since the migration: a newer daemon")


async def test_a_rollback_is_refused_without_a_journal(worker: Path) -> None:
    await refused(worker, r"there is no metadata_v2\.db\.journal")
    await asyncmig.migrate(worker)
    (worker / "metadata_v2.db.journal").unlink()
    await refused(worker, r"there is no metadata_v2\.db\.journal")


async def test_a_rollback_is_refused_without_v1(worker: Path) -> None:
    await asyncmig.migrate(worker)
    (worker / "metadata.db").unlink()
    await refused(worker, r"metadata\.db is gone")


async def test_a_rollback_is_refused_while_a_daemon_runs(worker: Path) -> None:
    await asyncmig.migrate(worker)
    for name in ("metadata.db", "metadata_v2.db", "containerdmeta.db"):
        with Db.open(worker / name), pytest.raises(DatabaseLockedError, match=f"{name}: locked by"):
            await asyncmig.rollback(worker)
    with Db.open(worker / "metadata_v2.db"):  # whoever reads does not stand in the way of a look
        assert (await asyncmig.rollback(worker, Options(dry_run=True))).outcome is Outcome.WOULD_ROLL_BACK


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*args: object) -> None:
        raise AsyncmigError("interrupted")

    monkeypatch.setattr(f"asyncmig.migration.pipeline.{name}", fail)


@pytest.mark.parametrize("stage", ["verify", "release"])
async def test_an_interrupted_migration_can_be_rolled_back(
    stage: str, worker: Path, semantics: Semantics, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_state(worker)
    with monkeypatch.context() as patch:
        interrupt(patch, stage)
        with pytest.raises(asyncmig.IncompleteMigrationError):
            await asyncmig.migrate(worker, Options(semantics=semantics.name))
    await asyncmig.rollback(worker)
    assert set(tree_state(worker)) - {"metadata_v2.db.rolled-back"} == set(before)
    assert (await asyncmig.migrate(worker)).notes == []


async def test_a_migration_that_was_interrupted_in_its_release_is_completed(
    worker: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "release")
        with pytest.raises(asyncmig.IncompleteMigrationError, match="stage release"):
            await asyncmig.migrate(worker)
    before = tree_state(worker)
    assert "metadata_v2.db" in before
    seen = await asyncmig.plan(worker)
    assert (seen.outcome, [n.code for n in seen.notes]) == (Outcome.INTERRUPTED, ["interrupted-before"])
    checked = await asyncmig.verify(worker)
    assert (checked.clean, checked.interrupted, {f.code for f in checked.findings}) == (False, "migrate", {"label-left"})
    assert tree_state(worker) == before
    report = await asyncmig.migrate(worker)
    assert (report.outcome, report.counts.snapshots_released, report.counts.blobs_released) == (Outcome.COMPLETED, 7, 3)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.ALREADY_MIGRATED
    other = sample_cache().write(tmp_path / "runc-native")
    assert (await asyncmig.migrate(other, Options(snapshotter="overlayfs"))).outcome is Outcome.MIGRATED
    assert labels_left(worker) == labels_left(other) == 0


def labels_left(worker: Path) -> int:
    with Db.open(worker / "containerdmeta.db") as db, db.view() as tx:
        snapshots = tx.path_bucket(b"v1", b"buildkit", b"snapshots", b"overlayfs")
        assert snapshots is not None
        found = 0
        for name, _ in snapshots.items():
            labels = tx.path_bucket(b"v1", b"buildkit", b"snapshots", b"overlayfs", name, b"labels")
            found += labels is not None and ROOT.encode() in labels
        return found


async def test_a_rollback_that_stopped_before_the_database_went_aside_is_told_of(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncmig.migrate(worker)
    with monkeypatch.context() as patch:

        def fail(*args: object) -> None:
            raise AsyncmigError("interrupted")

        patch.setattr(Rollback, "_withdraw", fail)
        with pytest.raises(IncompleteRollbackError, match="stage withdraw: interrupted"):
            await asyncmig.rollback(worker)
    report = await asyncmig.migrate(worker)
    assert (report.outcome, report.refused) == (
        Outcome.ROLLBACK_INTERRUPTED,
        "a rollback was begun but is not complete; run 'asyncmig rollback' again",
    )
    assert (await asyncmig.verify(worker)).interrupted == "rollback"
    await asyncmig.rollback(worker)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED


# -- the journal


def journal() -> Journal:
    return Journal("hardened", "buildkit", "overlayfs", "", "1-a", "2-b")


def test_a_journal_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "metadata_v2.db"))
    assert file.read() is None
    written = journal()
    written.leases = {"a": None, "bad\udcff": (Resource("content", "x"), Resource("snapshots/o", "\u2028")), "empty": ()}
    written.foreign = {"f"}
    written.snapshots = {"a\nb": "T", "\x1b": ""}
    written.blobs = {"sha256:1": "T"}
    file.write(written)
    assert file.read() == written
    assert (tmp_path / "metadata_v2.db.journal").stat().st_mode & 0o777 == 0o600
    file.note_complete()
    read = file.read()
    assert read is not None
    assert read.is_complete
    assert not read.is_rolling_back
    file.note_rollback()
    read = file.read()
    assert read is not None
    assert read.is_rolling_back
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_says_nothing(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "metadata_v2.db"))
    file.write(journal())
    with open(file.path, "a") as raw:
        raw.write('\n["compl')
    read = file.read()
    assert read is not None
    assert not read.is_complete
    file.note_complete()
    read = file.read()
    assert read is not None
    assert read.is_complete


def test_a_journal_that_ends_too_early_is_none(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "metadata_v2.db"))
    written = journal()
    written.leases = {"a": None}
    file.write(written)
    content = Path(file.path).read_text()
    Path(file.path).write_text(content[: content.index('["end"]')])
    with pytest.raises(AsyncmigError, match="this is no journal, or another version of asyncmig wrote it"):
        file.read()


def test_others_have_their_turn_while_a_long_one_is_written_and_read(tmp_path: Path) -> None:
    """Each write and read to the disk lets go of the interpreter lock, for too short for another thread to take it."""
    file, long = JournalFile(str(tmp_path / "metadata_v2.db")), journal()
    turns: list[str] = []
    long.leases = dict.fromkeys(map(str, range(3200)))
    file.write(long, lambda: turns.append("write"))
    assert file.read(lambda: turns.append("read")) == long
    assert (turns.count("write") > 100, turns.count("read") > 100) == (True, True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"namespace": "', '"namespace": ["x"], "v1": "'),
        ('["lease", "', '["lease", 7, null]\n["lease", "'),
        ('["lease", "', '["lease", "x", [["snapshots/overlayfs", 7]]]\n["lease", "'),
        ('["snapshot", "', '["snapshot", "x", null]\n["snapshot", "'),
        ('["blob", "', '["blob", "x", ["y"]]\n["blob", "'),
        ('["end"]', '["foreign", 7]\n["end"]'),
    ],
)
async def test_a_journal_of_other_types_is_none(old: str, new: str, worker: Path) -> None:
    """Whatever somebody has made of it, it ends in an error that says so."""
    await asyncmig.migrate(worker)
    path = worker / "metadata_v2.db.journal"
    text = path.read_text("ascii")
    assert old in text
    path.write_text(text.replace(old, new, 1), "ascii")
    await refused(worker, "this is no journal, or another version of asyncmig wrote it")


def test_a_journal_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AsyncmigError, match="No space left"):
        JournalFile(str(tmp_path / "metadata_v2.db")).write(journal())
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_that_cannot_be_written_stops_before_anything_changes(
    worker: Path, semantics: Semantics, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_state(worker)

    def full(self: JournalFile, content: Journal, checkpoint: Checkpoint) -> None:
        raise AsyncmigError("No space left on device")

    monkeypatch.setattr(JournalFile, "write", full)
    with pytest.raises(AsyncmigError, match="No space left") as caught:
        await asyncmig.migrate(worker, Options(semantics=semantics.name))
    assert not isinstance(caught.value, asyncmig.IncompleteMigrationError)
    assert tree_state(worker) == before


async def test_a_first_commit_that_fails_leaves_no_journal(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(tree_state(worker))
    interrupt(monkeypatch, "protect")
    with pytest.raises(AsyncmigError, match=r"^interrupted"):
        await asyncmig.migrate(worker)
    assert set(tree_state(worker)) == before


# -- an old daemon that was started again


def put_label_back(worker: Path) -> None:
    """What BuildKit v0.6 does to each snapshot of its records when it starts."""
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"v1", b"buildkit", b"snapshots", b"overlayfs", b"a", b"labels").put(ROOT.encode(), b"T")


def build_something(worker: Path) -> None:
    with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
        tx.create_path(b"_main", b"new").put(b"cache.createdAt", value(1))


def write_later(worker: Path) -> None:
    (worker / "metadata_v2.db.journal").unlink()
    newest = (worker / "metadata_v2.db").stat().st_mtime_ns
    os.utime(worker / "metadata.db", ns=(newest + 1, newest + 1))


@pytest.mark.parametrize(
    ("act", "trace"),
    [
        (put_label_back, "1 snapshot again with the label that the migration had removed"),
        (build_something, "metadata.db has changed"),
        (write_later, "metadata.db was written after metadata_v2.db"),
    ],
)
async def test_an_old_daemon_that_has_run_since_is_told_of(act: Callable[[Path], None], trace: str, worker: Path) -> None:
    await asyncmig.migrate(worker)
    assert (await asyncmig.migrate(worker)).notes == []
    act(worker)
    report = await asyncmig.migrate(worker)
    assert report.outcome is Outcome.ALREADY_MIGRATED
    assert [note.code for note in report.notes] == ["old-daemon-ran"]
    assert trace in report.notes[0].text


async def test_a_migrated_cache_that_is_in_use_is_looked_at_without_a_word(worker: Path) -> None:
    await asyncmig.migrate(worker)
    with Db.open(worker / "containerdmeta.db", writable=True), Db.open(worker / "metadata_v2.db", writable=True):
        assert (await asyncmig.migrate(worker)).notes == []


async def test_stages_of_a_rollback(worker: Path) -> None:
    stages: list[Stage] = []

    class Recorder(Progress):
        def stage(self, stage: Stage, total: int | None) -> None:
            stages.append(stage)

    await asyncmig.migrate(worker)
    report = await asyncmig.rollback(worker, progress=Recorder())
    assert stages == [Stage.OPEN, Stage.RESTORE, Stage.WITHDRAW, Stage.UNPROTECT]
    assert set(report.seconds) == {"open", "restore", "withdraw", "unprotect"}
