"""Rebuilding some buckets of a file into a new file."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from asyncmig.bolt import BucketBuilder, BucketValue, Db, PageFile, rebuild
from asyncmig.bolt.build import Fill
from asyncmig.bolt.format import NO_FREELIST
from asyncmig.errors import BucketError, CorruptDatabaseError, DatabaseError
from tests.bolt.helpers import (
    PAGE_SIZES,
    Model,
    apply_to_tx,
    assert_holds,
    assert_sound,
    contents,
    fill,
    new_db,
    open_bucket,
    random_history,
    read_meta,
    updating,
    viewing,
)
from tests.bolt.test_build import fill_from
from tests.bolt.test_damage import craft, leaf


def run(source: Path, target: Path, buckets: dict[bytes, Fill], **options: object) -> Path:
    with open(source, "rb") as file, open(target, "wb") as out:
        rebuild(PageFile(file.fileno(), str(source)), out.fileno(), str(target), buckets, **options)  # type: ignore[arg-type]
    return target


def roots(path: Path) -> dict[bytes, int]:
    """The root pages of the top-level buckets."""
    with viewing(path) as tx:
        result = {}
        for name, _ in tx.root.items():
            stored = open_bucket(tx, name)._stored
            assert stored is not None
            result[name] = stored.root
        return result


@pytest.mark.parametrize("seed", range(24))
def test_random_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = new_db(tmp_path / "db", PAGE_SIZES[seed % 3], freelist=rng.random() < 0.5)
    model = Model()
    for _ in range(3):
        with updating(source) as tx:
            for op in random_history(rng, model, rng.choice([20, 300])):
                apply_to_tx(tx, op)
    before = source.read_bytes()
    replaced = rng.sample([b"b0", b"b1", b"b2", b"new"], rng.choice([0, 1, 2, 4]))
    buckets: dict[bytes, Fill] = {}
    expected = Model(0, dict(model.entries))
    for name in replaced:
        old = model.find((name,))
        keys = [b"%05d" % i for i in range(rng.choice([0, 3, 2000]))]
        expected.entries[name] = new = Model(old.sequence if old else 0, dict.fromkeys(keys, b"v" * rng.choice([1, 100])))
        buckets[name] = fill_from(new)
    target = run(source, tmp_path / "new", buckets)
    assert_holds(target, expected)
    assert source.read_bytes() == before
    assert read_meta(target).txid == read_meta(source).txid + 1
    assert target.stat().st_size == read_meta(target).high_water_mark * read_meta(target).page_size
    kept = {k: page for k, page in roots(source).items() if k not in replaced}
    assert {k: page for k, page in roots(target).items() if k in kept} == kept  # at their old places
    model = expected
    with updating(target) as tx:
        for op in random_history(rng, model, 200):
            apply_to_tx(tx, op)
    assert_holds(target, model)


def test_the_slots_of_what_is_replaced_are_used(tmp_path: Path) -> None:
    source = new_db(tmp_path / "db")
    fill(source, 5000, name=b"old")
    fill(source, 5000, name=b"kept")
    new = Model(0, {b"k%05d" % i: b"w" * 40 for i in range(4000)})
    target = run(source, tmp_path / "new", {b"old": fill_from(new)})
    assert target.stat().st_size < source.stat().st_size * 1.1
    expected = contents(source)
    expected.entries[b"old"] = new
    assert_holds(target, expected)


def test_sequences_are_kept(tmp_path: Path) -> None:
    source = new_db(tmp_path / "db")
    with updating(source) as tx:
        tx.root.set_sequence(3)
        tx.create_path(b"a").set_sequence(4)
        tx.create_path(b"b", b"in").set_sequence(5)
    target = run(source, tmp_path / "new", {b"a": fill_from(Model())})
    with viewing(target) as tx:
        assert tx.root.sequence == 3
        assert open_bucket(tx, b"a").sequence == 4
        assert open_bucket(tx, b"b", b"in").sequence == 5


def test_the_meta_flags_are_kept_and_a_freelist_is_written(tmp_path: Path) -> None:
    source = fill(new_db(tmp_path / "db", freelist=False), 1000)
    target = run(source, tmp_path / "new", {})
    assert read_meta(source).freelist == NO_FREELIST
    assert read_meta(target).freelist != NO_FREELIST
    assert_holds(target, contents(source))


def test_trees_that_the_new_bucket_keeps(tmp_path: Path) -> None:
    """``keep``: a nested bucket goes on at its old pages below a parent that is built anew."""
    source = new_db(tmp_path / "db")
    fill(source, 100)
    with updating(source) as tx:
        big = tx.create_path(b"b", b"big")
        for i in range(1000):
            big.put(b"%05d" % i, b"v" * 50)
        big.create_bucket(b"nested").put(b"k", b"v" * 3000)
    with viewing(source) as tx:
        value = open_bucket(tx, b"b", b"big")._stored
    assert isinstance(value, BucketValue)
    kept = value

    def build(builder: BucketBuilder) -> None:
        builder.put(b"big under a new name", kept)
        builder.put(b"k", b"v")

    target = run(source, tmp_path / "new", {b"b": build}, keep=[kept.root])
    big_model = contents(source).find((b"b", b"big"))
    assert big_model is not None
    assert_holds(target, Model(0, {b"b": Model(0, {b"big under a new name": big_model, b"k": b"v"})}))


def test_damage_in_what_is_kept(tmp_path: Path) -> None:
    source = new_db(tmp_path / "db")
    fill(source, 500, name=b"bad")
    fill(source, 500, name=b"good", value=b"g" * 40)
    data = bytearray(source.read_bytes())
    # The last one: pages that are not in use any more may hold the key, too.
    data[data.rindex(b"k00100" + b"v" * 40)] = 1
    source.write_bytes(data)
    with pytest.raises(CorruptDatabaseError, match="keys are out of order"):
        run(source, tmp_path / "new", {b"good": fill_from(Model())})
    # What is replaced is not looked at.
    target = run(source, tmp_path / "new", {b"bad": fill_from(Model())})
    assert_sound(target)


def test_a_bucket_that_contains_its_parent(tmp_path: Path) -> None:
    bucket = BucketValue((2).to_bytes(8, "little") + bytes(8))
    source = craft(tmp_path / "db", {2: leaf(2, {b"b": bucket})}, root=2, end=3)
    with pytest.raises(CorruptDatabaseError, match=r"page 2 is corrupt \(referenced twice"):
        run(source, tmp_path / "new", {})


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_where_the_kernel_cannot_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    source = fill(new_db(tmp_path / "db"), 3000)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    target = run(source, tmp_path / "new", {b"c": fill_from(Model(0, {b"k": b"v"}))})
    expected = contents(source)
    expected.entries[b"c"] = Model(0, {b"k": b"v"})
    assert_holds(target, expected)


def test_a_kernel_that_copies_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(new_db(tmp_path / "db"), 3000)
    real = os.copy_file_range

    def little(src: int, dst: int, count: int, *offsets: int) -> int:
        return real(src, dst, min(count, 777), *offsets)

    monkeypatch.setattr(os, "copy_file_range", little)
    assert_holds(run(source, tmp_path / "new", {}), contents(source))


def test_errors_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(new_db(tmp_path / "db"), 3000)

    def fail(code: int) -> object:
        def call(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        return call

    for call, code in [("copy_file_range", errno.ENOSPC), ("pwritev", errno.ENOSPC), ("fsync", errno.EIO)]:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail(code))
            with pytest.raises(DatabaseError, match=os.strerror(code)):
                run(source, tmp_path / "new", {})

    real = os.pread

    def bad_sector(fd: int, count: int, offset: int) -> bytes:
        if count > 1 << 16:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fail(errno.EXDEV))
        patch.setattr(os, "pread", bad_sector)
        with pytest.raises(DatabaseError, match=r"cannot read .*: Input/output error"):
            run(source, tmp_path / "new", {})


def test_bad_keys_of_the_filler(tmp_path: Path) -> None:
    source = new_db(tmp_path / "db")

    def build(builder: BucketBuilder) -> None:
        builder.put(b"b", b"")
        builder.put(b"a", b"")

    with pytest.raises(BucketError, match="does not follow"):
        run(source, tmp_path / "new", {b"b": build})


def test_a_checkpoint_stops_it(tmp_path: Path) -> None:
    source = fill(new_db(tmp_path / "db"), 3000)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "new", {}, checkpoint=stop)


def test_of_an_open_database(tmp_path: Path) -> None:
    source = fill(new_db(tmp_path / "db"), 300)
    with Db.open(source) as db, open(tmp_path / "new", "wb") as out:
        assert db.pages is not None
        rebuild(db.pages, out.fileno(), "new", {})
    assert_holds(tmp_path / "new", contents(source))
