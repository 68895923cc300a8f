"""Reading and writing the metadata database."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncmig.bolt import Db, check
from asyncmig.bolt.format import MAX_KEY_SIZE
from asyncmig.buildkit.gojson import GoJSONError, decode
from asyncmig.buildkit.metadata import MetadataDb, Revision
from asyncmig.buildkit.record import Changes, Record
from asyncmig.errors import CorruptDatabaseError, RecordError
from asyncmig.sorting import sorted_in_steps
from tests.buildkit.test_gojson import VALUES
from tests.caches import V1Cache, digest, sample_cache, value
from tests.states import dump_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metadata.db"


@pytest.fixture
def opened(path: Path) -> Iterator[MetadataDb]:
    sample_cache().write_metadata(path)
    database = MetadataDb.open(path)
    yield database
    database.close()


def revision(records: list[Record]) -> Revision:
    return Revision(records, {record.id: record for record in records})


def write(database: MetadataDb, target: Path) -> None:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        records = database.read()
        database.write(fd, str(target), revision(records))
    finally:
        os.close(fd)


def test_records_come_in_order_with_their_values(opened: MetadataDb) -> None:
    records = {r.id: r for r in opened.read()}
    assert list(records) == sorted(records)
    assert records["b"].blob_mapping == (digest("blob b"), digest("diff b"))
    assert records["holder"].equal_mutable == "mutable"
    assert records["holder"].is_holder
    assert not records["b"].is_holder, "a cleared value counts as none"


def test_without_changes_the_copy_is_the_same(opened: MetadataDb, path: Path, tmp_path: Path) -> None:
    write(opened, tmp_path / "copy.db")
    assert dump_lines(tmp_path / "copy.db") == dump_lines(path)
    assert check(tmp_path / "copy.db").clean


def test_progress_counts_every_record_once(opened: MetadataDb) -> None:
    counted: list[int] = []
    records = opened.read(progress=counted.append)
    assert sum(counted) == len(records)


def test_an_index_entry_that_bolt_cannot_hold_is_refused(tmp_path: Path, path: Path) -> None:
    cache = V1Cache(records={"x" * (MAX_KEY_SIZE - 10): {"k": value(1)}})
    cache.write_metadata(path)
    database = MetadataDb.open(path)
    record = database.read()[0]
    record.chain_id = record.blob_chain_id = digest("c")
    record.changes = Changes.CHAIN
    with pytest.raises(RecordError, match="index entry would be"):
        database.index_keys(record)
    database.close()


def test_every_malformed_value_is_told(path: Path) -> None:
    """Those of the usual forms are looked at together, the others one by one."""
    rng = random.Random(1)
    records = {f"{i:04}": {f"key {k}": rng.choice(VALUES) for k in range(rng.randrange(4))} for i in range(1500)}
    for values in records.values():
        values["cache.parent"] = value("parent")
    V1Cache(records=records).write_metadata(path)
    told: list[tuple[str, bytes]] = []
    with MetadataDb.open(path) as database:
        read = database.read(on_malformed=lambda record, key, _: told.append((record.id, key)))
    assert all(record.parent == "parent" for record in read)
    expected = [
        (name, key.encode()) for name, values in records.items() for key, raw in values.items() if raw and not is_value(raw)
    ]
    assert sorted(told) == sorted(expected)
    assert 100 < len(expected) < 1000


def is_value(raw: bytes) -> bool:
    try:
        decode(raw)
    except GoJSONError:
        return False
    return True


@pytest.mark.parametrize("changes", [0, Changes.CHAIN])
def test_the_index_in_order_is_that_of_the_values(path: Path, tmp_path: Path, changes: int) -> None:
    """However an index is spelt, and whatever other values the record has."""
    rng = random.Random(2)
    values = [b"", *(raw for raw in VALUES if raw and is_value(raw))]
    records = {f"{i:04}": {f"key {k}": rng.choice(values) for k in range(rng.randrange(4))} for i in range(1000)}
    V1Cache(records=records).write_metadata(path)
    expected: set[bytes] = set()
    for name, found in records.items():
        indices = [decode(raw).index for raw in found.values() if raw]
        if changes:
            indices += [f"chainid:chain {name}", f"blobchainid:blob chain {name}"]
        expected.update(f"{index}::{name}".encode() for index in indices if index)
    with MetadataDb.open(path) as database, open(tmp_path / "new.db", "w+b") as file:
        read = database.read()
        for record in read:
            record.changes = changes
            record.chain_id, record.blob_chain_id = f"chain {record.id}", f"blob chain {record.id}"
        database.write(file.fileno(), "new.db", Revision(read, {record.id: record for record in read}, tidy=True))
    with MetadataDb.open(tmp_path / "new.db") as database:
        assert list(database.index_entries()) == sorted(expected)
    assert len(expected) > 300
    assert check(tmp_path / "new.db").clean


def test_a_bucket_where_a_value_belongs_is_refused(path: Path) -> None:
    sample_cache().write_metadata(path)
    with Db.open(path, writable=True) as db, db.update() as tx:
        tx.create_path(b"_main", b"a", b"cache.parent")
    database = MetadataDb.open(path)
    with pytest.raises(RecordError, match=r"record a: key .cache\.parent. is a bucket"):
        database.read()
    database.close()


def test_values_in_the_index_are_kept_unless_an_entry_is_written_anew(path: Path, tmp_path: Path) -> None:
    cache = V1Cache(records={"a": {"k": value(1)}}, index=["plain::a"])
    cache.write_metadata(path)
    with Db.open(path, writable=True) as db, db.update() as tx:
        index = tx.path_bucket(b"_index")
        assert index is not None
        index.put(b"odd::a", b"content")
        index.put(b"chainid:c::a", b"content")
    database = MetadataDb.open(path)
    records = database.read()
    records[0].chain_id, records[0].blob_chain_id, records[0].changes = "c", "b", Changes.CHAIN
    fd = os.open(tmp_path / "new.db", os.O_RDWR | os.O_CREAT)
    database.write(fd, "new.db", revision(records))
    os.close(fd)
    database.close()
    with Db.open(tmp_path / "new.db") as db, db.view() as tx:
        found = tx.path_bucket(b"_index")
        assert found is not None
        assert dict(found.items()) == {b"blobchainid:b::a": b"", b"chainid:c::a": b"", b"odd::a": b"content", b"plain::a": b""}


def test_a_bucket_in_the_index_is_refused(path: Path, tmp_path: Path) -> None:
    cache = V1Cache(records={"a": {"k": value(1)}}, index=["plain::a"])
    cache.write_metadata(path)
    with Db.open(path, writable=True) as db, db.update() as tx:
        tx.create_path(b"_index", b"bucket")
    database = MetadataDb.open(path)
    records = database.read()
    records[0].chain_id, records[0].blob_chain_id, records[0].changes = "c", "b", Changes.CHAIN
    fd = os.open(tmp_path / "new.db", os.O_RDWR | os.O_CREAT)
    with pytest.raises(CorruptDatabaseError, match="_index holds a bucket named b'bucket'"):
        database.write(fd, "new.db", revision(records))
    os.close(fd)
    database.close()


@pytest.mark.parametrize("count", [0, 1, 4096, 4097, 50_000])
def test_sorting_in_steps(count: int) -> None:
    items = [digest(str(i)).encode() for i in range(count)]
    assert list(sorted_in_steps(items)) == sorted(items)
