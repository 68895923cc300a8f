"""Power cuts: whatever of the writes since the last sync reached the disk, the file holds the old state or the new one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asyncmig.bolt import Db
from tests.bolt.helpers import (
    Model,
    apply_to_tx,
    assert_sound,
    contents,
    new_db,
    random_history,
    read_meta,
    updating,
)
from tests.torture.disk import Cut, Recording, Sync, Write, recording, write_state

STATES_PER_COMMIT = 40


def any_cut(record: Recording, rng: random.Random) -> Cut:
    """A power cut behind any event."""
    return Cut(record, rng.randrange(len(record.events) + 1))


@pytest.mark.parametrize("freelist", [True, False])
@pytest.mark.parametrize("page_size", [1024, 4096])
@pytest.mark.parametrize("seed", range(5))
def test_every_state_is_the_old_or_the_new_one(tmp_path: Path, seed: int, page_size: int, freelist: bool) -> None:
    rng = random.Random(f"{seed} {page_size} {freelist}")
    (tmp_path / "disk").mkdir()
    path, crashed = new_db(tmp_path / "disk" / "db", page_size, freelist=freelist), tmp_path / "crashed"
    model = Model()
    seen = {"old": 0, "new": 0}
    for _ in range(4):
        old = contents(path)
        with recording(path.parent) as record, updating(path) as tx:
            for op in random_history(rng, model, rng.choice([1, 30, 400])):
                apply_to_tx(tx, op)
            tx.root.next_sequence()  # in case it changed nothing
        new = contents(path)
        assert [type(event) for event in record.events[-3:]] == [Sync, Write, Sync]
        for _ in range(STATES_PER_COMMIT):
            cut = any_cut(record, rng)
            write_state(cut.random_state(rng), crashed)
            assert_sound(crashed / "db")
            found = contents(crashed / "db")
            # Before the sync of the meta page it may be there or not.
            expected = {len(record.events): [new], len(record.events) - 1: [old, new]}.get(cut.at, [old])
            assert found in expected
            seen["new" if found == new else "old"] += 1
    assert min(seen.values()) > 0


def test_work_goes_on_after_a_crash(tmp_path: Path) -> None:
    """The state that is left is edited further and crashes again; what earlier commits left behind does no harm."""
    rng = random.Random(5)
    path = new_db(tmp_path / "db", 1024)
    for _ in range(60):
        model = contents(path)
        with recording(tmp_path) as record, updating(path) as tx:
            for op in random_history(rng, model, rng.choice([1, 30, 200])):
                apply_to_tx(tx, op)
        write_state(any_cut(record, rng).random_state(rng), tmp_path)
        assert_sound(path)


def test_a_missing_first_sync_would_be_noticed(tmp_path: Path) -> None:
    """The test above can fail: without the sync between pages and meta page it finds states that are neither."""
    rng = random.Random(1)
    (tmp_path / "disk").mkdir()
    path, crashed = new_db(tmp_path / "disk" / "db", 1024), tmp_path / "crashed"
    with recording(path.parent) as record, updating(path) as tx:
        for i in range(300):
            tx.create_path(b"b").put(b"%d" % i, b"v" * 40)
    syncs = [i for i, event in enumerate(record.events) if isinstance(event, Sync)]
    del record.events[syncs[-2]]
    bad = 0
    for _ in range(50):
        write_state(Cut(record, record.cuts()[-2]).random_state(rng), crashed)
        try:
            assert_sound(crashed / "db")
        except AssertionError:
            bad += 1
    assert bad > 0


def test_a_commit_whose_sync_is_missing_is_made_durable_before_the_next_one(tmp_path: Path) -> None:
    """The next one takes pages for free that the disk's state still needs."""
    path = tmp_path / "root" / "db"
    path.parent.mkdir()

    def put(value: bytes) -> None:
        with updating(path) as tx:
            tx.create_path(b"b").put(b"k", value * 3000)

    new_db(path, 1024)
    put(b"1")
    put(b"2")
    with recording(path.parent) as record:
        put(b"3")
    killed = record.killed(len(record.events) - 1)  # before the sync of the meta page
    with recording(path.parent, killed):
        put(b"4")
    rng, crashed, found = random.Random(1), tmp_path / "crashed", set()
    for at in killed.cuts(len(record.events) - 1):
        for _ in range(40):
            write_state(Cut(killed, at).random_state(rng), crashed)
            assert_sound(crashed / "db")
            with Db.open(crashed / "db") as db, db.view() as tx:
                bucket = tx.path_bucket(b"b")
                assert bucket is not None
                found.add((bucket.get(b"k"), db.pages and db.pages.meta.txid))
    assert found == {(b"2" * 3000, 3), (b"3" * 3000, 4), (b"4" * 3000, 5)}


@pytest.mark.parametrize("wrong", ["freelist", "root"])
def test_a_torn_meta_page_is_not_taken_for_a_good_one(tmp_path: Path, wrong: str) -> None:
    """The checksum covers all fields, so the other meta page, with the state before, is used."""
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        tx.create_path(b"b").put(b"k", b"v")
    states = [contents(path)]
    with updating(path) as tx:
        tx.create_path(b"b").put(b"k", b"w")
    meta = read_meta(path)
    data = bytearray(path.read_bytes())
    at = meta.txid % 2 * meta.page_size + {"root": 32, "freelist": 48}[wrong]
    data[at] ^= 0x01
    path.write_bytes(data)
    assert contents(path) == states[0]
    assert_sound(path)
