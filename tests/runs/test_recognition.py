"""A rollback and a completion act only on the stores that the migration has changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import asyncmig
from asyncmig import AsyncmigError, IncompleteMigrationError, LayoutError, Options, Outcome, StoreError
from asyncmig.bolt import Db
from asyncmig.migration import pipeline
from asyncmig.migration.semantics import HARDENED, UPSTREAM
from asyncmig.synth import synthesize
from tests.caches import sample_cache, value
from tests.states import tree_state

pytestmark = pytest.mark.anyio


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return Path(synthesize(tmp_path / "root" / "runc-overlayfs", records=100).directory)


def stores_of(worker: Path) -> list[Path]:
    return [worker / "containerdmeta.db", worker / "snapshots" / "metadata.db"]


def without_snapshots(worker: Path) -> None:
    """The disk of the snapshots is not mounted."""
    shutil.rmtree(worker / "snapshots")
    (worker / "snapshots").mkdir()


def of_no_bytes(worker: Path) -> None:
    for path in stores_of(worker):
        path.write_bytes(b"")


def gone(worker: Path) -> None:
    for path in stores_of(worker):
        path.unlink()


def made_anew(worker: Path) -> None:
    """The stores of another cache, in the same places."""
    other = Path(synthesize(worker.parent.parent / "other" / "runc-overlayfs", records=100, seed=7).directory)
    for path in stores_of(worker):
        shutil.copy(other / path.relative_to(worker), path)


def one_of_two_made_anew(worker: Path) -> None:
    other = Path(synthesize(worker.parent.parent / "other" / "runc-overlayfs", records=100, seed=7).directory)
    shutil.copy(other / "snapshots" / "metadata.db", worker / "snapshots" / "metadata.db")


def without_leases(worker: Path) -> None:
    """An older copy of the database: without the leases that the migration made."""
    with Db.open(worker / "containerdmeta.db", writable=True) as db, db.update() as tx:
        namespace = tx.path_bucket(b"v1", b"buildkit")
        assert namespace is not None
        namespace.delete_bucket(b"leases")


WRONG = [without_snapshots, of_no_bytes, gone, made_anew, one_of_two_made_anew, without_leases]


async def interrupted(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that was interrupted after it had published the new database."""

    def fail(*_: object) -> None:
        raise AsyncmigError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "release", fail)
        with pytest.raises(IncompleteMigrationError):
            await asyncmig.migrate(worker)
    assert (worker / "metadata_v2.db").exists()


def with_backup(worker: Path) -> Path:
    return shutil.copytree(worker, worker.parent.parent / "backup", symlinks=True)


def put_back(worker: Path, backup: Path) -> None:
    shutil.copytree(backup / "snapshots", worker / "snapshots", symlinks=True, dirs_exist_ok=True)
    shutil.copy(backup / "containerdmeta.db", worker)


@pytest.mark.parametrize("change", WRONG)
async def test_a_rollback_in_other_stores_is_refused(change: Callable[[Path], None], worker: Path) -> None:
    await asyncmig.migrate(worker)
    backup = with_backup(worker)
    change(worker)
    before = tree_state(worker)
    for options in (Options(), Options(dry_run=True)):
        with pytest.raises((StoreError, LayoutError)):
            await asyncmig.rollback(worker, options)
        assert tree_state(worker) == before
    put_back(worker, backup)
    report = await asyncmig.rollback(worker)
    assert (report.outcome, report.notes) == (Outcome.ROLLED_BACK, [])


@pytest.mark.parametrize("change", WRONG)
async def test_a_completion_in_other_stores_is_refused(
    change: Callable[[Path], None], worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupted(worker, monkeypatch)
    backup = with_backup(worker)
    change(worker)
    before = tree_state(worker)
    for entry_point in (asyncmig.plan, asyncmig.migrate):
        with pytest.raises((StoreError, LayoutError)) as caught:
            await entry_point(worker)
        assert not isinstance(caught.value, IncompleteMigrationError)
        assert tree_state(worker) == before
    put_back(worker, backup)
    assert (await asyncmig.migrate(worker)).outcome is Outcome.COMPLETED
    assert (await asyncmig.verify(worker)).clean


@pytest.mark.parametrize("option", ["snapshotter", "namespace"])
@pytest.mark.parametrize("entry_point", [asyncmig.rollback, asyncmig.verify, asyncmig.migrate])
async def test_another_place_than_that_of_the_migration_is_refused(
    option: str, entry_point: Callable[..., object], worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupted(worker, monkeypatch)
    before = tree_state(worker)
    with pytest.raises(LayoutError, match=f"the migration was made with --{option} .*, not other; leave out --{option}"):
        await entry_point(worker, Options(**{option: "other"}))  # type: ignore[misc, arg-type]
    assert tree_state(worker) == before


async def test_what_is_really_gone_can_be_accepted(worker: Path) -> None:
    await asyncmig.migrate(worker)
    one_of_two_made_anew(worker)
    with pytest.raises(StoreError, match=r"of this cache do not exist .*the limit is 5 %.*Is every volume mounted\?"):
        await asyncmig.rollback(worker)
    report = await asyncmig.rollback(worker, Options(max_dropped=100))
    assert report.outcome is Outcome.ROLLED_BACK
    assert [note.code for note in report.notes] == ["vanished"]


async def test_the_old_daemon_has_removed_records_since(tmp_path: Path) -> None:
    """It deletes a record with its snapshot and blob; a label put back on what is left of them would keep it for ever."""
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker)
    with Db.open(worker / "metadata.db", writable=True) as db, db.update() as tx:
        records = tx.bucket(b"_main")
        assert records is not None
        records.delete_bucket(b"d")
        tx.create_path(b"_main", b"new").put(b"cache.createdAt", value(1))
    report = await asyncmig.rollback(worker)
    assert report.outcome is Outcome.ROLLED_BACK
    assert [note.code for note in report.notes] == ["labels-left-out"]
    with Db.open(worker / "containerdmeta.db") as opened, opened.view() as view:
        for name in (b"a", b"d"):
            labels = view.path_bucket(b"v1", b"buildkit", b"snapshots", b"overlayfs", name, b"labels")
            assert bool(labels and labels.get(b"containerd.io/gc.root")) == (name == b"a")


async def test_a_daemon_that_has_changed_nothing_is_no_obstacle(worker: Path) -> None:
    """A newer daemon that was started and stopped has committed transactions without changes."""
    await asyncmig.migrate(worker)
    with Db.open(worker / "metadata_v2.db", writable=True) as db:
        for _ in range(3):
            with db.update() as tx:
                tx.create_path(b"_main")
    assert (await asyncmig.rollback(worker)).outcome is Outcome.ROLLED_BACK


async def test_a_database_that_a_daemon_has_made_since_is_no_published_one(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration was killed before it had made a lease, so no label may go."""

    def fail(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "protect", fail)
        with pytest.raises(IncompleteMigrationError):
            await asyncmig.migrate(worker)
    assert (worker / "metadata_v2.db.journal").exists()
    for records in ((), (b"new",)):
        with Db.open(worker / "metadata_v2.db", writable=True, create=True) as db, db.update() as tx:
            tx.create_path(b"_main")
            for name in records:
                tx.create_path(b"_main", name).put(b"cache.createdAt", value(1))
        before = tree_state(worker)
        for semantics in (HARDENED, UPSTREAM):
            for entry_point in (asyncmig.plan, asyncmig.migrate):
                with pytest.raises(LayoutError, match="this is not the migrated cache"):
                    await entry_point(worker, Options(semantics=semantics.name))
        assert tree_state(worker) == before
    (worker / "metadata_v2.db").unlink()
    assert (await asyncmig.migrate(worker)).outcome is Outcome.MIGRATED
    assert (await asyncmig.verify(worker)).clean


async def test_a_newer_daemon_that_has_replaced_every_record(worker: Path) -> None:
    """Of a cache that BuildKit's own migration has migrated: there is no journal, but v1's labels are gone."""
    await asyncmig.migrate(worker)
    (worker / "metadata_v2.db.journal").unlink()
    with Db.open(worker / "metadata_v2.db", writable=True) as db, db.update() as tx:
        tx.delete_bucket(b"_main")
        tx.create_path(b"_main", b"new").put(b"cache.createdAt", value(1))
    report = await asyncmig.migrate(worker)
    assert (report.outcome, [note.code for note in report.notes]) == (
        Outcome.ALREADY_MIGRATED,
        ["records-replaced", *(note.code for note in report.notes[1:])],
    )


async def test_no_link_is_followed_to_the_stores_that_a_journal_names(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "containerd-overlayfs")
    root = tmp_path / "containerd"
    for source, target in {
        "containerdmeta.db": "io.containerd.metadata.v1.bolt/meta.db",
        "snapshots": "io.containerd.snapshotter.v1.overlayfs",
        "content": "io.containerd.content.v1.content",
    }.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(worker / source, root / target)
    await asyncmig.migrate(worker, Options(containerd_root=root))
    shutil.move(root / "io.containerd.metadata.v1.bolt", tmp_path / "elsewhere")
    (root / "io.containerd.metadata.v1.bolt").symlink_to("../elsewhere")
    before = tree_state(tmp_path)
    for entry_point in (asyncmig.rollback, asyncmig.verify):
        with pytest.raises(asyncmig.UntrustedError, match="a symbolic link"):
            await entry_point(worker)
    assert tree_state(tmp_path) == before
