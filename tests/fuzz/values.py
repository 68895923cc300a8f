"""Targets: values of records, and whole databases of records through a migration."""

from __future__ import annotations

import json
import random

import anyio

from asyncmig.bolt import Db, check
from asyncmig.buildkit import gojson
from asyncmig.buildkit.gojson import GoJSONError
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.errors import AsyncmigError
from asyncmig.migration.decisions import Policy
from asyncmig.migration.semantics import HARDENED, UPSTREAM
from tests.buildkit.test_gojson import VALUES
from tests.caches import V1Cache, digest, migrate_with, sample_cache, value
from tests.fuzz.files import directory
from tests.fuzz.source import Source
from tests.interop.test_gojson_interop import SEEDS

WORDS = (
    b'{"value":', b'"index":', b'"Blobsum":', b'"DiffID":', b'{"', b'":"', b'"}', b",", b":", b"[", b"]", b"{", b"}",
    b"null", b"true",
    b"false", b"-", b"0", b"1e5", b"NaN", b"Infinity", b"\\u", b"\\ud800", b"\\udc00", b"\\\\", b'\\"', b"\xff",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80", b"\xc5\xbf", b"\xe2\x84\xaa", b"\n", b"\0", b"sha256:", b"[" * 30, b'{"a":' * 20, b"9" * 30,
)  # fmt: skip


def json_value(data: bytes) -> None:
    """The short ways to read a value say what the long one does, and what is written again is the same."""
    try:
        decoded = gojson.decode(data)
    except GoJSONError as error:
        assert str(error)
        _refused(data)
        return
    gojson.validate(data)
    text = gojson.decode_string(data)
    long_text = gojson.to_valid(decoded.value) if type(decoded.value) is str else ""
    assert text == long_text
    assert gojson.decode_index(data) == decoded.index
    assert gojson.decode_bool(data) is (decoded.value is True)
    _pair(data)
    again = gojson.encode_string(text, decoded.index)
    assert json.loads(again)["value"] == text
    assert gojson.decode(again) == gojson.Value(text, decoded.index)
    assert gojson.decode_string(again) == text
    lines = data.split(b"\n")
    assert gojson.are_usual([data]) <= (b"\n" not in data)
    assert gojson.are_usual(lines) == all(gojson.are_usual([line]) for line in lines)


def _refused(data: bytes) -> None:
    """What the long way refuses, all others do."""
    assert not data or not gojson.are_usual([data])
    for function in (gojson.validate, gojson.decode_string, gojson.decode_bool, _pair_error, gojson.decode_index):
        if not data and function is gojson.decode_index:
            continue  # a cleared key
        try:
            function(data)
        except GoJSONError:
            continue
        raise AssertionError(f"{function.__name__} takes what decode refuses")


def _pair_error(data: bytes) -> None:
    gojson.decode_string_pair(data, "Blobsum", "DiffID")


def _pair(data: bytes) -> None:
    """In the other order no short way is taken."""
    try:
        second, first = gojson.decode_string_pair(data, "DiffID", "Blobsum")
    except GoJSONError:
        try:
            gojson.decode_string_pair(data, "Blobsum", "DiffID")
        except GoJSONError:
            return
        raise AssertionError("a pair is taken one way and refused the other") from None
    assert gojson.decode_string_pair(data, "Blobsum", "DiffID") == (first, second)


def json_seeds() -> list[bytes]:
    return [*SEEDS, *VALUES]


# -- whole databases

_KEYS = [
    "cache.equalMutable", "cache.parent", "cache.blob", "cache.diffID", "cache.chainID", "cache.blobChainID", "cache.deleted",
    "blobmapping.blob", "cache.createdAt", "cache.committed", "cache.snapshot", "cache.mediatype", "cache.blobsize",
    "other", "\udcff",
]  # fmt: skip
_IDS = [
    "a",
    "b",
    "c",
    "d",
    "holder",
    "mutable",
    "holder-of-root",
    "mutable-root",
    "view",
    "new",
    "\udcff",
    "x" * 2000,
    "::",
    "e::f",
]


def cache_of(source: Source) -> V1Cache:
    """A sample cache with values put into some records, or records of its own."""
    cache = sample_cache()
    usual = [value(name) for name in _IDS if name.isascii()]
    usual += [value({"Blobsum": digest("blob a"), "DiffID": digest("diff a")}, "blobmap::x"), b"", value(None), value(True)]
    for _ in range(12):
        if source.is_empty:
            break
        record = cache.records.setdefault(source.pick(_IDS), {})
        key = source.pick(_KEYS).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        record[key] = source.pick(usual) if source.number() % 2 else source.text()
        if source.number() % 8 == 0:
            cache.index.append(source.text()[:64].decode("utf-8", "surrogateescape") or "::a")
    return cache


def metadata(data: bytes) -> None:
    """A migration of a cache with such values ends with a sound database, or an error of ours and nothing changed."""
    source = Source(data)
    options = source.number()
    semantics = HARDENED if options & 1 else UPSTREAM
    worker = directory() / "worker"
    worker.mkdir(exist_ok=True)
    for file in worker.iterdir():
        file.unlink()
    cache = cache_of(source)
    cache.write_metadata(worker / "metadata.db", page_size=1024)
    before = (worker / "metadata.db").read_bytes()
    stores = cache.in_memory()

    async def migrate() -> None:
        await migrate_with(worker, stores.stores(), semantics=semantics, policy=Policy(max_dropped=100))

    try:
        anyio.run(migrate, backend="trio" if options & 2 else "asyncio")
    except AsyncmigError:
        assert {file.name for file in worker.iterdir()} == {"metadata.db"}, "a migration that was refused left something"
        assert stores == cache.in_memory(), "a migration that was refused changed something"
        return
    finally:
        assert (worker / "metadata.db").read_bytes() == before
    new = worker / "metadata_v2.db"
    assert check(new).clean
    if semantics is HARDENED:
        _all_valid(new)


def _all_valid(new: object) -> None:
    with MetadataDb(Db.open(str(new))) as database:
        for record in database.read():
            assert isinstance(record.id, str)


def metadata_seeds() -> list[bytes]:
    r = random.Random(2)
    return [b"", b"\1", *(r.randbytes(r.choice([10, 30, 60])) for _ in range(20))]
