"""Sound copies of files whose data are whole; everything else is refused."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from asyncmig.bolt import Db, check, dump
from asyncmig.bolt.repair import repair
from asyncmig.errors import CorruptDatabaseError, DatabaseError, DatabaseLockedError
from tests.bolt.helpers import fill, new_db
from tests.bolt.mutate import Image, mutate, sample
from tests.bolt.test_damage import CASES, Damage, file_of_one_page
from tests.states import dump_lines

_MENDED = {case[0] for case in CASES if case[0].startswith("8 ")}
"""Damage to the freelist, and to nothing else."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return sample(tmp_path_factory.mktemp("sample") / "db", 1024, freelist=True)


@pytest.mark.parametrize(("name", "damage"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_mended_and_what_is_refused(name: str, damage: Damage, tmp_path: Path, sound: Image) -> None:
    image, path, new = sound.copy(), tmp_path / "db", tmp_path / "new"
    damage(image)
    path.write_bytes(image.data)
    before = path.stat().st_mtime_ns
    if name in _MENDED:
        found = repair(path, new)
        assert found.mendable
        assert not found.clean
        (tmp_path / "sound").write_bytes(sound.data)
        assert dump_lines(new) == dump_lines(tmp_path / "sound")
        assert (check(new).findings, check(new).notes) == ([], [])
    else:
        with pytest.raises(CorruptDatabaseError, match="restore db from a backup"):
            repair(path, new)
        assert os.listdir(tmp_path) == ["db"]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (bytes(image.data), before)


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("freelist", [True, False])
def test_one_meta_page(slot: int, freelist: bool, tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", freelist=freelist), 1000)
    raw = bytearray(path.read_bytes())
    raw[slot * 4096 + 20] ^= 1
    path.write_bytes(raw)
    with Db.open(path) as db:
        lines = list(dump(db))
    found = repair(path, tmp_path / "new")
    assert found.clean
    assert "the last commit is lost" in found.notes[0]
    assert dump_lines(tmp_path / "new") == lines
    assert check(tmp_path / "new").notes == []


def test_a_mutated_file_has_a_sound_copy_or_none(tmp_path: Path) -> None:
    """Whatever a copy is made of, all that could be read of it is in the copy."""
    rng = random.Random(1)
    sound, path, new = sample(tmp_path / "sound", 1024, freelist=True), tmp_path / "db", tmp_path / "new"
    made = refused = 0
    for _ in range(300):
        kinds, data = mutate(rng, sound)
        path.write_bytes(data)
        try:
            repair(path, new)
        except CorruptDatabaseError:
            refused += 1
            assert not new.exists(), kinds
            continue
        if new.exists():
            made += 1
            found, copied = check(path), check(new)
            assert copied.clean, kinds
            assert (copied.keys, copied.buckets) == (found.keys, found.buckets), kinds
            new.unlink()
    assert made > 20
    assert refused > 20


@pytest.mark.parametrize("is_empty", [False, True])
def test_nothing_is_written_for_a_sound_file(is_empty: bool, tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    if not is_empty:
        path.unlink()
        fill(new_db(path), 10)
    found = repair(path, tmp_path / "new")
    assert (found.clean, found.notes) == (True, [])
    assert os.listdir(tmp_path) == ["db"]


@pytest.fixture
def damaged(tmp_path: Path, sound: Image) -> Path:
    image = sound.copy()
    CASES[[case[0] for case in CASES].index("8 free twice")][1](image)
    (tmp_path / "db").write_bytes(image.data)
    return tmp_path / "db"


@pytest.mark.parametrize("kind", ["file", "link", "directory", "itself"])
def test_nothing_is_replaced(kind: str, damaged: Path) -> None:
    new = damaged if kind == "itself" else damaged.with_name("new")
    if kind == "file":
        new.write_text("mine")
    elif kind == "link":
        new.symlink_to("nowhere")
    elif kind == "directory":
        new.mkdir()
    before = damaged.read_bytes()
    with pytest.raises(DatabaseError, match="cannot make it: File exists"):
        repair(damaged, new)
    assert damaged.read_bytes() == before
    assert kind != "file" or new.read_text() == "mine"
    assert os.path.lexists(new)


def test_a_directory_that_is_not_there(damaged: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot make it: No such file or directory"):
        repair(damaged, damaged.with_name("none") / "new")


def test_a_daemon_that_runs_is_told(damaged: Path) -> None:
    with Db.open(damaged, exclusive=True), pytest.raises(DatabaseLockedError):
        repair(damaged, damaged.with_name("new"))


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_mode_and_owner_are_those_of_the_original(mode: int, damaged: Path) -> None:
    damaged.chmod(mode)
    if os.geteuid() == 0:
        os.chown(damaged, 12345, 54321)
    new = damaged.with_name("new")
    repair(damaged, new)
    wanted, made = damaged.stat(), new.stat()
    assert (made.st_mode, made.st_uid, made.st_gid) == (wanted.st_mode, wanted.st_uid, wanted.st_gid)


class StopError(Exception):
    pass


def test_nothing_is_left_of_a_copy_that_was_stopped(damaged: Path) -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    repair(damaged, damaged.with_name("new"), checkpoint=count)
    damaged.with_name("new").unlink()
    for number in range(1, calls + 1):
        left = number

        def stop() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise StopError

        with pytest.raises(StopError):
            repair(damaged, damaged.with_name("new"), checkpoint=stop)
        assert os.listdir(damaged.parent) == ["db"]


def test_a_part_of_a_file_is_refused(tmp_path: Path, sound: Image) -> None:
    image = sound.copy()
    file_of_one_page(image)
    (tmp_path / "db").write_bytes(image.data)
    with pytest.raises(CorruptDatabaseError, match="the file is truncated"):
        repair(tmp_path / "db", tmp_path / "new")
