"""The simulation of power cuts can fail: it notes when a sync is left out."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.caches import marked_cache
from tests.faults.kill_points import migrate
from tests.torture.crash import SCENARIOS, Crashes, Scenario
from tests.torture.disk import (
    Cut,
    Event,
    Inode,
    Name,
    Recording,
    State,
    Sync,
    SyncDirectory,
    Write,
    contents,
    recording,
    replay,
    write_state,
)

STATES = 300

SYNCS = {
    "new database": ("metadata_v2.db", 0),
    "journal": ("metadata_v2.db.journal", 0),
    "journal's name": ("", 0),
    "pages of the leases": ("containerdmeta.db", 2),
    "commit of the leases": ("containerdmeta.db", 3),
    "new database's name": ("", 1),
}
"""Syncs of a migration: the name that the file has in the end, "" for the directory, and which of its syncs it is."""


@pytest.fixture
def crashes(tmp_path: Path) -> Crashes:
    """Power cuts of a migration of the tiny cache."""
    return Crashes(Scenario("tiny", "hardened", "migrate"), tmp_path, 1, None)


def is_noticed(crashes: Crashes, start: int = 0) -> bool:
    """Whether one of some random states of a power cut behind ``start`` is not survived."""
    for name, state in crashes.random_states(3, STATES, start):
        try:
            crashes.survives(name, state)
        except Exception:  # whatever it is that goes wrong
            return True
    return False


def synced(event: Event) -> Inode | type[Event] | None:
    """What an event syncs: a file, a directory or nothing."""
    if isinstance(event, SyncDirectory):
        return SyncDirectory
    return event.inode if isinstance(event, Sync) else None


@pytest.mark.parametrize("sync", SYNCS)
def test_a_sync_that_is_left_out_is_noticed(crashes: Crashes, sync: str) -> None:
    name, number = SYNCS[sync]
    record = crashes.record
    inode = record.names_now().get(("", name))
    wanted: list[type[Event] | Inode] = [SyncDirectory if inode is None else inode]
    at = [i for i, event in enumerate(record.events) if synced(event) in wanted][number]
    del record.events[at]
    assert is_noticed(crashes, at)


def test_each_scenario_has_a_name_of_its_own() -> None:
    assert len({str(scenario) for scenario in SCENARIOS}) == len(SCENARIOS)


# -- after a process that was killed


def test_a_name_that_is_not_durable_is_made_so_before_labels_go(tmp_path: Path) -> None:
    """A migration was killed between the rename of the new database and the sync of the directory."""
    worker = marked_cache().write(tmp_path / "runc-overlayfs")
    with recording(worker) as record:
        migrate(worker, "asyncio", "hardened")
    renamed = next(i for i, e in enumerate(record.events) if isinstance(e, Name) and e.name == "metadata_v2.db")
    killed = record.killed(renamed + 1)
    shutil.rmtree(worker)
    write_state(replay(killed), worker)
    with recording(worker, killed):
        migrate(worker, "asyncio", "hardened")
    kinds = [type(event) for event in killed.events[renamed + 1 :] if isinstance(event, SyncDirectory | Write)]
    assert kinds[0] is SyncDirectory
    assert Write in kinds


# -- the disk


def states_at_the_end(record: Recording) -> set[tuple[tuple[str, bytes], ...]]:
    """Every state that a power cut at the end may leave."""
    found = Cut(record, len(record.events)).every_state(10_000)
    assert found is not None
    return {as_items(state) for state in found}


def as_items(state: State) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted((name, content) for name, (content, _) in state.items()))


def test_any_sectors_and_any_length_may_be_there(tmp_path: Path) -> None:
    path = tmp_path / "root" / "file"
    path.parent.mkdir()
    path.write_bytes(b"a" * 512)
    with recording(path.parent) as record:
        fd = os.open(str(path), os.O_RDWR)
        os.pwrite(fd, b"b" * 512, 0)
        os.fsync(fd)
        os.pwrite(fd, b"c" * 1024, 0)
        os.close(fd)
    first, second = (b"b" * 512, b"c" * 512), (b"", bytes(512), b"c" * 512)
    assert states_at_the_end(record) == {(("file", a + b),) for a in first for b in second}
    assert contents(path.parent)["file"][0] == b"c" * 1024


def test_names_are_open_until_the_directory_is_synced(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with recording(tmp_path) as record:
        fd = os.open(str(tmp_path / "old.tmp"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.pwrite(fd, b"new", 0)
        os.fsync(fd)
        os.close(fd)
        os.rename(str(tmp_path / "old.tmp"), str(tmp_path / "old"))
        before_sync = len(record.events)
        directory = os.open(str(tmp_path), os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
    at_rename = Cut(record, before_sync).every_state(100)
    assert at_rename is not None
    assert {as_items(state) for state in at_rename} == {
        (("old", b"old"),),
        (("old", b"old"), ("old.tmp", b"new")),
        (("old", b"new"),),
    }
    assert states_at_the_end(record) == {(("old", b"new"),)}


def test_random_states_are_among_all_states(tmp_path: Path) -> None:
    crashes = Crashes(Scenario("tiny", "upstream", "rollback"), tmp_path, 1, None)
    for at in crashes.record.cuts():
        cut = Cut(crashes.record, at)
        every = cut.every_state(10_000)
        assert every is not None
        known = {as_items(state) for state in every}
        assert {as_items(cut.random_state(random.Random(i))) for i in range(50)} <= known


def test_what_escapes_the_recording_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not complete"), recording(tmp_path):
        (tmp_path / "file").write_bytes(b"written by a way that is not watched")
