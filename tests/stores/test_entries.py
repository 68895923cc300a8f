"""Entries of the stores: the short way to read one, and the long way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asyncmig.bolt import BucketValue, format, read_contents
from asyncmig.errors import BucketError
from asyncmig.stores.offline.codec import ZERO_TIME
from asyncmig.stores.offline.entries import EntryReader, LabelRemoval, set_label
from asyncmig.stores.ports import GC_ROOT
from tests.bolt.entries import edit_in_model, plain_change, store
from tests.bolt.helpers import Model, assert_holds, new_db, open_bucket, updating, viewing

ROOT = GC_ROOT.encode()
NOW = b"now"


def random_labels(rng: random.Random) -> bytes | Model:
    roots: list[bytes | Model] = [b"", b"-", b"true", b"\xff", Model()]
    root = rng.choice(roots)
    labels: list[bytes | Model] = [
        Model(0, {ROOT: root}),
        Model(0, {ROOT: root}),
        Model(rng.choice([0, 1]), {ROOT: b"v", b"other": b""}),
        Model(0, {b"x" * len(ROOT): b"v"}),
        Model(3, {ROOT: b"v"}),
        Model(0, {ROOT: b"v" * 5000}),
        Model(),
        b"",
        b"-",
        bytes(format.encode_inline([ROOT], [b"v"], 0)),
    ]
    return rng.choice(labels)


def random_entry(rng: random.Random) -> Model:
    """An entry as they are, or one with something else in a place of it.

    Few kinds, so that the layouts of most are known.
    """
    anything: list[bytes | Model] = [b"", b"-", Model()]
    entry: dict[bytes, bytes | Model] = {b"kind": b"%d" % rng.randrange(5), b"createdat": b"created", b"updatedat": b"updated"}
    if rng.random() < 0.8:
        entry[b"labels"] = random_labels(rng)
    if rng.random() < 0.2:
        entry[rng.choice([b"kind", b"createdat", b"updatedat", b"parent"])] = rng.choice(anything)
    if rng.random() < 0.2:
        entry.pop(rng.choice(list(entry)))
    return Model(0, entry)


@pytest.fixture
def entries() -> Model:
    rng = random.Random(1)
    return Model(0, {b"%05d" % i: random_entry(rng) for i in range(1500)})


@pytest.fixture
def path(tmp_path: Path, entries: Model) -> Path:
    path = new_db(tmp_path / "db")
    with updating(path) as tx:
        store(tx.create_bucket(b"entries"), entries)
    return path


def test_the_short_way_reads_what_the_long_way_reads(path: Path, entries: Model) -> None:
    faults, short_ways = set(), 0
    with viewing(path) as tx:
        read = EntryReader(tx, "file", "blob", b"kind", b"missing", b"parent")
        for key, value in open_bucket(tx, b"entries").entries():
            assert isinstance(value, BucketValue)
            short, long = read._short_way(value), read._long_way(key, value)
            values, root, fault = read(key, value)
            assert (list(values), root, fault) == long, entries.entries[key]
            short_ways += short is not None
            faults.add(fault and fault.split(": ", 2)[2])
    assert 300 < short_ways < 1400
    assert len(faults) == 1 + 2 + 1 + 1, "no fault, two times, labels, a label"


def test_the_short_way_removes_what_the_long_way_removes(path: Path, entries: Model) -> None:
    """Of entries that are in order."""
    with viewing(path) as tx:
        read = EntryReader(tx, "file", "blob")
        bucket = open_bucket(tx, b"entries")
        names = [key for key, value in bucket.entries() if isinstance(value, BucketValue) and read(key, value)[2] is None]
    with updating(path) as tx:
        remove, bucket = LabelRemoval(tx, ROOT, NOW, tidy=False), open_bucket(tx, b"entries")
        for name in names:
            value = bucket.value(name)
            assert isinstance(value, BucketValue)
            bucket.replace(name, remove(value))
    times = plain_change({b"updatedat": NOW}, defaults={b"createdat": ZERO_TIME})
    edit_in_model(entries, names, times, make=False)
    for name in names:
        entry = entries.entries[name]
        assert isinstance(entry, Model)
        labels = entry.create((b"labels",))
        labels.entries = {key: value for key, value in labels.entries.items() if key != ROOT and value}
    assert len(names) > 700
    assert_holds(path, Model(0, {b"entries": entries}))


def test_what_set_label_fails_on_is_told_before(path: Path) -> None:
    """And nothing else: the labels go when leases have been made already."""
    told, failed = set(), set()
    with updating(path) as tx:  # what it writes is not stored, so nothing is committed
        read, bucket = EntryReader(tx, "file", "blob"), open_bucket(tx, b"entries")
        for key, _ in bucket.items():
            value = bucket.value(key)
            assert isinstance(value, BucketValue)
            if read(key, value)[2] is not None:
                told.add(key)
            try:
                set_label(tx, read_contents(tx, value), ROOT, b"v", NOW)
            except BucketError:
                failed.add(key)
    assert told == failed
    assert len(told) > 100
