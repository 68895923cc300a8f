"""The check on sound files, and the ways to call it.  test_damage.py has what it finds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asyncmig.bolt import Db, Finding, Walker, check, dump, format, verify_pages
from asyncmig.errors import CorruptDatabaseError, DatabaseError
from tests.bolt.helpers import fill, new_db, open_bucket, patch_metas_of, updating
from tests.bolt.mutate import Image, mutate, sample
from tests.bolt.test_damage import branch, craft, leaf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db")


def damage_key(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"k00100")
    data[at] = 0x01
    path.write_bytes(data)


def test_a_new_file(path: Path) -> None:
    result = check(path)
    assert result.clean
    assert not result.truncated
    assert (result.page_size, result.pages, result.free_pages, result.buckets, result.keys) == (4096, 4, 0, 0, 0)


def test_counts(path: Path) -> None:
    """Keys in inline buckets count too, buckets are no keys."""
    fill(path, 1000)
    with updating(path) as tx:
        bucket = tx.create_path(b"c", b"inline")
        bucket.put(b"1", b"")
        bucket.put(b"2", b"")
        tx.create_path(b"c", b"empty")
        open_bucket(tx, b"c").put(b"plain", b"")
    result = check(path)
    assert result.clean
    assert (result.buckets, result.keys) == (4, 1003)
    with updating(path) as tx:
        tx.delete_bucket(b"b")
    after = check(path)
    assert after.clean
    assert (after.buckets, after.keys) == (3, 3)
    assert after.free_pages > result.free_pages


def test_without_a_stored_freelist(tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", freelist=False), 1000)
    with updating(path) as tx:
        tx.delete_bucket(b"b")
    result = check(path)
    assert result.clean
    assert result.free_pages == result.pages - 3  # the metas and the root


def test_it_changes_nothing_and_needs_no_write_permission(path: Path) -> None:
    fill(path, 1000)
    before = path.read_bytes()
    path.chmod(0o400)
    assert check(path).clean
    assert path.read_bytes() == before


@pytest.mark.parametrize("meta", [0, 1])
def test_a_bad_meta_page_beside_a_good_one_is_worth_a_note(meta: int, path: Path) -> None:
    """The state of the good one is sound, but it may not be the last that was committed."""
    fill(path, 10)
    sound = path.read_bytes()
    assert check(path).notes == []
    for offset, cause in ((20, "version 3 instead of 2"), (16, "wrong magic number"), (60, "wrong checksum")):
        data = bytearray(sound)
        data[meta * 4096 + offset] ^= 1
        path.write_bytes(data)
        result = check(path)
        assert result.clean
        assert result.notes == [
            f"meta page {meta} is unusable ({cause}), so this is the state of the other one; "
            "if the bad one was the newer, the last commit is lost. "
            "'asyncmig db repair' writes a copy in which both are good"
        ]


def test_a_meta_page_of_another_page_size_is_worth_a_note(path: Path) -> None:
    sound = path.read_bytes()
    data = bytearray(sound)
    patch_metas_of(data, page_size=8192)
    path.write_bytes(sound[:4096] + data[4096:])
    assert check(path).notes[0].startswith("meta page 1 is unusable (another page size), so")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="No such file"):
        check(tmp_path / "db")


def test_findings_as_text() -> None:
    assert str(Finding(7, "bad")) == "page 7: bad"
    assert str(Finding(None, "bad")) == "bad"


def test_verify_pages(path: Path) -> None:
    fill(path, 1000)
    with Db.open(path) as db:
        assert db.pages is not None
        verify_pages(db.pages)
    damage_key(path)
    first = check(path).findings[0]
    with Db.open(path) as db:
        assert db.pages is not None
        with pytest.raises(CorruptDatabaseError) as caught:
            verify_pages(db.pages)
    assert (caught.value.page, caught.value.detail) == (first.page, first.cause)
    text = f"{path}: page {first.page} is corrupt ({first.cause}); restore db from a backup"
    assert (str(caught.value), caught.value.mendable) == (text, False)


def test_it_goes_on_behind_a_damaged_page(tmp_path: Path) -> None:
    bad = leaf(5, {b"b": b"v"})
    bad = bad[:8] + b"\x08" + bad[9:]
    path = craft(
        tmp_path / "db",
        {
            2: branch(2, {b"a": 3, b"b": 4, b"c": 5, b"d": 6}),
            3: leaf(3, {b"z": b"v"}),
            4: leaf(4, {b"b": b"v"}),
            5: bad,
            6: leaf(6, {b"c": b"v"}),
        },
        root=2,
        end=7,
    )
    assert [str(f) for f in check(path).findings] == [
        "page 3: last key b'z' is not below the next branch key b'b'",
        "page 5: type 0x8 where a branch or leaf page should be",
        "page 6: first key b'c' is below its branch key b'd'",
    ]


def test_lost_pages_are_reported_but_do_no_harm(path: Path) -> None:
    """bbolt itself loses pages, for example when it changes and deletes a bucket in one transaction."""
    fill(path, 1000)
    with updating(path) as tx:
        open_bucket(tx, b"b").put(b"k", b"v")
    image = Image(path.read_bytes())
    assert image.freelist is not None
    count = image.header(image.freelist)[2]
    assert count > 2
    image.set_header(image.freelist, count=count - 2)
    path.write_bytes(image.data)
    result = check(path)
    assert [f.cause for f in result.findings] == ["neither in use nor on the freelist"] * 2
    with Db.open(path, writable=True) as db:
        assert db.pages is not None
        verify_pages(db.pages)
        assert len(list(dump(db))) == 1002
        with db.update() as tx:
            open_bucket(tx, b"b").put(b"l", b"v")
    assert check(path).findings == result.findings


@pytest.mark.parametrize("page_size", [1024, 4096])
def test_short_ways_find_what_the_long_way_finds(tmp_path: Path, page_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets that are one page, and layouts that were met before."""
    rng = random.Random(page_size)
    sound, path = sample(tmp_path / "sound", page_size, freelist=True), tmp_path / "db"
    clean = 0
    for _ in range(100):
        kinds, data = mutate(rng, sound)
        path.write_bytes(data)
        found = check(path)
        with monkeypatch.context() as patch:
            patch.setattr(Walker, "_single_leaf", lambda *_: None)
            patch.setattr(format, "_shared_layout", lambda *_: None)
            assert check(path) == found, kinds
        clean += found.clean
    assert 0 < clean < 90
