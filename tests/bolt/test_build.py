"""Building files and buckets in bulk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asyncmig.bolt import BucketBuilder, BucketValue, Db, build_bucket, build_file
from asyncmig.bolt.build import Fill
from asyncmig.errors import BucketError, DatabaseError
from tests.bolt.helpers import (
    PAGE_SIZES,
    Model,
    assert_holds,
    assert_sound,
    contents,
    height,
    new_db,
    read_meta,
    trees,
    updating,
)


def build(path: Path, buckets: dict[bytes, Fill], page_size: int = 4096) -> Path:
    with open(path, "wb") as file:
        build_file(file.fileno(), str(path), buckets, page_size=page_size)
    return path


def fill_from(model: Model) -> Fill:
    """A function that builds what the model holds."""

    def fill(builder: BucketBuilder) -> None:
        for key, value in sorted(model.entries.items()):
            if isinstance(value, Model):
                child = builder.child(value.sequence)
                fill_from(value)(child)
                builder.put(key, child.finish())
            else:
                builder.put(key, value)

    return fill


def test_no_buckets(tmp_path: Path) -> None:
    path = build(tmp_path / "db", {})
    assert_holds(path, Model())
    assert read_meta(path).txid == 1


def test_buckets_come_out_sorted(tmp_path: Path) -> None:
    path = build(tmp_path / "db", {b"b": lambda _: None, b"a": lambda builder: builder.put(b"k", b"v")})
    assert_holds(path, Model(0, {b"a": Model(0, {b"k": b"v"}), b"b": Model()}))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("count", [0, 1, 5, 100, 20000])
def test_one_large_bucket(tmp_path: Path, page_size: int, count: int) -> None:
    model = Model(0, {b"b": Model(0, {b"%06d" % i: b"v" * (i % 60) for i in range(count)})})
    path = build(tmp_path / "db", {k: fill_from(v) for k, v in model.entries.items() if isinstance(v, Model)}, page_size)
    assert_holds(path, model)
    assert path.stat().st_size == read_meta(path).high_water_mark * page_size


def test_pages_are_filled(tmp_path: Path) -> None:
    def fill(builder: BucketBuilder) -> None:
        for i in range(10000):
            builder.put(b"%06d" % i, b"v" * 18)

    path = build(tmp_path / "db", {b"b": fill})
    leaves = max(len(tree.leaf_depths) for tree in trees(path))
    assert leaves == -(-10000 // ((4096 - 16) // 40))
    assert height(path, b"b") == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_content(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    page_size = rng.choice(PAGE_SIZES)

    def random_bucket(depth: int) -> Model:
        model = Model(rng.choice([0, 0, 5]))
        for i in range(rng.choice([0, 1, 5, 30, 300])):
            key = b"%04d" % i + b"." * rng.choice([0, 10, 200])
            if depth and rng.random() < 0.1:
                model.entries[key] = random_bucket(depth - 1)
            else:
                model.entries[key] = rng.randbytes(rng.choice([0, 5, 50, 300]) if rng.random() < 0.99 else 100_000)
        return model

    model = Model(0, {b"%d" % i: random_bucket(2) for i in range(3)})
    buckets = {k: fill_from(v) for k, v in model.entries.items() if isinstance(v, Model)}
    for value in model.entries.values():
        assert isinstance(value, Model)
        value.sequence = 0  # that of a top-level bucket cannot be given
    path = build(tmp_path / "db", buckets, page_size)
    assert_holds(path, model)
    # And it can be edited: here by deleting most of it, key by key.
    with updating(path) as tx:
        for name, value in model.entries.items():
            bucket = tx.bucket(name)
            assert bucket is not None
            assert isinstance(value, Model)
            for key in sorted(value.entries)[1:]:
                if isinstance(value.entries.pop(key), Model):
                    bucket.delete_bucket(key)
                else:
                    bucket.delete(key)
    assert_holds(path, model)


@pytest.mark.parametrize("size", [100, 223, 224, 800, 5000])
def test_inline_as_bbolt_would(tmp_path: Path, size: int) -> None:
    """A leaf of up to a quarter of a page is inline: 16 bytes of header, 16 for the element, 1 for the key."""
    values: list[BucketValue] = []

    def fill(builder: BucketBuilder) -> None:
        values.append(builder.leaf_bucket([b"k"], [b"v" * size], 3))
        child = builder.child(3)
        child.put(b"k", b"v" * size)
        values.append(child.finish())
        builder.put(b"1", values[0])
        builder.put(b"2", values[1])

    path = build(tmp_path / "db", {b"b": fill}, 1024)
    expected = Model(3, {b"k": b"v" * size})
    assert_holds(path, Model(0, {b"b": Model(0, {b"1": expected, b"2": expected})}))
    assert [v.root == 0 for v in values] == [size <= 223] * 2


def test_leaf_bucket_of_several_pages(tmp_path: Path) -> None:
    keys = [b"%05d" % i for i in range(3000)]

    def fill(builder: BucketBuilder) -> None:
        builder.put(b"big", builder.leaf_bucket(keys, [b"v"] * 3000, 1))
        nested = builder.leaf_bucket([b"a", b"b"], [builder.leaf_bucket([b"k"], [b"v"], 0), b"v"], 0)
        assert nested.root != 0  # a bucket with a bucket in it is never inline
        builder.put(b"nested", nested)

    path = build(tmp_path / "db", {b"b": fill}, 1024)
    model = Model(
        0, {b"big": Model(1, dict.fromkeys(keys, b"v")), b"nested": Model(0, {b"a": Model(0, {b"k": b"v"}), b"b": b"v"})}
    )
    assert_holds(path, Model(0, {b"b": model}))
    assert height(path, b"b", b"big") == 2


def test_more_elements_than_a_page_can_count(tmp_path: Path) -> None:
    """Only pages of a megabyte and more have room for 65535 elements."""
    count = 70_000

    def one_by_one(builder: BucketBuilder) -> None:
        for i in range(count):
            builder.put(b"%05d" % i, b"")

    def at_once(builder: BucketBuilder) -> None:
        builder.put(b"in", builder.leaf_bucket([b"%05d" % i for i in range(count)], [b""] * count, 0))

    path = build(tmp_path / "db", {b"a": one_by_one, b"b": at_once}, 1 << 23)
    assert_sound(path)
    model = contents(path)
    expected = Model(0, {b"%05d" % i: b"" for i in range(count)})
    assert model.find((b"a",)) == expected
    assert model.find((b"b", b"in")) == expected


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ([b""], "a key of 0 bytes; 1 to 32768 are allowed"),
        ([b"k" * 32769], "a key of 32769 bytes; 1 to 32768 are allowed"),
        ([b"a", b"a"], "key b'a' does not follow b'a'"),
        ([b"b", b"a"], "key b'a' does not follow b'b'"),
        ([b"b", b""], "a key of 0 bytes"),
    ],
)
def test_keys_that_are_refused(tmp_path: Path, keys: list[bytes], cause: str) -> None:
    def fill(builder: BucketBuilder) -> None:
        for key in keys:
            builder.put(key, b"")

    with pytest.raises(BucketError, match=cause):
        build(tmp_path / "db", {b"b": fill})


def test_order_is_checked_across_pages(tmp_path: Path) -> None:
    def fill(builder: BucketBuilder) -> None:
        builder.put(b"b", b"v" * 5000)
        builder.put(b"c", b"v" * 5000)
        builder.put(b"a", b"")

    with pytest.raises(BucketError, match="does not follow"):
        build(tmp_path / "db", {b"b": fill})


@pytest.mark.parametrize("call", ["pwritev", "ftruncate", "fsync"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"os.{call}", fail)
    with pytest.raises(DatabaseError, match=r"db: cannot .*: No space left on device"):
        build(tmp_path / "db", {b"b": lambda builder: builder.put(b"k", b"v")})


def test_an_error_of_the_filler_is_passed_on(tmp_path: Path) -> None:
    def fill(_: BucketBuilder) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "db", {b"b": fill})


@pytest.mark.parametrize("seed", range(12))
def test_a_bucket_built_within_a_transaction(tmp_path: Path, seed: int) -> None:
    """Built and put buckets side by side, in reused pages too, and changed in the ordinary way afterwards."""
    rng = random.Random(seed)
    path = new_db(tmp_path / "db")
    model = Model()
    for _ in range(4):
        with updating(path, fill_percent=rng.choice((0.5, 1.0))) as tx:
            top = tx.root.create_bucket_if_not_exists(b"top")
            held = model.entries.setdefault(b"top", Model())
            assert isinstance(held, Model)
            for _ in range(rng.randrange(40)):
                name = b"%04d" % rng.randrange(60)
                if name in held.entries:
                    top.delete_bucket(name)
                    del held.entries[name]
                    continue
                inner = Model(0, {b"%d" % i: b"x" * rng.choice((0, 9, 600)) for i in range(rng.randrange(30))})
                made = Model(0, {b"inner": inner, b"plain": b"y"} if rng.random() < 0.5 else dict(inner.entries))
                build_bucket(top, name, fill_from(made))
                held.entries[name] = made
                if rng.random() < 0.3:
                    bucket = top.bucket(name)
                    assert bucket is not None
                    bucket.put(b"zz", b"later")
                    made.entries[b"zz"] = b"later"
        assert_sound(path)
        assert_holds(path, model)


@pytest.mark.parametrize("existing", ["bucket", "key"])
def test_building_over_something_ends_the_transaction(tmp_path: Path, existing: str) -> None:
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        top = tx.create_bucket(b"top")
        if existing == "bucket":
            top.create_bucket(b"a").put(b"k", b"v")
        else:
            top.put(b"a", b"v")
    before = contents(path)
    with pytest.raises(BucketError, match=f"{existing} b'a' already exists"), updating(path) as tx:  # noqa: PT012
        top = tx.root.create_bucket_if_not_exists(b"top")
        build_bucket(top, b"a", lambda builder: builder.put(b"k", b"other" * 1000))
    assert contents(path) == before
    assert_sound(path)


def test_building_in_a_read_transaction_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path / "db", {b"top": lambda _: None})
    with Db.open(path) as db, db.view() as tx, pytest.raises(BucketError, match="read-only"):
        build_bucket(tx.root, b"a", lambda _: None)
