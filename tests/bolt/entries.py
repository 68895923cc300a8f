"""Entries as a store has them, and changes to them: of contents, and of the model beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from asyncmig.bolt import (
    Bucket,
    BucketValue,
    Contents,
    Tx,
    UniformEdit,
    edit_buckets,
    nested_contents,
    read_contents,
    write_contents,
)
from tests.bolt.helpers import Model

LABELS = b"labels"


def name_of(number: int) -> bytes:
    """Names of 5 to 120 bytes, so that the parent is a tree of some height."""
    return b"n%04d" % number + b"." * (number * 37 % 116)


def random_entry(rng: random.Random) -> Model:
    """An entry: most fit into their parent or a page, some have a tree or overflow pages, some a bucket of labels."""
    entry = Model(rng.choice([0, 0, 0, 7]))
    # Few different values, so that some are by chance what a change sets.
    for key in (b"kind", b"k", b"one", b"empty"):
        if rng.random() < 0.7:
            entry.entries[key] = rng.choice([b"", b"x", b"y", b"CONST", b"OTHER"])
    x = rng.random()
    if x < 0.1:
        entry.entries |= {b"wide%03d" % i: b"v" * rng.randrange(60) for i in range(rng.choice([33, 120]))}
    elif x < 0.2:
        entry.entries[b"long"] = b"v" * rng.choice([300, 900, 5000])
    if rng.random() < 0.5:
        size = rng.choice([0, 1, 1, 2, 30])
        entry.entries[LABELS] = Model(
            rng.choice([0, 0, 5]), {b"label%02d" % i: rng.choice([b"", b"v", b"w" * 40]) for i in range(size)}
        )
    if rng.random() < 0.1:
        entry.entries[b"other"] = Model(0, {b"k": b"v" * rng.choice([1, 2000])})
    return entry


def store(bucket: Bucket, model: Model) -> None:
    """Put everything into an empty bucket, by the plain way."""
    if model.sequence:
        bucket.set_sequence(model.sequence)
    for key, value in model.entries.items():
        if isinstance(value, Model):
            store(bucket.create_bucket(key), value)
        else:
            bucket.put(key, value)


@dataclass(frozen=True)
class Change:
    """A change to the contents of an entry, and the same one to its model.

    ``looks_at_labels``: what it does depends on what is in the bucket of labels.
    """

    in_file: Callable[[Tx, Contents], None]
    in_model: Callable[[Model], None]
    looks_at_labels: bool = False


def plain_change(sets: dict[bytes, bytes], removes: Iterable[bytes] = (), defaults: dict[bytes, bytes] | None = None) -> Change:
    """Keys that are set, removed, set if they are missing."""

    def change(entry: dict[bytes, bytes]) -> None:
        for key in removes:
            entry.pop(key, None)
        for key, value in (defaults or {}).items():
            entry.setdefault(key, value)
        entry.update(sets)

    def in_model(model: Model) -> None:
        change(model.entries)  # type: ignore[arg-type]

    return Change(lambda _, contents: change(contents), in_model)


def label_change(sets: dict[bytes, bytes], removes: Iterable[bytes] = ()) -> Change:
    """Labels that are set or removed, in a bucket that is made if it is missing."""
    change = plain_change(sets, removes)

    def in_file(tx: Tx, entry: Contents) -> None:
        labels = nested_contents(tx, entry, LABELS)
        if labels is None:
            labels = Contents()
        change.in_file(tx, labels)
        entry[LABELS] = write_contents(tx, labels)

    return Change(in_file, lambda model: change.in_model(model.create((LABELS,))), looks_at_labels=True)


CHANGES = [
    plain_change({b"k": b"CONST"}),
    plain_change({b"one": b"x", b"empty": b""}),
    plain_change({}, removes=[b"k", b"kind"]),
    plain_change({b"new": b"value"}, defaults={b"kind": b"y"}),
    plain_change({b"long": b"l" * 3000}),
    plain_change({b"long": b"l" * 230}),
    plain_change({}, removes=[b"long", *(b"wide%03d" % i for i in range(120))]),
    plain_change({b"wide%03d" % i: b"w" * 20 for i in range(100)}),
    plain_change({}),
    label_change({b"label00": b"new"}),
    label_change({}, removes=[b"label%02d" % i for i in range(30)]),
    label_change({b"label%02d" % i: b"v" * 60 for i in range(30)}),
]


def edit_in_file(tx: Tx, bucket: Bucket, names: Iterable[bytes], change: Change, *, make: bool, uniform: bool) -> None:
    """Change entries, or make those that are missing; ``uniform``: by recipes."""

    def in_file(contents: Contents) -> None:
        change.in_file(tx, contents)

    def long_way(value: BucketValue) -> BucketValue:
        contents = read_contents(tx, value)
        in_file(contents)
        return write_contents(tx, contents)

    def signature(keys: Sequence[bytes], values: Sequence[bytes]) -> Hashable:
        if not change.looks_at_labels or LABELS not in keys:
            return b""
        labels = values[keys.index(LABELS)]
        return None if any(labels[:8]) else labels

    changed = UniformEdit(tx, in_file, signature) if uniform else long_way

    def edit(_: bytes, stored: BucketValue | None) -> BucketValue | None:
        if stored is not None:
            return changed(stored)
        return write_contents(tx, Contents({b"made": b"1"})) if make else None

    edit_buckets(bucket, names, edit)


def edit_in_model(parent: Model, names: Iterable[bytes], change: Change, *, make: bool) -> None:
    """The same in the model."""
    for name in names:
        entry = parent.entries.get(name)
        if isinstance(entry, Model):
            change.in_model(entry)
        elif entry is None and make:
            parent.entries[name] = Model(0, {b"made": b"1"})


def in_order(rng: random.Random, names: list[bytes], order: str) -> list[bytes]:
    """The names in some order, or some of them twice."""
    match order:
        case "ascending":
            return names
        case "descending":
            return names[::-1]
        case "shuffled":
            return rng.sample(names, len(names))
        case "doubled":
            return [name for name in names for _ in (0, 1)]
        case "again":
            return [*names, *names[::3]]
    raise ValueError(order)


ORDERS = ["ascending", "ascending", "descending", "shuffled", "doubled", "again"]
