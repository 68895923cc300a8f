"""Nested buckets that are read and written as a whole."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from asyncmig.bolt import (
    BucketValue,
    Contents,
    Db,
    Tx,
    check,
    edit_buckets,
    nested_contents,
    read_contents,
    verify_pages,
    write_contents,
)
from asyncmig.bolt.format import MAX_KEY_SIZE, encode_inline
from asyncmig.bolt.space import PageWriter
from asyncmig.errors import BucketError, CorruptDatabaseError
from tests.bolt.entries import CHANGES, ORDERS, edit_in_file, edit_in_model, in_order, name_of, random_entry, store
from tests.bolt.helpers import (
    Model,
    assert_holds,
    bucket_contents,
    height,
    new_db,
    open_bucket,
    updating,
    viewing,
)
from tests.bolt.test_model import copy_of

PARENT = b"parent"
SEEDS = st.integers(0, 1000)
NUMBERS = st.integers(0, 650)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db", 1024)


def assert_intact(path: Path, model: Model) -> None:
    """The content is the model's, the trees are sound, and no page is lost."""
    assert_holds(path, model)
    with Db.open(path) as db:
        assert db.pages is not None
        verify_pages(db.pages, lost_pages=True)


def stored(tx: Tx, *names: bytes) -> BucketValue:
    """The value of a bucket."""
    found = open_bucket(tx, *names[:-1]).value(names[-1])
    assert isinstance(found, BucketValue)
    return found


# -- random edits against the plain way


class Entries(RuleBasedStateMachine):
    """Entries edited as a whole and one by one, in turns, in one transaction after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "db")

    @initialize(
        page_size=st.sampled_from([1024, 1024, 4096]),
        freelist=st.booleans(),
        count=st.sampled_from([0, 1, 5, 40, 300]),
        seed=SEEDS,
    )
    def start(self, page_size: int, freelist: bool, count: int, seed: int) -> None:
        rng = random.Random(seed)
        new_db(self.path, page_size, freelist=freelist)
        entries = [random_entry(rng) for _ in range(20)]
        self.committed = Model(0, {PARENT: Model(3, {name_of(2 * i): copy_of(rng.choice(entries)) for i in range(count)})})
        with updating(self.path) as tx:
            store(tx.root, self.committed)
        self._begin()

    def _begin(self) -> None:
        self.db = Db.open(self.path, writable=True)
        self.update = self.db.update()
        self.tx = self.update.__enter__()
        self.bucket = open_bucket(self.tx, PARENT)
        self.model = copy_of(self.committed)
        self.entries = self.model.create((PARENT,))

    def _end(self) -> None:
        self.update.__exit__(None, None, None)
        self.db.close()
        self.committed = self.model
        assert_intact(self.path, self.committed)

    def teardown(self) -> None:
        if hasattr(self, "update"):
            self._end()
        self.directory.cleanup()

    @rule()
    def commit(self) -> None:
        self._end()
        self._begin()

    @rule()
    def roll_back(self) -> None:
        self.update.__exit__(RuntimeError, RuntimeError(), None)
        self.db.close()
        assert_intact(self.path, self.committed)
        self._begin()

    @rule(
        seed=SEEDS,
        first=NUMBERS,
        count=st.sampled_from([1, 3, 50, 700]),
        order=st.sampled_from(ORDERS),
        change=st.integers(0, len(CHANGES) - 1),
        make=st.booleans(),
        uniform=st.booleans(),
    )
    def edit(self, seed: int, first: int, count: int, order: str, change: int, make: bool, uniform: bool) -> None:
        numbers = range(first, first + count, 1 if make else 2)
        names = [n for n in map(name_of, numbers) if not isinstance(self.entries.entries.get(n), bytes)]
        names = in_order(random.Random(seed), names, order)
        edit_in_file(self.tx, self.bucket, names, CHANGES[change], make=make, uniform=uniform)
        edit_in_model(self.entries, names, CHANGES[change], make=make)

    @rule(number=NUMBERS)
    def put_plainly(self, number: int) -> None:
        name = name_of(number)
        if not isinstance(self.entries.entries.get(name), Model):
            self.bucket.put(name, b"no entry")
            self.entries.entries[name] = b"no entry"

    @rule(number=NUMBERS, count=st.sampled_from([1, 20]))
    def put_into_entries(self, number: int, count: int) -> None:
        for name in map(name_of, range(number, number + count)):
            entry = self.entries.entries.get(name)
            if isinstance(entry, Model):
                bucket = self.bucket.bucket(name)
                assert bucket is not None
                bucket.put(b"put", b"x" * number)
                entry.entries[b"put"] = b"x" * number

    @rule(number=NUMBERS, count=st.sampled_from([1, 60, 400]))
    def delete(self, number: int, count: int) -> None:
        for name in map(name_of, range(number, number + count)):
            found = self.entries.entries.pop(name, None)
            if isinstance(found, Model):
                self.bucket.delete_bucket(name)
            elif found is not None:
                self.bucket.delete(name)

    @rule(number=NUMBERS)
    def settle(self, number: int) -> None:
        cursor = self.bucket.cursor()
        cursor.seek(name_of(number))
        here = cursor._key
        self.bucket.settle(name_of(number))
        item = cursor.next()
        rest = [k for k in sorted(self.entries.entries) if here is None or k > here]
        assert (item and item[0]) == (rest[0] if rest else None)

    @rule()
    def compare(self) -> None:
        assert bucket_contents(self.bucket) == self.entries


TestEntries = Entries.TestCase
TestEntries.settings = settings(max_examples=40, stateful_step_count=12)


# -- reading and writing


SHAPES = {
    "empty": Model(),
    "inline": Model(9, {b"k": b"v"}),
    "one page": Model(0, {b"k%d" % i: b"v" * 50 for i in range(8)}),
    "nested": Model(1, {b"k": b"v", b"labels": Model(2, {b"l": b"v"}), b"rooted": Model(0, {b"l": b"v" * 900})}),
    "overflow": Model(0, {b"k": b"v" * 5000, b"l": b""}),
    "tree": Model(4, {b"k%03d" % i: b"v" * 50 for i in range(200)}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_contents_are_what_the_bucket_holds(path: Path, shape: str) -> None:
    model = Model(0, {PARENT: Model(0, {b"e": SHAPES[shape]})})
    with updating(path) as tx:
        store(tx.root, model)
    with viewing(path) as tx:
        found = read_contents(tx, stored(tx, PARENT, b"e"))
        entry = open_bucket(tx, PARENT, b"e")
        assert {k: None if type(v) is BucketValue else v for k, v in found.items()} == dict(entry.items())
        assert list(found) == sorted(found)
        assert all(type(v) in (bytes, BucketValue) for v in found.values())


@pytest.mark.parametrize("after", SHAPES)
@pytest.mark.parametrize("before", SHAPES)
def test_a_bucket_of_any_shape_becomes_one_of_any_other(path: Path, before: str, after: str) -> None:
    """Twice in one transaction, the second time from pages that it has written."""
    model = Model(0, {PARENT: Model(0, {b"e": SHAPES[before]})})
    with updating(path) as tx:
        store(tx.root, model)
    keys = {k: v for k, v in SHAPES[after].entries.items() if isinstance(v, bytes)}

    def edit(_: bytes, value: BucketValue | None) -> BucketValue:
        assert value is not None
        for value_of_key in (b"some", None):
            found = read_contents(tx, value)
            for key in [k for k, v in found.items() if type(v) is bytes]:
                del found[key]
            found.update(keys if value_of_key is None else dict.fromkeys(keys, value_of_key))
            value = write_contents(tx, found)
        return value

    with updating(path) as tx:
        edit_buckets(open_bucket(tx, PARENT), [b"e"], edit)
    nested = {k: v for k, v in SHAPES[before].entries.items() if isinstance(v, Model)}
    expected = Model(SHAPES[before].sequence, {**keys, **nested})
    assert_intact(path, Model(0, {PARENT: Model(0, {b"e": expected})}))


def test_nested_contents(path: Path) -> None:
    with updating(path) as tx:
        store(tx.root, Model(0, {PARENT: SHAPES["nested"]}))
    with viewing(path) as tx:
        found = read_contents(tx, stored(tx, PARENT))
        assert nested_contents(tx, found, b"labels") == {b"l": b"v"}
        assert nested_contents(tx, found, b"rooted") == {b"l": b"v" * 900}
        assert nested_contents(tx, found, b"k") is None, "no bucket"
        assert nested_contents(tx, found, b"missing") is None


@pytest.mark.parametrize("other", [b"a", b"z"])
def test_an_empty_key_or_one_too_long_is_refused(path: Path, other: bytes) -> None:
    """As by put(); it would make a file that nobody opens again."""
    sound = path.read_bytes()
    for key in (b"", b"x" * (MAX_KEY_SIZE + 1)):
        with pytest.raises(BucketError, match=f"a key of {len(key)} bytes; 1 to 32768 are allowed"), updating(path) as tx:
            tx.root.replace(PARENT, write_contents(tx, Contents({key: b"v", other: b"v"})))
        assert path.read_bytes() == sound
    with updating(path) as tx:
        tx.root.replace(PARENT, write_contents(tx, Contents({b"x" * MAX_KEY_SIZE: b"v"})))
    assert_intact(path, Model(0, {PARENT: Model(0, {b"x" * MAX_KEY_SIZE: b"v"})}))


def test_very_many_keys_have_their_lengths_checked_too(tmp_path: Path) -> None:
    path = new_db(tmp_path / "db", 4096)
    keys = dict.fromkeys((b"%06d" % i for i in range(0xFFFF)), b"")
    with pytest.raises(BucketError, match="a key of 32769 bytes"), updating(path) as tx:
        write_contents(tx, Contents({**keys, b"x" * 32769: b""}))
    with updating(path) as tx:
        tx.root.replace(PARENT, write_contents(tx, Contents(keys)))
    with viewing(path) as tx:
        assert len(read_contents(tx, stored(tx, PARENT))) == 0xFFFF
    assert check(path).clean


def test_what_cannot_be_read_raises(path: Path) -> None:
    with updating(path) as tx:
        with pytest.raises(CorruptDatabaseError, match=r"page 999 is corrupt \(page id is not between"):
            read_contents(tx, BucketValue((999).to_bytes(8, "little") + bytes(8)))
        with pytest.raises(CorruptDatabaseError, match="inline bucket: an inline bucket is not one leaf page"):
            read_contents(tx, BucketValue(bytes(32)))
    with viewing(path) as tx, pytest.raises(BucketError, match="read-only"):
        write_contents(tx, Contents())


def test_a_write_that_fails_ends_the_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with updating(path) as tx:
        store(tx.root, Model(0, {PARENT: SHAPES["one page"]}))
    monkeypatch.setattr(PageWriter, "put", lambda *_: 1 / 0)
    with pytest.raises(BucketError, match="transaction has ended"), updating(path) as tx, pytest.raises(ZeroDivisionError):
        write_contents(tx, read_contents(tx, stored(tx, PARENT)))
    assert_intact(path, Model(0, {PARENT: SHAPES["one page"]}))


# -- editing buckets in a bucket


def marked(tx: Tx, value: BucketValue | None) -> BucketValue:
    """An entry with one more key."""
    found = read_contents(tx, value) if value else Contents()
    found[b"n"] = found.get(b"n", b"") + b"1"
    return write_contents(tx, found)


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 1400])
def test_entries_are_made_in_an_empty_bucket(path: Path, count: int) -> None:
    """512 are as many as a node in memory has."""
    with updating(path) as tx:
        edit_buckets(tx.create_bucket(PARENT), (b"%05d" % i for i in range(count)), lambda _, value: marked(tx, value))
    entries: dict[bytes, bytes | Model] = {b"%05d" % i: Model(0, {b"n": b"1"}) for i in range(count)}
    assert_intact(path, Model(0, {PARENT: Model(0, entries)}))


@pytest.mark.parametrize("step", [1, 40])
def test_leaves_are_written_when_the_next_one_is_reached(tmp_path: Path, step: int) -> None:
    """For names in order, several or one a leaf; that is what bounds memory."""
    path = new_db(tmp_path / "db", 1024)
    names = [b"%05d" % i for i in range(2000)]
    with updating(path) as tx:
        edit_buckets(tx.create_bucket(PARENT), names, lambda _, value: marked(tx, value))
    assert height(path, PARENT) >= 2
    most = 0

    def edit(_: bytes, value: BucketValue | None) -> BucketValue:
        nonlocal most
        nodes = [bucket.root_node()]
        leaves = 0
        while nodes:
            node = nodes.pop()
            leaves += node.leaf
            nodes += [] if node.leaf else [child for child in node.children if not isinstance(child, int)]
        most = max(most, leaves)
        return marked(tx, value)

    with updating(path) as tx:
        bucket = open_bucket(tx, PARENT)
        edit_buckets(bucket, names[::step], edit)
    assert most == (1 if step == 1 else 0)
    entries: dict[bytes, bytes | Model] = {b"%05d" % i: Model(0, {b"n": b"1" if i % step else b"11"}) for i in range(2000)}
    assert_intact(path, Model(0, {PARENT: Model(0, entries)}))


def test_no_value_is_no_change(path: Path) -> None:
    with updating(path) as tx:
        store(tx.root, Model(0, {PARENT: Model(0, {b"e": SHAPES["one page"]})}))
    before = path.read_bytes()
    with updating(path) as tx:
        edit_buckets(open_bucket(tx, PARENT), [b"missing", b"e", b"e"], lambda *_: None)
    assert path.read_bytes() == before


def test_a_name_that_is_a_key_or_none(path: Path) -> None:
    with updating(path) as tx:
        tx.create_bucket(PARENT).put(b"k", b"v")
    for name, message in ((b"k", "key b'k' already exists"), (b"", "a key of 0 bytes"), (b"x" * 40000, "a key of 40000 bytes")):
        with pytest.raises(BucketError, match=message), updating(path) as tx:
            edit_buckets(open_bucket(tx, PARENT), [b"e", name], lambda _, value: marked(tx, value))
        assert_intact(path, Model(0, {PARENT: Model(0, {b"k": b"v"})}))


def test_an_edit_that_fails_half_way_cannot_be_committed(path: Path) -> None:
    """It may have given up the pages of buckets in an entry that refers to them still."""
    model = Model(0, {PARENT: Model(0, {b"e": SHAPES["nested"]})})
    with updating(path) as tx:
        store(tx.root, model)

    def edit(_: bytes, value: BucketValue | None) -> BucketValue:
        assert value is not None
        nested = nested_contents(tx, read_contents(tx, value), b"rooted")
        assert nested is not None
        write_contents(tx, nested)
        raise KeyError

    with pytest.raises(BucketError, match="transaction has ended"), updating(path) as tx, pytest.raises(KeyError):
        edit_buckets(open_bucket(tx, PARENT), [b"e"], edit)
    assert_intact(path, model)


def test_what_an_open_handle_has_changed_is_seen(path: Path) -> None:
    with updating(path) as tx:
        entry = tx.create_path(PARENT, b"e")
        entry.create_bucket(b"labels").put(b"l", b"v" * 300)
        seen = []

        def edit(_: bytes, value: BucketValue | None) -> BucketValue:
            assert value is not None
            seen.append(nested_contents(tx, read_contents(tx, value), b"labels"))
            return marked(tx, value)

        edit_buckets(open_bucket(tx, PARENT), [b"e"], edit)
        assert seen == [{b"l": b"v" * 300}]
        with pytest.raises(BucketError, match="deleted or spilled"):
            entry.put(b"k", b"v")
        open_bucket(tx, PARENT, b"e").put(b"k", b"v")
    labels = Model(0, {b"l": b"v" * 300})
    assert_intact(path, Model(0, {PARENT: Model(0, {b"e": Model(0, {b"labels": labels, b"n": b"1", b"k": b"v"})})}))


def test_inline_buckets_larger_than_bbolt_makes_them(path: Path) -> None:
    """They are legal, and are written as pages."""
    large = encode_inline([b"k"], [b"v" * 400], 5)
    with updating(path) as tx:
        tx.create_bucket(PARENT).replace(b"e", large)
    with updating(path) as tx:
        edit_buckets(open_bucket(tx, PARENT), [b"e"], lambda _, value: marked(tx, value))
        assert stored(tx, PARENT, b"e").root
    assert_intact(path, Model(0, {PARENT: Model(0, {b"e": Model(5, {b"k": b"v" * 400, b"n": b"1"})})}))


@pytest.mark.parametrize("seed", range(2))
def test_many_entries_of_all_shapes(tmp_path: Path, seed: int) -> None:
    """More than a node in memory holds, edited by all changes in all orders."""
    rng = random.Random(seed)
    path = new_db(tmp_path / "db", rng.choice([1024, 4096]), freelist=bool(seed % 2))
    names = [name_of(i) for i in range(700)]
    model = Model(0, {PARENT: Model(0, {name: random_entry(rng) for name in names[::2]})})
    with updating(path) as tx:
        store(tx.root, model)
    entries = model.create((PARENT,))
    for _ in range(2):
        with updating(path) as tx:
            for change in rng.sample(CHANGES, 2):
                order, make = in_order(rng, names, rng.choice(ORDERS)), rng.random() < 0.3
                edit_in_file(tx, open_bucket(tx, PARENT), order, change, make=make, uniform=rng.random() < 0.5)
                edit_in_model(entries, order, change, make=make)
        assert_intact(path, model)
    with updating(path) as tx:
        for name in list(entries.entries):
            open_bucket(tx, PARENT).delete_bucket(name)
    assert_intact(path, Model(0, {PARENT: Model()}))
