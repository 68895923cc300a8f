"""Power cuts: whatever of the writes since the last sync reached the disk, the file holds the old state or the new one."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
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

SECTOR = 512
STATES_PER_COMMIT = 40


@dataclass
class Disk:
    """Records what a commit does to its file; can tell what may be on the disk at any time of it."""

    image: bytearray
    """What was synced before."""
    events: list[tuple[str, int, bytes]] = field(default_factory=list)

    def record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pwritev, pwrite, ftruncate = os.pwritev, os.pwrite, os.ftruncate

        def recording_pwritev(fd: int, buffers: list[bytes], offset: int) -> int:
            self.events.append(("write", offset, b"".join(buffers)))
            return pwritev(fd, buffers, offset)

        def recording_pwrite(fd: int, data: bytes, offset: int) -> int:
            self.events.append(("write", offset, bytes(data)))
            return pwrite(fd, data, offset)

        def recording_ftruncate(fd: int, length: int) -> None:
            self.events.append(("length", length, b""))
            ftruncate(fd, length)

        def sync(_fd: int) -> None:
            self.events.append(("sync", 0, b""))

        monkeypatch.setattr(os, "pwritev", recording_pwritev)
        monkeypatch.setattr(os, "pwrite", recording_pwrite)
        monkeypatch.setattr(os, "ftruncate", recording_ftruncate)
        monkeypatch.setattr(os, "fdatasync", sync)
        monkeypatch.setattr(os, "fsync", sync)

    def after_a_power_cut(self, rng: random.Random) -> tuple[int, bytes]:
        """When it was (events passed), and one of the images that may be left.

        A block write is torn at sectors only.  The length of the file is as long as the last byte that made it, or anything
        between the old and the new length: file systems may extend the file before or after the data.
        """
        cut = rng.randrange(len(self.events) + 1)
        synced = max((i for i in range(cut) if self.events[i][0] == "sync"), default=0)
        image = bytearray(self.image)
        for event in self.events[:synced]:
            apply_event(image, event)
        blocks: list[tuple[int, bytes]] = []
        for kind, offset, data in self.events[synced:cut]:
            if kind == "length" and rng.random() < 0.5:
                apply_event(image, (kind, offset, data))
            blocks += split_at_sectors(offset, data)
        rng.shuffle(blocks)
        share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for offset, block in blocks:
            if rng.random() < share:
                apply_event(image, ("write", offset, block))
        return cut, bytes(image)


def split_at_sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    blocks = []
    end = offset + len(data)
    at = offset
    while at < end:
        upto = min((at // SECTOR + 1) * SECTOR, end)
        blocks.append((at, data[at - offset : upto - offset]))
        at = upto
    return blocks


def apply_event(image: bytearray, event: tuple[str, int, bytes]) -> None:
    kind, offset, data = event
    end = offset + len(data)
    if kind != "sync" and end > len(image):
        image.extend(bytes(end - len(image)))
    if kind == "write":
        image[offset:end] = data


@pytest.mark.parametrize("freelist", [True, False])
@pytest.mark.parametrize("page_size", [1024, 4096])
@pytest.mark.parametrize("seed", range(5))
def test_every_state_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, page_size: int, freelist: bool
) -> None:
    rng = random.Random(f"{seed} {page_size} {freelist}")
    path, crashed = new_db(tmp_path / "db", page_size, freelist=freelist), tmp_path / "crashed"
    model = Model()
    seen = {"old": 0, "new": 0}
    for _ in range(4):
        old = contents(path)
        disk = Disk(bytearray(path.read_bytes()))
        with monkeypatch.context() as patch:
            disk.record(patch)
            with Db.open(path, writable=True) as db, db.update() as tx:
                for op in random_history(rng, model, rng.choice([1, 30, 400])):
                    apply_to_tx(tx, op)
                if not disk.events:
                    tx.root.next_sequence()  # in case it changed nothing
        new = contents(path)
        assert [kind for kind, _, _ in disk.events[-3:]] == ["sync", "write", "sync"]
        last_sync_of_data = len(disk.events) - 2
        for _ in range(STATES_PER_COMMIT):
            cut, image = disk.after_a_power_cut(rng)
            crashed.write_bytes(image)
            assert_sound(crashed)
            found = contents(crashed)
            assert found == (new if cut == len(disk.events) else old) or (cut == last_sync_of_data + 1 and found == new)
            seen["new" if found == new else "old"] += 1
    assert min(seen.values()) > 0


def test_work_goes_on_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that is left is edited further and crashes again; what earlier commits left behind does no harm."""
    rng = random.Random(5)
    path = new_db(tmp_path / "db", 1024)
    for _ in range(60):
        model = contents(path)
        disk = Disk(bytearray(path.read_bytes()))
        with monkeypatch.context() as patch:
            disk.record(patch)
            with updating(path) as tx:
                for op in random_history(rng, model, rng.choice([1, 30, 200])):
                    apply_to_tx(tx, op)
        _, image = disk.after_a_power_cut(rng)
        path.write_bytes(image)
        assert_sound(path)


def test_a_missing_first_sync_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the sync between pages and meta page it finds states that are neither."""
    rng = random.Random(1)
    path, crashed = new_db(tmp_path / "db", 1024), tmp_path / "crashed"
    disk = Disk(bytearray(path.read_bytes()))
    with monkeypatch.context() as patch:
        disk.record(patch)
        with updating(path) as tx:
            for i in range(300):
                tx.create_path(b"b").put(b"%d" % i, b"v" * 40)
    syncs = [i for i, event in enumerate(disk.events) if event[0] == "sync"]
    del disk.events[syncs[0]]
    bad = 0
    for _ in range(50):
        crashed.write_bytes(disk.after_a_power_cut(rng)[1])
        try:
            assert_sound(crashed)
        except AssertionError:
            bad += 1
    assert bad > 0


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
