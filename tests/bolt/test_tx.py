"""Transactions: what they change, what they refuse, and the trees they leave behind."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.bolt import Bucket, BucketValue, Db, Tx
from asyncmig.bolt.format import BUCKET_HEADER_SIZE, LEAF, encode_inline, encode_leaf, encode_page
from asyncmig.bolt.space import PageWriter
from asyncmig.errors import BucketError, CorruptDatabaseError, DatabaseError
from tests.bolt.helpers import (
    PAGE_SIZES,
    Model,
    assert_holds,
    assert_sound,
    bucket_contents,
    contents,
    fill,
    height,
    new_db,
    open_bucket,
    read_meta,
    trees,
    updating,
    viewing,
)
from tests.bolt.test_damage import branch, craft, leaf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db")


def stored_value(path: Path, *names: bytes) -> BucketValue:
    """The element of a bucket in its parent."""
    with viewing(path) as tx:
        value = open_bucket(tx, *names)._stored
        assert value is not None
        return value


# -- keys and values


def test_put_get_delete(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        bucket.put(b"k", b"v")
        bucket.put(b"empty", b"")
        assert bucket.get(b"k") == b"v"
        bucket.put(b"k", b"w")
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        assert bucket.get(b"k") == b"w"
        assert bucket.get(b"empty") == b""
        assert b"empty" in bucket
        assert bucket.get(b"missing") is None
        assert b"missing" not in bucket
        bucket.delete(b"k")
        bucket.delete(b"missing")
        assert bucket.get(b"k") is None
    assert_holds(path, Model(0, {b"b": Model(0, {b"empty": b""})}))


def test_values_may_be_any_buffer_and_are_copied(path: Path) -> None:
    value = bytearray(b"before")
    with updating(path) as tx:
        tx.create_path(b"b").put(b"k", value)  # type: ignore[arg-type]
        value[:] = b"after!"
    assert contents(path) == Model(0, {b"b": Model(0, {b"k": b"before"})})


def test_a_bucket_value_from_elsewhere_is_stored_as_plain_bytes(path: Path) -> None:
    value = encode_inline([], [], 7)
    with updating(path) as tx:
        tx.create_path(b"b").put(b"k", value)
    assert_holds(path, Model(0, {b"b": Model(0, {b"k": bytes(value)})}))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("size", [1000, 70_000, 1_000_000])
def test_values_of_several_pages(tmp_path: Path, page_size: int, size: int) -> None:
    path = new_db(tmp_path / "db", page_size)
    value = random.Random(size).randbytes(size)
    entries: dict[bytes, bytes | Model] = {b"%d" % i: value[i:] for i in range(6)}
    with updating(path) as tx:
        for key, part in entries.items():
            assert isinstance(part, bytes)
            tx.create_path(b"b").put(key, part)
    assert_holds(path, Model(0, {b"b": Model(0, entries)}))
    with updating(path) as tx:
        for key in list(entries)[1:]:
            open_bucket(tx, b"b").delete(key)
            del entries[key]
    assert_holds(path, Model(0, {b"b": Model(0, entries)}))


def test_the_longest_key(path: Path) -> None:
    keys = [b"%d" % i + b"k" * 32767 for i in range(9)]
    with updating(path) as tx:
        for key in keys:
            tx.create_path(b"b").put(key, b"v")
    assert_holds(path, Model(0, {b"b": Model(0, dict.fromkeys(keys, b"v"))}))
    assert height(path, b"b") > 0


@pytest.mark.parametrize("key", [b"", b"k" * 32769])
def test_keys_of_a_wrong_size_are_refused(path: Path, key: bytes) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        calls: list[Callable[[bytes], object]] = [
            lambda k: bucket.put(k, b"v"),
            bucket.delete,
            bucket.create_bucket,
            bucket.create_bucket_if_not_exists,
            bucket.delete_bucket,
        ]
        for call in calls:
            with pytest.raises(BucketError, match=f"a key of {len(key)} bytes; 1 to 32768 are allowed"):
                call(key)
        assert bucket.get(key) is None
    assert_holds(path, Model(0, {b"b": Model()}))


def test_a_value_that_is_too_large_is_refused(path: Path) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (1 << 31) - 1

    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        with pytest.raises(BucketError, match="a value of 2147483647 bytes is too large"):
            bucket.put(b"k", Huge())


# -- nested buckets


def test_nested_and_inline_buckets(path: Path) -> None:
    model = Model(0, {b"a": Model(0, {b"b": Model(0, {b"c": Model(0, {b"k": b"v"}), b"x": Model()}), b"k": b"w"})})
    with updating(path) as tx:
        tx.create_path(b"a", b"b", b"c").put(b"k", b"v")
        tx.create_path(b"a", b"b", b"x")
        open_bucket(tx, b"a").put(b"k", b"w")
        assert bucket_contents(tx.root) == model
    assert_holds(path, model)
    assert stored_value(path, b"a", b"b", b"c").root == 0
    assert stored_value(path, b"a", b"b", b"x").root == 0
    # A bucket with a bucket in it is never inline.
    assert stored_value(path, b"a", b"b").root != 0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_bucket_is_inline_up_to_a_quarter_of_a_page(tmp_path: Path, page_size: int) -> None:
    path = new_db(tmp_path / "db", page_size)
    room = page_size // 4 - 16 - 16 - 1  # page header, one element, a key of one byte
    with updating(path) as tx:
        tx.create_path(b"fits").put(b"k", b"v" * room)
        tx.create_path(b"does not").put(b"k", b"v" * (room + 1))
    assert stored_value(path, b"fits").root == 0
    assert stored_value(path, b"does not").root != 0
    with updating(path) as tx:
        open_bucket(tx, b"fits").put(b"k", b"v" * (room + 1))
        open_bucket(tx, b"does not").put(b"k", b"v" * room)
    assert stored_value(path, b"fits").root != 0
    assert stored_value(path, b"does not").root == 0
    assert_sound(path)


def test_get_does_not_see_buckets_and_bucket_does_not_see_values(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_path(b"b")
        bucket.create_bucket(b"bucket")
        bucket.put(b"key", b"v")
        assert bucket.get(b"bucket") is None
        assert b"bucket" in bucket
        assert bucket.bucket(b"key") is None
        assert bucket.bucket(b"missing") is None
        assert tx.path_bucket(b"b", b"key", b"deeper") is None
        assert tx.path_bucket() is tx.root


@pytest.mark.parametrize("committed", [False, True])
def test_what_is_a_bucket_stays_one(path: Path, committed: bool) -> None:
    def attempts(tx: Tx) -> None:
        bucket = tx.create_path(b"b")
        with pytest.raises(BucketError, match="key b'bucket' is a bucket"):
            bucket.put(b"bucket", b"v")
        with pytest.raises(BucketError, match="key b'bucket' is a bucket"):
            bucket.delete(b"bucket")
        with pytest.raises(BucketError, match="bucket b'bucket' already exists"):
            bucket.create_bucket(b"bucket")
        with pytest.raises(BucketError, match="key b'key' already exists"):
            bucket.create_bucket(b"key")
        with pytest.raises(BucketError, match="key b'key' already exists"):
            bucket.create_bucket_if_not_exists(b"key")
        with pytest.raises(BucketError, match="no bucket b'key'"):
            bucket.delete_bucket(b"key")
        with pytest.raises(BucketError, match="no bucket b'missing'"):
            bucket.delete_bucket(b"missing")

    with updating(path) as tx:
        tx.create_path(b"b", b"bucket").put(b"in it", b"v")
        tx.create_path(b"b").put(b"key", b"v")
        if not committed:
            attempts(tx)
    with updating(path) as tx:
        attempts(tx)
    assert_holds(path, Model(0, {b"b": Model(0, {b"bucket": Model(0, {b"in it": b"v"}), b"key": b"v"})}))


def test_delete_bucket_frees_all_its_pages(path: Path) -> None:
    fill(path, 2000)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        for i in range(20):
            below = bucket.create_bucket(b"below %d" % i).create_bucket(b"further")
            for k in range(100):
                below.put(b"%d" % k, b"v" * 100)
    used = read_meta(path).high_water_mark
    with updating(path) as tx:
        tx.delete_bucket(b"b")
    assert_holds(path, Model())
    fill(path, 2000)
    assert_sound(path)
    assert read_meta(path).high_water_mark <= used + 2


def test_delete_and_create_again_in_one_transaction(path: Path) -> None:
    fill(path, 1000)
    with updating(path) as tx:
        tx.delete_bucket(b"b")
        assert tx.bucket(b"b") is None
        assert b"b" not in tx.root
        bucket = tx.create_bucket(b"b")
        assert list(bucket.items()) == []
        assert bucket.sequence == 0
        bucket.put(b"k", b"v")
    assert_holds(path, Model(0, {b"b": Model(0, {b"k": b"v"})}))


def test_delete_a_bucket_that_was_changed_or_created_in_the_transaction(path: Path) -> None:
    fill(path, 1000)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        bucket.put(b"more", b"v")
        bucket.create_bucket(b"nested").create_bucket(b"further").put(b"k", b"v")
        tx.delete_bucket(b"b")
        tx.create_bucket(b"new").put(b"k", b"v" * 5000)
        tx.delete_bucket(b"new")
    assert_holds(path, Model())


# -- sequences


def test_sequences_of_new_buckets(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        assert bucket.sequence == 0
        assert bucket.next_sequence() == 1
        assert bucket.next_sequence() == 2
        tx.create_bucket(b"max").set_sequence((1 << 64) - 1)
    assert_holds(path, Model(0, {b"b": Model(2), b"max": Model((1 << 64) - 1)}))


@pytest.mark.parametrize("keys", [1, 10, 1000], ids=["inline", "one leaf", "branches"])
def test_the_sequence_of_a_bucket_that_is_not_touched_otherwise(path: Path, keys: int) -> None:
    fill(path, keys, value=b"v" * 100)
    root = stored_value(path, b"b").root
    assert bool(root) == (keys > 1)
    with updating(path) as tx:
        open_bucket(tx, b"b").set_sequence(77)
    assert_sound(path)
    with viewing(path) as tx:
        bucket = open_bucket(tx, b"b")
        assert bucket.sequence == 77
        assert len(list(bucket.items())) == keys
    assert stored_value(path, b"b").root == root  # its pages are not written again
    with updating(path) as tx:
        open_bucket(tx, b"b").put(b"k", b"v")
    with viewing(path) as tx:
        assert open_bucket(tx, b"b").sequence == 77


def test_the_sequence_of_the_root_bucket(path: Path) -> None:
    with updating(path) as tx:
        tx.root.set_sequence(5)
    with viewing(path) as tx:
        assert tx.root.sequence == 5
    assert_sound(path)


def test_the_sequence_of_an_inline_bucket_larger_than_bbolt_makes_them(tmp_path: Path) -> None:
    value = encode_inline([b"k"], [b"v" * 600], 1)
    path = craft(tmp_path / "db", {2: leaf(2, {b"b": value})}, root=2, end=3)
    with updating(path) as tx:
        open_bucket(tx, b"b").set_sequence(2)
    assert_holds(path, Model(0, {b"b": Model(2, {b"k": b"v" * 600})}))


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_sequence_that_does_not_fit_is_refused(path: Path, value: int) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        with pytest.raises(BucketError, match="does not fit into 64 bits"):
            bucket.set_sequence(value)
        bucket.set_sequence((1 << 64) - 1)
        with pytest.raises(BucketError, match="does not fit into 64 bits"):
            bucket.next_sequence()
    assert_holds(path, Model(0, {b"b": Model((1 << 64) - 1)}))


# -- handles and transactions that are over


def calls_on(bucket: Bucket) -> list[Callable[[], object]]:
    return [
        lambda: bucket.get(b"k"),
        lambda: b"k" in bucket,
        lambda: bucket.bucket(b"nested"),
        lambda: bucket.put(b"k", b"v"),
        lambda: bucket.delete(b"k"),
        lambda: bucket.create_bucket(b"new"),
        lambda: bucket.create_bucket_if_not_exists(b"nested"),
        lambda: bucket.delete_bucket(b"nested"),
        lambda: bucket.spill_child(b"nested"),
        lambda: bucket.set_sequence(1),
        bucket.next_sequence,
        bucket.cursor,
        lambda: list(bucket.items()),
        lambda: bucket.sequence,
    ]


@pytest.mark.parametrize("how", ["deleted", "spilled"])
@pytest.mark.parametrize("level", [1, 2])
def test_handles_to_a_deleted_or_spilled_bucket(path: Path, how: str, level: int) -> None:
    """Also those to the buckets inside it: what they were told would be lost."""
    with updating(path) as tx:
        tx.create_path(b"b", b"in", b"nested").put(b"k", b"v")
        stale = open_bucket(tx, *[b"b", b"in"][:level])
        cursor = stale.cursor()
        cursor.first()
        if how == "deleted":
            tx.delete_bucket(b"b")
        else:
            tx.root.spill_child(b"b")
        more: list[Callable[[], object]] = [cursor.first, cursor.next, cursor.prev, cursor.last, lambda: cursor.seek(b"k")]
        for call in calls_on(stale) + more:
            with pytest.raises(BucketError, match="the bucket was deleted or spilled"):
                call()
    expected = (
        Model() if how == "deleted" else Model(0, {b"b": Model(0, {b"in": Model(0, {b"nested": Model(0, {b"k": b"v"})})})})
    )
    assert_holds(path, expected)


def test_everything_raises_after_the_end_of_the_transaction(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_path(b"b")
        bucket.create_bucket(b"nested")
        bucket.put(b"k", b"v")
        cursor = bucket.cursor()
        cursor.first()
    assert_sound(path)
    before = path.read_bytes()
    more: list[Callable[[], object]] = [
        cursor.first,
        cursor.last,
        cursor.next,
        cursor.prev,
        lambda: cursor.seek(b"k"),
        lambda: tx.bucket(b"b"),
        lambda: tx.path_bucket(b"b"),
        lambda: tx.create_bucket(b"x"),
        lambda: tx.create_path(b"b"),
        lambda: tx.delete_bucket(b"b"),
    ]
    for call in calls_on(bucket) + more:
        with pytest.raises(BucketError, match="the transaction has ended"):
            call()
    assert path.read_bytes() == before


def test_a_read_transaction_refuses_to_write(path: Path) -> None:
    with updating(path) as tx:
        tx.create_path(b"b", b"nested").put(b"k", b"v")
    with viewing(path) as tx:
        bucket = open_bucket(tx, b"b")
        calls: list[Callable[[], object]] = [
            lambda: bucket.put(b"k", b"v"),
            lambda: bucket.delete(b"k"),
            lambda: bucket.create_bucket(b"new"),
            lambda: bucket.delete_bucket(b"nested"),
            lambda: bucket.spill_child(b"nested"),
            lambda: bucket.set_sequence(1),
            bucket.next_sequence,
            lambda: tx.create_bucket(b"x"),
            lambda: tx.delete_bucket(b"b"),
        ]
        for call in calls:
            with pytest.raises(BucketError, match="the transaction is read-only"):
                call()
        assert tx.create_path(b"b", b"nested").get(b"k") == b"v"  # nothing to create


# -- commit and rollback


def test_an_exception_rolls_back(path: Path) -> None:
    fill(path, 3000)
    before = path.read_bytes()

    def change_and_fail(tx: Tx) -> None:
        open_bucket(tx, b"b").put(b"k", b"v")
        tx.create_bucket(b"c")
        tx.delete_bucket(b"b")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), updating(path) as tx:
        change_and_fail(tx)
    assert path.read_bytes() == before


def test_rollback_after_pages_were_written(path: Path) -> None:
    """Spilled pages stand in the file already, in places that the committed state does not use."""
    fill(path, 3000)
    model, size = contents(path), path.stat().st_size

    def spill_and_fail(tx: Tx) -> None:
        for i in range(3000):
            tx.create_path(b"c").put(b"%d" % i, b"v" * 100)
        tx.root.spill_child(b"c")
        open_bucket(tx, b"c").get(b"1")
        raise ZeroDivisionError

    with Db.open(path, writable=True) as db:
        with pytest.raises(ZeroDivisionError), db.update() as tx:
            spill_and_fail(tx)
        assert path.stat().st_size == size
        with db.view() as tx:
            assert bucket_contents(tx.root) == model
        with db.update() as tx:
            tx.create_path(b"c").put(b"k", b"v")
    model.entries[b"c"] = Model(0, {b"k": b"v"})
    assert_holds(path, model)


def test_a_transaction_that_changes_nothing_writes_nothing(path: Path) -> None:
    fill(path, 100)
    before = path.read_bytes()
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        list(bucket.items())
        bucket.delete(b"missing")
        bucket.set_sequence(bucket.sequence)
        tx.root.spill_child(b"b")
        tx.root.spill_child(b"missing")
    assert path.read_bytes() == before


def test_pages_are_used_again(path: Path) -> None:
    fill(path, 3000)
    for i in range(20):
        with updating(path) as tx:
            open_bucket(tx, b"b").put(b"k00001", b"%d" % i)
    size = read_meta(path).high_water_mark
    for i in range(20):
        with updating(path) as tx:
            open_bucket(tx, b"b").put(b"k00001", b"%d" % i)
    assert read_meta(path).high_water_mark == size
    assert_sound(path)


def test_the_committed_state_is_not_overwritten_before_the_commit(path: Path) -> None:
    """Nothing but free pages is written until the meta page is."""
    fill(path, 2000)
    for i in range(3):
        with updating(path) as tx:
            open_bucket(tx, b"b").put(b"k00%03d" % i, b"w")
    before, meta = path.read_bytes(), read_meta(path)
    with updating(path) as tx:
        for i in range(0, 2000, 3):
            open_bucket(tx, b"b").put(b"k%05d" % i, b"x" * 60)
    image = bytearray(path.read_bytes())
    old_slot = (meta.txid + 1) % 2 * meta.page_size
    image[old_slot : old_slot + meta.page_size] = before[old_slot : old_slot + meta.page_size]
    copy = path.with_name("copy")
    copy.write_bytes(image)
    assert_sound(copy)
    original = path.with_name("original")
    original.write_bytes(before)
    assert contents(copy) == contents(original)


def test_several_transactions_on_one_database(path: Path) -> None:
    with Db.open(path, writable=True) as db:
        for i in range(10):
            with db.update() as tx:
                tx.create_path(b"b").put(b"%d" % i, b"v" * 1000)
            with db.view() as tx, db.view() as other:
                assert len(list(open_bucket(tx, b"b").items())) == i + 1
                assert len(list(open_bucket(other, b"b").items())) == i + 1
    assert_sound(path)


def test_only_one_transaction_while_one_writes(path: Path) -> None:
    with Db.open(path, writable=True) as db:
        with db.update() as tx:
            for begin in (db.update, db.view):
                with pytest.raises(BucketError, match="another transaction is open"), begin():
                    pass
            tx.create_bucket(b"b")
        with db.view(), pytest.raises(BucketError, match="another transaction is open"), db.update():
            pass
        with db.update() as tx:
            tx.delete_bucket(b"b")
    assert_holds(path, Model())


# -- trees


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_splitting_through_several_levels(tmp_path: Path, page_size: int, order: str) -> None:
    path = new_db(tmp_path / "db", page_size)
    keys = [b"%06d" % i + b"." * (page_size // 8) for i in range(700)]
    ordered = {"ascending": keys, "descending": keys[::-1], "random": random.Random(1).sample(keys, len(keys))}[order]
    with updating(path) as tx:
        for key in ordered:
            tx.create_path(b"b").put(key, b"v")
    assert height(path, b"b") >= 3
    assert_holds(path, Model(0, {b"b": Model(0, dict.fromkeys(keys, b"v"))}))


@pytest.mark.parametrize("fill_percent", [0.0, 0.1, 0.5, 1.0, 7.0])
def test_fill_percent(tmp_path: Path, fill_percent: float) -> None:
    path = new_db(tmp_path / "db", 1024)
    with updating(path, fill_percent=fill_percent) as tx:
        for i in range(1000):
            tx.create_path(b"b").put(b"%06d" % i, b"v" * 20)
    assert_sound(path)
    leaves = max(len(tree.leaf_depths) for tree in trees(path))
    used = 1000 * 42 / leaves / 1024  # 16 for the element, 6 for the key, 20 for the value
    assert used == pytest.approx(min(max(fill_percent, 0.1), 1.0), abs=0.06)


def test_more_keys_than_an_in_memory_node_takes(path: Path) -> None:
    """Nodes are split in memory above 512 keys; the branches above them too."""
    keys = [b"%07d" % (i * 7919 % 100003) for i in range(40000)]
    with updating(path) as tx:
        bucket = tx.create_path(b"b")
        for key in keys:
            bucket.put(key, b"")
        assert [k for k, _ in bucket.items()] == sorted(keys)
    assert_sound(path)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        for key in keys[:39990]:
            bucket.delete(key)
        assert [k for k, _ in bucket.items()] == sorted(keys[39990:])
    assert_sound(path)
    assert height(path, b"b") == 0


def test_deleting_everything_leaves_an_empty_bucket(tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", 1024), 2000)
    assert height(path, b"b") >= 2
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        for i in range(2000):
            bucket.delete(b"k%05d" % i)
        assert list(bucket.items()) == []
        assert bucket.get(b"k00000") is None
    assert_holds(path, Model(0, {b"b": Model()}))
    with updating(path) as tx:
        tx.delete_bucket(b"b")
    assert_holds(path, Model())


def test_a_key_below_all_others(tmp_path: Path) -> None:
    """It belongs to the first leaf although it is below that leaf's branch key."""
    path = fill(new_db(tmp_path / "db", 1024), 2000)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        bucket.put(b"a", b"v")
        assert bucket.get(b"a") == b"v"
        assert next(bucket.items()) == (b"a", b"v")
        bucket.put(b"A", b"v")
    assert_sound(path)
    with viewing(path) as tx:
        assert [k for k, _ in open_bucket(tx, b"b").items()][:3] == [b"A", b"a", b"k00000"]


def test_emptying_the_only_leaf_of_a_branch(tmp_path: Path) -> None:
    """bbolt writes no branch with a single child, but a file may have one."""
    path = craft(
        tmp_path / "db",
        {
            2: leaf(2, {b"b": BucketValue((3).to_bytes(8, "little") + bytes(8))}),
            3: branch(3, {b"a": 4, b"m": 5}),
            4: branch(4, {b"a": 6}),
            5: branch(5, {b"m": 7}),
            6: leaf(6, {b"a": b"v" * 600}),
            7: leaf(7, {b"m": b"v" * 600}),
        },
        root=2,
        end=8,
    )
    with updating(path) as tx:
        open_bucket(tx, b"b").delete(b"a")
    assert_holds(path, Model(0, {b"b": Model(0, {b"m": b"v" * 600})}))


def test_leaves_of_different_depth_are_not_merged(tmp_path: Path) -> None:
    """check lets such a file pass, as bbolt's does; joining a leaf with a branch would destroy it."""
    path = craft(
        tmp_path / "db",
        {
            2: leaf(2, {b"b": BucketValue((3).to_bytes(8, "little") + bytes(8))}),
            3: branch(3, {b"a": 4, b"m": 5}),
            4: leaf(4, {b"a": b"v"}),
            5: branch(5, {b"m": 6, b"n": 7}),
            6: leaf(6, {b"m": b"v"}),
            7: leaf(7, {b"n": b"v"}),
        },
        root=2,
        end=8,
    )
    before = path.read_bytes()
    with pytest.raises(CorruptDatabaseError, match="the leaves of a tree are not equally deep"), updating(path) as tx:
        open_bucket(tx, b"b").delete(b"a")
    assert path.read_bytes() == before


# -- values as they are stored


def test_a_value_as_it_is_stored(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        bucket.put(b"k", b"v")
        bucket.create_bucket(b"inline").put(b"k", b"v")
        bucket.create_bucket(b"rooted").put(b"k", b"v" * 2000)
        assert bucket.value(b"k") == b"v"
        assert bucket.value(b"missing") is None
        # An open handle is stored, and ends.
        assert bucket.value(b"inline") == encode_inline([b"k"], [b"v"], 0)
        assert isinstance(bucket.value(b"inline"), BucketValue)
        rooted = bucket.value(b"rooted")
        assert isinstance(rooted, BucketValue)
        assert rooted.root
        open_bucket(tx, b"b", b"rooted").set_sequence(7)
        changed = bucket.value(b"rooted")
        assert isinstance(changed, BucketValue)
        assert changed.sequence == 7
    with viewing(path) as tx:
        entries = dict(open_bucket(tx, b"b").entries())
        assert entries == {name: open_bucket(tx, b"b").value(name) for name in (b"inline", b"k", b"rooted")}
        assert [type(value) for value in entries.values()] == [BucketValue, bytes, BucketValue]


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_entries_are_those_that_cursors_find(path: Path, count: int) -> None:
    fill(path, count)
    with viewing(path) as tx:
        assert list(open_bucket(tx, b"b").entries()) == list(open_bucket(tx, b"b").items())
        assert [key for key, _ in tx.root.entries()] == [b"b"]


def test_entries_of_a_transaction_that_writes_or_ends(path: Path) -> None:
    fill(path, 5000)
    with updating(path) as tx, pytest.raises(BucketError, match="for read transactions"):
        next(open_bucket(tx, b"b").entries())
    with viewing(path) as tx:
        entries = open_bucket(tx, b"b").entries()
        next(entries)
    with pytest.raises(BucketError, match="the transaction has ended"):
        list(entries)


def test_finding_and_replacing(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        leaf, at = bucket.find(b"n")
        assert at is None
        assert bucket.replace(b"n", encode_inline([b"k"], [b"v"], 0)) is leaf
        found, at = bucket.find(b"n")
        assert (found, at) == (leaf, 0)
        bucket.replace(b"n", encode_inline([b"k"], [b"w"], 0))
        with pytest.raises(BucketError, match="a key of 0 bytes"):
            bucket.replace(b"", encode_inline([], [], 0))
    assert_holds(path, Model(0, {b"b": Model(0, {b"n": Model(0, {b"k": b"w"})})}))


# -- settling


def nodes_in_memory(bucket: Bucket) -> int:
    """Leaves that a bucket holds on to."""
    found, todo = 0, [bucket.root_node()]
    while todo:
        node = todo.pop()
        found += node.leaf
        todo += [] if node.leaf else [child for child in node.children if not isinstance(child, int)]
    return found


def test_a_settled_leaf_is_changed_again_and_deleted(tmp_path: Path) -> None:
    """All in one transaction, and no page is lost or freed twice."""
    path = fill(new_db(tmp_path / "db", 1024), 500)
    left = dict.fromkeys((b"k%05d" % i for i in range(500)), b"v" * 40)
    for change in (b"x" * 41, b"y" * 20, b"z" * 300, None, b"", None):
        with updating(path) as tx:
            bucket = open_bucket(tx, b"b")
            for key in sorted(left)[100:140]:
                for value in (b"first", change):
                    if value is None:
                        bucket.delete(key)
                        left.pop(key)
                    else:
                        bucket.put(key, value)
                        left[key] = value
                    bucket.settle(key)
                    assert dict(bucket.items()) == left
        assert_holds(path, Model(0, {b"b": Model(0, dict(left))}))


def test_settling_drops_leaves_that_have_changed(tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", 1024), 500)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        bucket.settle(b"k00250")
        assert nodes_in_memory(bucket) == 0, "what has not changed is not read"
        bucket.put(b"k00250", b"new")
        bucket.put(b"k00450", b"new")
        assert nodes_in_memory(bucket) == 2
        bucket.settle(b"k00250")
        assert nodes_in_memory(bucket) == 1
        bucket.delete(b"k00450")
        bucket.settle(b"k00450")
        assert nodes_in_memory(bucket) == 1, "it may have to be merged"
        bucket.settle(b"k00450")
    left = dict.fromkeys((b"k%05d" % i for i in range(500)), b"v" * 40) | {b"k00250": b"new"}
    del left[b"k00450"]
    assert_holds(path, Model(0, {b"b": Model(0, dict(left))}))


def test_settling_the_only_leaf_is_left_to_the_commit(path: Path) -> None:
    with updating(path) as tx:
        bucket = tx.create_bucket(b"b")
        bucket.settle(b"k")
        bucket.put(b"k", b"v")
        bucket.settle(b"k")
        assert bucket.root_node().dirty
    assert_holds(path, Model(0, {b"b": Model(0, {b"k": b"v"})}))


def test_settling_a_leaf_with_open_buckets_in_it(tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", 1024), 500)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        child = bucket.create_bucket(b"k00250 child")
        bucket.settle(b"k00250")
        child.put(b"k", b"v" * 900)
        bucket.settle(b"k00250")
        child.put(b"l", b"v")
    expected: dict[bytes, bytes | Model] = dict.fromkeys((b"k%05d" % i for i in range(500)), b"v" * 40)
    expected[b"k00250 child"] = Model(0, {b"k": b"v" * 900, b"l": b"v"})
    assert_holds(path, Model(0, {b"b": Model(0, expected)}))


def test_a_cursor_goes_on_in_a_settled_leaf(tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", 1024), 500)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        seen = []
        for key, _ in bucket.items():
            seen.append(key)
            bucket.put(key, b"w" * 60)
            bucket.settle(key)
        assert seen == [b"k%05d" % i for i in range(500)]
        assert nodes_in_memory(bucket) == 0
    assert_holds(path, Model(0, {b"b": Model(0, dict.fromkeys(seen, b"w" * 60))}))


def test_a_cursor_goes_on_where_a_settled_leaf_became_two(tmp_path: Path) -> None:
    path = fill(new_db(tmp_path / "db", 1024), 500)
    keys = [b"k%05d" % i for i in range(500)]
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        for key in keys[245:255]:
            bucket.put(key, b"w" * 150)
        cursor = bucket.cursor()
        assert cursor.seek(keys[250]) is not None
        bucket.settle(keys[250])
        assert [item[0] for item in iter(cursor.next, None)] == keys[251:]
        bucket.settle(keys[250])
        assert [item[0] for item in iter(cursor.prev, None)] == keys[498::-1]


def test_settling_a_leaf_with_a_new_first_key(tmp_path: Path) -> None:
    """Below all others: the branch above has to know."""
    path = fill(new_db(tmp_path / "db", 1024), 500)
    with updating(path) as tx:
        bucket = open_bucket(tx, b"b")
        for key in (b"b", b"a"):
            bucket.put(key, b"first")
            bucket.settle(key)
            assert bucket.cursor().first() == (key, b"first")
            assert bucket.get(key) == b"first"
    left = dict.fromkeys((b"k%05d" % i for i in range(500)), b"v" * 40) | {b"a": b"first", b"b": b"first"}
    assert_holds(path, Model(0, {b"b": Model(0, dict(left))}))


def test_settling_that_fails_ends_the_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(new_db(tmp_path / "db", 1024), 500)
    before = path.read_bytes()

    def fail_and_go_on(tx: Tx) -> None:
        bucket = open_bucket(tx, b"b")
        bucket.put(b"k00250", b"new")
        with monkeypatch.context() as patch:
            patch.setattr(PageWriter, "put", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                bucket.settle(b"k00250")

    with pytest.raises(BucketError, match="the transaction has ended"), updating(path) as tx:
        fail_and_go_on(tx)
    assert path.read_bytes() == before


# -- spilling


def test_a_spilled_bucket_can_be_opened_and_changed_again(path: Path) -> None:
    model = Model()
    with updating(path) as tx:
        for turn in range(4):
            for i in range(turn, 3000, 4):
                tx.create_path(b"b").put(b"%05d" % i, b"v" * 50)
                model.create((b"b",)).entries[b"%05d" % i] = b"v" * 50
            tx.root.spill_child(b"b")
            assert bucket_contents(tx.root) == model
    assert_holds(path, model)


def test_pages_written_after_a_spilled_one_was_read_back(path: Path) -> None:
    """Reading flushes the write buffer; the page that is written next follows directly behind, but in a new buffer."""
    with updating(path) as tx:
        for name in (b"a", b"b", b"c"):
            tx.create_path(name).put(b"k", name * 3000)
            tx.root.spill_child(name)
            assert open_bucket(tx, name).get(b"k") == name * 3000
    assert_holds(path, Model(0, {name: Model(0, {b"k": name * 3000}) for name in (b"a", b"b", b"c")}))


@pytest.mark.parametrize("freelist", [True, False])
def test_spilling_onto_free_pages(tmp_path: Path, freelist: bool) -> None:
    path = new_db(tmp_path / "db", freelist=freelist)
    fill(path, 20000)
    fill(path, 3000, name=b"other")
    with updating(path) as tx:
        tx.delete_bucket(b"b")
    size = read_meta(path).high_water_mark
    with updating(path) as tx:
        for i in range(200):
            bucket = tx.create_path(b"parent", b"%03d" % i)
            bucket.create_bucket(b"nested").put(b"k", b"v" * (i % 50))
            open_bucket(tx, b"parent").spill_child(b"%03d" % i)
            again = open_bucket(tx, b"parent", b"%03d" % i, b"nested")
            assert again.get(b"k") == b"v" * (i % 50)
            if i % 3 == 0:
                again.put(b"more", b"")
    assert read_meta(path).high_water_mark < size + 150  # 400 and more pages were needed
    assert_sound(path)
    with viewing(path) as tx:
        nested = {k: bucket_contents(open_bucket(tx, b"parent", k, b"nested")) for k, _ in open_bucket(tx, b"parent").items()}
    for i in range(200):
        assert nested[b"%03d" % i].entries == {b"k": b"v" * (i % 50)} | ({b"more": b""} if i % 3 == 0 else {})
    assert len(nested) == 200


def test_a_spilled_bucket_can_be_deleted(path: Path) -> None:
    fill(path, 1000)
    with updating(path) as tx:
        open_bucket(tx, b"b").put(b"k", b"v")
        tx.create_path(b"new", b"nested").put(b"k", b"v" * 5000)
        tx.root.spill_child(b"b")
        tx.root.spill_child(b"new")
        tx.delete_bucket(b"b")
        tx.delete_bucket(b"new")
        assert list(tx.root.items()) == []
    assert_holds(path, Model())


def test_a_spill_that_fails_ends_the_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that goes on all the same must not commit a bucket of which only a part was written."""
    fill(path, 100)
    model = contents(path)

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def fail_and_go_on(tx: Tx) -> None:
        for i in range(5000):
            tx.create_path(b"c").put(b"%05d" % i, b"v" * 1000)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", no_space)
            with pytest.raises(DatabaseError, match="No space left on device"):
                tx.root.spill_child(b"c")

    with pytest.raises(BucketError, match="the transaction has ended"), updating(path) as tx:
        fail_and_go_on(tx)
    assert_holds(path, model)


def test_a_deletion_that_fails_ends_the_transaction(tmp_path: Path) -> None:
    """Half of the bucket's pages are freed by then."""
    damaged = encode_page(4, LEAF, 1, encode_leaf([b"k"], [b"v"])[:-2], 1024)
    damaged = damaged[:30] + b"\xff\xff" + damaged[32:]
    nested = BucketValue((4).to_bytes(8, "little") + bytes(8))
    bucket = BucketValue((3).to_bytes(8, "little") + bytes(8))
    assert len(bucket) == BUCKET_HEADER_SIZE
    path = craft(
        tmp_path / "db",
        {2: leaf(2, {b"b": bucket}), 3: leaf(3, {b"nested": nested}), 4: damaged},
        root=2,
        end=5,
    )

    def fail_and_go_on(tx: Tx) -> None:
        with pytest.raises(CorruptDatabaseError, match="page 4"):
            tx.delete_bucket(b"b")
        tx.create_bucket(b"c")

    # Without a freelist everything is walked before a write, and refused.
    with pytest.raises(CorruptDatabaseError, match="page 4"), updating(path):
        pass
    with Db.open(path, writable=True) as db:
        db._free = []
        with pytest.raises(BucketError, match="the transaction has ended"), db.update() as tx:
            fail_and_go_on(tx)
