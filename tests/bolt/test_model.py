"""The whole engine against a model of nested dicts."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asyncmig.bolt import Bucket, Db
from tests.bolt.helpers import (
    PAGE_SIZES,
    Model,
    apply_to_tx,
    assert_holds,
    bucket_contents,
    height,
    new_db,
    open_bucket,
    random_history,
    updating,
)

NAMES = [b"a", b"b", b"c"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
NUMBERS = st.integers(0, 400)


def key_of(number: int) -> bytes:
    """Keys of 8 to 200 bytes, so that a branch page of 1 KB has few children and trees grow tall."""
    return b"key%05d" % number + b"." * (number * 37 % 192)


class Engine(RuleBasedStateMachine):
    """Random calls on one database and on the model; each commit is followed by a look at the file."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "db")

    @initialize(page_size=st.sampled_from([1024, 1024, 4096]), freelist=st.booleans())
    def start(self, page_size: int, freelist: bool) -> None:
        new_db(self.path, page_size, freelist=freelist)
        self.committed = Model()
        self._begin()

    def _begin(self) -> None:
        self.db = Db.open(self.path, writable=True)
        self.update = self.db.update()
        self.tx = self.update.__enter__()
        self.model = copy_of(self.committed)

    def teardown(self) -> None:
        if hasattr(self, "update"):
            self._end()
        self.directory.cleanup()

    def _end(self) -> None:
        self.update.__exit__(None, None, None)
        self.db.close()
        self.committed = self.model
        assert_holds(self.path, self.committed)

    @rule()
    def commit(self) -> None:
        self._end()
        self._begin()

    @rule()
    def roll_back(self) -> None:
        self.update.__exit__(RuntimeError, RuntimeError(), None)
        self.db.close()
        assert_holds(self.path, self.committed)
        self._begin()

    @rule(path=PATHS, first=NUMBERS, count=st.sampled_from([1, 1, 10, 300]), size=st.sampled_from([0, 20, 100, 3000]))
    def put(self, path: tuple[bytes, ...], first: int, count: int, size: int) -> None:
        bucket, model = self.tx.create_path(*path), self.model.create(path)
        for number in range(first, first + count):
            value = b"%d" % number + b"v" * (size if count < 100 else size % 300)
            bucket.put(key_of(number), value)
            model.entries[key_of(number)] = value

    @rule(path=PATHS, first=NUMBERS, count=st.sampled_from([1, 10, 300, 800]), step=st.sampled_from([1, 1, 2, 7]))
    def delete(self, path: tuple[bytes, ...], first: int, count: int, step: int) -> None:
        bucket, model = self.tx.path_bucket(*path), self.model.find(path)
        assert (bucket is None) == (model is None)
        if bucket and model:
            for number in range(first, first + count, step):
                bucket.delete(key_of(number))
                model.entries.pop(key_of(number), None)

    @rule(path=PATHS)
    def delete_bucket(self, path: tuple[bytes, ...]) -> None:
        parent, model = self.tx.path_bucket(*path[:-1]), self.model.find(path[:-1])
        if parent and model and path[-1] in model.entries:
            parent.delete_bucket(path[-1])
            del model.entries[path[-1]]

    @rule(path=PATHS, number=st.integers(0, (1 << 64) - 1))
    def set_sequence(self, path: tuple[bytes, ...], number: int) -> None:
        bucket, model = self.tx.path_bucket(*path), self.model.find(path)
        if bucket and model:
            bucket.set_sequence(number)
            model.sequence = number

    @rule(path=PATHS)
    def spill(self, path: tuple[bytes, ...]) -> None:
        parent = self.tx.path_bucket(*path[:-1])
        if parent:
            parent.spill_child(path[-1])

    @rule(path=PATHS, number=NUMBERS)
    def move_a_cursor(self, path: tuple[bytes, ...], number: int) -> None:
        bucket, model = self.tx.path_bucket(*path), self.model.find(path)
        if not bucket or not model:
            return
        keys = sorted(model.entries)
        at = sum(k < key_of(number) for k in keys)
        cursor = bucket.cursor()
        sought = cursor.seek(key_of(number))
        assert (sought and sought[0]) == (keys[at] if at < len(keys) else None)
        before = cursor.prev()
        assert (before and before[0]) == (keys[at - 1] if at else None)
        last = cursor.last()
        assert (last and last[0]) == (keys[-1] if keys else None)

    @invariant()
    def content_is_the_models(self) -> None:
        # Every bucket through its one handle in the transaction: sees what was changed and what was spilled.
        if hasattr(self, "tx") and len(self.model.entries) < 3:
            assert bucket_contents(self.tx.root) == self.model


def copy_of(model: Model) -> Model:
    entries = {k: copy_of(v) if isinstance(v, Model) else v for k, v in model.entries.items()}
    return Model(model.sequence, entries)


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=25)


@pytest.mark.parametrize("seed", range(40))
def test_random_history(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = new_db(tmp_path / "db", PAGE_SIZES[seed % 4] if seed % 2 else 1024, freelist=rng.random() < 0.5)
    model = Model()
    for _ in range(6):
        with Db.open(path, writable=True) as db:
            for _ in range(2):
                with db.update(fill_percent=rng.choice([0.1, 0.5, 0.9, 1.0])) as tx:
                    for op in random_history(rng, model, rng.choice([1, 20, 300, 1000])):
                        apply_to_tx(tx, op)
                    assert_cursors_agree(rng, tx.root, model)
        assert_holds(path, model)


def assert_cursors_agree(rng: random.Random, bucket: Bucket, model: Model) -> None:
    """Forwards, backwards, and a random walk, in this bucket and a random path below it."""
    while True:
        keys = sorted(model.entries)
        cursor = bucket.cursor()
        assert list(bucket.items()) == [(k, v if isinstance(v, bytes) else None) for k, v in sorted(model.entries.items())]
        backwards = []
        item = cursor.last()
        while item is not None:
            backwards.append(item[0])
            item = cursor.prev()
        assert backwards == keys[::-1]
        nested = [k for k in keys if isinstance(model.entries[k], Model)]
        if not nested:
            return
        name = rng.choice(nested)
        below, model_below = bucket.bucket(name), model.entries[name]
        assert below is not None
        assert isinstance(model_below, Model)
        bucket, model = below, model_below


@pytest.mark.parametrize("freelist", [True, False])
@pytest.mark.parametrize("order", ["ascending", "descending", "random", "all but the ends", "every other"])
def test_deleting_in_bulk_shrinks_a_tall_tree(tmp_path: Path, order: str, freelist: bool) -> None:
    rng = random.Random(order)
    path = new_db(tmp_path / "db", 1024, freelist=freelist)
    keys = [b"%06d" % i + b"." * 190 for i in range(1500)]
    model = Model()
    bucket_model = model.create((b"b",))
    with updating(path) as tx:
        for key in keys:
            tx.create_path(b"b").put(key, b"value")
            bucket_model.entries[key] = b"value"
    assert height(path, b"b") >= 4
    doomed = {
        "ascending": keys,
        "descending": keys[::-1],
        "random": rng.sample(keys, len(keys)),
        "all but the ends": keys[1:-1],
        "every other": keys[::2],
    }[order]
    for part in (doomed[:100], doomed[100:-3], doomed[-3:]):
        with updating(path) as tx:
            bucket = open_bucket(tx, b"b")
            for key in part:
                bucket.delete(key)
                del bucket_model.entries[key]
        assert_holds(path, model)
    assert (height(path, b"b") == 0) == (order != "every other")


def test_deleting_whole_subtrees_keeps_all_leaves_equally_deep(tmp_path: Path) -> None:
    """Merges that cascade: the survivors of every level end in few nodes."""
    for seed in range(12):
        rng = random.Random(seed)
        path = new_db(tmp_path / f"db{seed}", 1024)
        keys = [b"%06d" % i + b"." * rng.choice([50, 190]) for i in range(1200)]
        model = Model(0, {b"b": Model(0, dict.fromkeys(keys, b"x"))})
        bucket_model = model.create((b"b",))
        with updating(path) as tx:
            for key in keys:
                tx.create_path(b"b").put(key, b"x")
        assert height(path, b"b") >= 3
        for _ in range(6):
            with updating(path) as tx:
                bucket = open_bucket(tx, b"b")
                left = sorted(bucket_model.entries)
                start = rng.randrange(len(left) + 1)
                for key in left[start : start + rng.choice([50, 400, 1000])]:
                    bucket.delete(key)
                    del bucket_model.entries[key]
                for i in range(rng.choice([0, 0, 3])):
                    bucket.put(b"%d new" % i, b"y")
                    bucket_model.entries[b"%d new" % i] = b"y"
            assert_holds(path, model)
