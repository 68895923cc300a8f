"""One change to many buckets that are alike, by recipes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pytest

from asyncmig.bolt import (
    BucketValue,
    Contents,
    Db,
    Tx,
    UniformEdit,
    bucket,
    edit_buckets,
    format,
    nested_contents,
    read_contents,
    uniform,
    verify_pages,
    write_contents,
)
from asyncmig.bolt.format import encode_inline
from asyncmig.bolt.space import PageWriter
from asyncmig.errors import BucketError, CorruptDatabaseError
from tests.bolt.entries import store
from tests.bolt.helpers import Model, assert_holds, new_db, updating

Change = Callable[[Contents], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db", 1024)


@pytest.fixture
def changed_the_long_way(monkeypatch: pytest.MonkeyPatch) -> list[BucketValue]:
    """The values of the buckets that were taken apart."""
    values = []

    def noted(tx: Tx, value: BucketValue) -> Contents:
        values.append(value)
        return read_contents(tx, value)

    monkeypatch.setattr(uniform, "read_contents", noted)
    return values


def always(_: Sequence[bytes], __: Sequence[bytes]) -> Hashable:
    return True


def assert_becomes(
    path: Path,
    before: Sequence[Model],
    change: Callable[[Tx], Change],
    after: Sequence[Model],
    signature: Callable[[Sequence[bytes], Sequence[bytes]], Hashable] = always,
) -> None:
    """The change makes these entries of those, and the file is sound and without lost pages."""
    with updating(path) as tx:
        store(tx.root, entries(before))
    with updating(path) as tx:
        edit = UniformEdit(tx, change(tx), signature)
        edit_buckets(tx.root, sorted(entries(before).entries), lambda _, value: edit(value) if value else None)
    assert_holds(path, entries(after))
    with Db.open(path) as db:
        assert db.pages is not None
        verify_pages(db.pages, lost_pages=True)


def value_of(tx: Tx, name: bytes) -> BucketValue:
    value = tx.root.value(name)
    assert isinstance(value, BucketValue)
    return value


def entries(models: Sequence[Model]) -> Model:
    return Model(0, {b"%04d" % i: model for i, model in enumerate(models)})


def model(sequence: int = 0, **entries: bytes | Model) -> Model:
    return Model(sequence, {key.encode(): value for key, value in entries.items()})


def setting(**values: bytes) -> Callable[[Tx], Change]:
    return lambda _: lambda contents: contents.update({key.encode(): value for key, value in values.items()})


def test_those_that_are_alike_are_changed_by_recipe(path: Path, changed_the_long_way: list[BucketValue]) -> None:
    before = [model(a=b"%02d" % i, k=b"old%02d" % i, z=b"%d" % (i % 10)) for i in range(50)]
    after = [model(a=b"%02d" % i, k=b"new", z=b"%d" % (i % 10), more=b"") for i in range(50)]
    assert_becomes(path, before, setting(k=b"new", more=b""), after)
    assert len(changed_the_long_way) == 1


@pytest.mark.parametrize(
    "other",
    [
        model(a=b"123", k=b"old"),
        model(a=b"12", k=b"older"),
        model(a=b"12"),
        model(a=b"12", k=b"old", l=b""),
        model(b=b"12", k=b"old"),
        model(5, a=b"12", k=b"old"),
        model(a=b"12", k=b"old", z=model()),
    ],
    ids=str,
)
def test_those_that_differ_are_not(path: Path, changed_the_long_way: list[BucketValue], other: Model) -> None:
    """In sizes, keys, sequence, or nested buckets."""
    before = [model(a=b"12", k=b"old"), other]
    after = [model(a=b"12", k=b"new"), Model(other.sequence, {**other.entries, b"k": b"new"})]
    assert_becomes(path, before, setting(k=b"new"), after)
    assert len(changed_the_long_way) == 2


def test_a_value_and_a_bucket_of_the_same_bytes_are_not_alike(path: Path, changed_the_long_way: list[BucketValue]) -> None:
    before = [model(e=bytes(encode_inline([b"k"], [b"v"], 0))), model(e=model(k=b"v"))]
    after = [Model(0, {**each.entries, b"new": b"1"}) for each in before]
    assert_becomes(path, before, setting(new=b"1"), after)
    assert len(changed_the_long_way) == 2


@pytest.mark.parametrize("new", [b"", b"1", b"new"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_value_that_is_set_to_what_one_has_already(path: Path, new: bytes, at: int) -> None:
    """That this one comes out unchanged says nothing about the others, not even if it comes first."""
    before = [model(k=b"0" * len(new), x=b"%d" % i) for i in range(4)]
    before[at].entries[b"k"] = new
    assert_becomes(path, before, setting(k=new), [model(k=new, x=b"%d" % i) for i in range(4)])


def test_a_kind_that_begins_with_doubt_gets_its_recipe_later(path: Path, changed_the_long_way: list[BucketValue]) -> None:
    before = [model(k=b"new"), model(k=b"new"), *(model(k=b"old") for _ in range(9))]
    assert_becomes(path, before, setting(k=b"new"), [model(k=b"new")] * 11)
    assert len(changed_the_long_way) == 3


def test_values_that_are_left_as_they_are(path: Path, changed_the_long_way: list[BucketValue]) -> None:
    """Of no byte, of one, of more; also where all are equal, or two keys have the same."""

    def change(contents: Contents) -> None:
        contents[b"one"] = contents[b"one"]
        contents.update({b"two": contents.pop(b"two")})

    before = [model(one=b"%d" % i, two=b"ab", three=b"ab", none=b"", also=b"%d" % i) for i in (1, 1, 2, 3)]
    assert_becomes(path, before, lambda _: change, before)
    assert len(changed_the_long_way) == 1


def test_a_signature_of_none_is_the_long_way(path: Path, changed_the_long_way: list[BucketValue]) -> None:
    before = [model(k=b"%d" % (i % 3)) for i in range(9)]

    def change(contents: Contents) -> None:
        contents[b"k"] = {b"0": b"zero", b"1": b"one", b"2": b"two"}[contents[b"k"]]

    def signature(_: Sequence[bytes], values: Sequence[bytes]) -> Hashable:
        return None if values[0] == b"2" else values[0]

    after = [model(k=(b"zero", b"one", b"two")[i % 3]) for i in range(9)]
    assert_becomes(path, before, lambda _: change, after, signature)
    assert len(changed_the_long_way) == 2 + 3


BIG = b"v" * 700


@pytest.mark.parametrize(
    ("before", "new", "ways"),
    [
        (model(), b"v", 1),  # from inline to inline
        (model(), BIG, 1),  # to a page of its own
        (model(a=BIG), b"v", 1),  # from a page to a page
        (model(k=BIG), b"v", 1),  # from a page to inline
        (model(a=BIG, k=b"v" * 50), BIG, 6),  # to an overflow page
        (model(a=BIG * 3), b"v", 6),  # from an overflow page
        (Model(0, {b"k%03d" % i: b"v" * 50 for i in range(100)}), b"v", 6),  # a tree
        (model(9, a=model(k=b"v")), b"v", 1),  # with an inline bucket in it
        (model(a=model(k=BIG)), b"v", 1),  # with a bucket in it that has a page
    ],
    ids=["inline", "grows", "page", "shrinks", "overflows", "overflow", "tree", "nested", "nested page"],
)
def test_entries_of_all_shapes(
    path: Path, changed_the_long_way: list[BucketValue], before: Model, new: bytes, ways: int
) -> None:
    after = Model(before.sequence, {**before.entries, b"k": new})
    assert_becomes(path, [before] * 6, setting(k=new), [after] * 6)
    assert len(changed_the_long_way) == ways


@pytest.mark.parametrize("label", [b"v", BIG])
@pytest.mark.parametrize("old", [b"u", BIG[1:]])
def test_buckets_with_pages_of_their_own_belong_to_one_entry(
    path: Path, changed_the_long_way: list[BucketValue], old: bytes, label: bytes
) -> None:
    def change(tx: Tx) -> Change:
        def set_label(contents: Contents) -> None:
            labels = nested_contents(tx, contents, b"labels")
            assert labels is not None
            labels[b"l"] = label
            contents[b"labels"] = write_contents(tx, labels)

        return set_label

    before, after = [model(labels=model(l=old))] * 5, [model(labels=model(l=label))] * 5
    assert_becomes(path, before, change, after)
    assert len(changed_the_long_way) == (1 if len(old) + len(label) == 2 else 5)


def test_an_entry_that_is_edited_twice_in_one_transaction(path: Path) -> None:
    """The second time from the page that was written the first time."""
    with updating(path) as tx:
        store(tx.root, entries([model(a=BIG, k=b"0")] * 4))
    with updating(path) as tx:
        for new in (b"1", b"2", b"3"):
            edit = UniformEdit(tx, setting(k=new)(tx), always)
            edit_buckets(tx.root, [b"0000", b"0001", b"0002", b"0003"] * 2, lambda _, value, e=edit: value and e(value))  # type: ignore[misc]
    assert_holds(path, entries([model(a=BIG, k=b"3")] * 4))


def test_no_recipe_for_more_elements_than_a_page_can_have(
    path: Path, changed_the_long_way: list[BucketValue], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (format, bucket, uniform):
        monkeypatch.setattr(module, "MAX_ELEMENTS", 9)
    full = Model(0, dict.fromkeys((b"%05d" % i for i in range(9)), b""))
    assert_becomes(path, [full, full], setting(more=b""), [Model(0, {**full.entries, b"more": b""})] * 2)
    assert len(changed_the_long_way) == 2


def test_not_more_than_so_many_recipes(
    path: Path, changed_the_long_way: list[BucketValue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uniform, "_MOST_KINDS", 3)
    before = [model(a=b"v" * (i % 5)) for i in range(20)]
    after = [model(a=b"v" * (i % 5), k=b"new") for i in range(20)]
    assert_becomes(path, before, setting(k=b"new"), after)
    assert len(changed_the_long_way) == 3 + 2 * 4


def test_a_malformed_inline_bucket(path: Path) -> None:
    value = bytearray(encode_inline([b"k"], [b"v"], 0))
    value[40] = 200
    with pytest.raises(CorruptDatabaseError, match="inline bucket: elements are larger"), updating(path) as tx:
        UniformEdit(tx, setting(k=b"v")(tx), always)(BucketValue(value))


def test_a_page_that_cannot_be_written_ends_the_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the old entry was given up already."""
    before = entries([model(a=BIG), model(a=BIG[::-1])])
    with updating(path) as tx:
        store(tx.root, before)

    def fail_and_go_on(tx: Tx) -> None:
        edit = UniformEdit(tx, setting(k=b"new")(tx), always)
        first, second = value_of(tx, b"0000"), value_of(tx, b"0001")
        tx.root.replace(b"0000", edit(first))
        with monkeypatch.context() as patch:
            patch.setattr(PageWriter, "put", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                edit(second)

    with pytest.raises(BucketError, match="the transaction has ended"), updating(path) as tx:
        fail_and_go_on(tx)
    assert_holds(path, before)


def test_a_change_that_fails_ends_the_transaction(path: Path) -> None:
    with updating(path) as tx:
        store(tx.root, entries([model(a=BIG)]))
    before = path.read_bytes()
    with pytest.raises(BucketError, match="transaction has ended"), updating(path) as tx, pytest.raises(KeyError):
        UniformEdit(tx, lambda contents: contents.__delitem__(b"missing"), always)(value_of(tx, b"0000"))
    assert path.read_bytes() == before
