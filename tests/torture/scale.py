"""Caches with very much of one thing: depth, keys, bytes, records, letters of a name.

Each is migrated under both semantics, checked, and rolled back, in a process of its own, which tells how much of a processor's
time that took and how much memory: ``python -m tests.torture.scale WORKER SEMANTICS ROLLBACK``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio

import asyncmig
from asyncmig import AsyncmigError, Options
from asyncmig.bolt import BucketBuilder, BucketValue, build_file
from asyncmig.bolt.build import Fill
from asyncmig.stores.offline import codec
from asyncmig.stores.ports import Kind
from tests.caches import ROOT, TIME, digest, value
from tests.states import tree_state
from tests.torture.campaign import Campaign, Case

_STAMP = codec.encode_time(1_577_934_245_600_000_000)
_DATA = b"\x1f\x8b\x08 data"
_BLOB = digest(_DATA.decode("latin-1"))  # only a name; the store believes what it is told
_CREATED = value(1)
_LONGEST = 32768
_LONGEST_WITH_CHAIN = _LONGEST - len(f"blobchainid:{_BLOB}::")


# -- caches as streams: a million records as objects would be what the test measures


@dataclass(frozen=True, slots=True)
class Entry:
    """A record, and its snapshot if ``kind`` is given; names ascend, numbers of one length."""

    name: str
    values: Mapping[bytes, bytes]
    kind: Kind | None = Kind.COMMITTED
    parent: str = ""
    external: int = 0
    """Bytes of its value in ``_external``."""
    indexes: int = 0
    """Entries of the index that its values name."""


Entries = Callable[[], Iterable[Entry]]


def write(worker: Path, entries: Entries) -> None:
    """Lay the cache out as an OCI worker directory.  The names must ascend."""
    (worker / "snapshots").mkdir(parents=True, mode=0o700)
    blob = worker / "content" / "blobs" / _BLOB.replace(":", "/")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(_DATA)
    metadata: dict[bytes, Fill] = {b"_main": partial(_fill_main, entries=entries)}
    if any(entry.external for entry in entries()):
        metadata[b"_external"] = partial(_fill_external, entries=entries)
    if any(entry.indexes for entry in entries()):
        metadata[b"_index"] = partial(_fill_index, entries=entries)
    _create(worker / "metadata.db", metadata)
    _create(worker / "containerdmeta.db", {b"v1": partial(_fill_containerd, entries=entries)})
    _create(worker / "snapshots" / "metadata.db", {b"v1": partial(_fill_backend, entries=entries)})


def _create(path: Path, fills: Mapping[bytes, Fill]) -> None:
    with path.open("x+b") as file:
        build_file(file.fileno(), str(path), fills)
    path.chmod(0o600)


def _leaf(builder: BucketBuilder, values: Mapping[bytes, bytes]) -> BucketValue:
    names = sorted(values)
    return builder.leaf_bucket(names, [values[name] for name in names], 0)


def _fill_main(builder: BucketBuilder, entries: Entries) -> None:
    for entry in entries():
        builder.put(codec.to_bytes(entry.name), _leaf(builder, entry.values))


def _fill_external(builder: BucketBuilder, entries: Entries) -> None:
    for entry in entries():
        if entry.external:
            content = {b"buildkit.contenthash.v0": os.urandom(1024) * (entry.external // 1024)}
            builder.put(codec.to_bytes(entry.name), _leaf(builder, content))


def _fill_index(builder: BucketBuilder, entries: Entries) -> None:
    for entry in entries():
        for i in range(entry.indexes):
            builder.put(f"index {i:09}::{entry.name}".encode(), b"")


def _snapshots(entries: Entries) -> Iterator[tuple[int, Entry, bytes]]:
    for number, entry in enumerate((entry for entry in entries() if entry.kind), 1):
        # containerd's would end in the name; one of 32 KiB would not fit then.
        yield number, entry, b"buildkit/%09d/x" % number


def _labels(builder: BucketBuilder) -> BucketValue:
    return _leaf(builder, {ROOT.encode(): TIME.encode()})


def _fill_containerd(builder: BucketBuilder, entries: Entries) -> None:
    space = builder.child()
    content, blobs = space.child(), space.child()
    size = codec.encode_varint(len(_DATA))
    times = {b"createdat": _STAMP, b"updatedat": _STAMP}
    blobs.put(_BLOB.encode(), _leaf(blobs, {**times, b"labels": _labels(blobs), b"size": size}))
    content.put(b"blob", blobs.finish())
    space.put(b"content", content.finish())
    snapshots, here = space.child(), space.child()
    for _, entry, name in _snapshots(entries):
        fields = {**times, b"labels": _labels(here), b"name": name}
        if entry.parent:
            fields[b"parent"] = codec.to_bytes(entry.parent)
        here.put(codec.to_bytes(entry.name), _leaf(here, fields))
    snapshots.put(b"overlayfs", here.finish())
    space.put(b"snapshots", snapshots.finish())
    builder.put(b"buildkit", space.finish())
    builder.put(b"version", codec.encode_varint(3))


def _fill_backend(builder: BucketBuilder, entries: Entries) -> None:
    here = builder.child()
    for number, entry, name in _snapshots(entries):
        assert entry.kind is not None
        fields = {b"createdat": _STAMP, b"updatedat": _STAMP, b"id": codec.encode_uvarint(number)}
        here.put(name, _leaf(here, {**fields, b"kind": bytes([entry.kind.value])}))
    builder.put(b"snapshots", here.finish())


# -- the shapes


def layer(name: str, parent: str = "", *, blob: bool = True) -> Entry:
    """A finalised record."""
    values = {b"cache.createdAt": _CREATED, b"cache.equalMutable": b""}
    if blob:
        values[b"blobmapping.blob"] = value({"Blobsum": _BLOB, "DiffID": digest(name[:100])})
    return Entry(name, values, parent=parent)


def chain(count: int) -> Iterator[Entry]:
    """Layers, each on the one before; in the order of their names the last one comes first."""
    for i in range(count):
        yield layer(f"l{i:09}", f"l{i + 1:09}" if i + 1 < count else "")


def chain_without_blobs(count: int) -> Iterator[Entry]:
    """The same with nothing that could have a chain ID, the first one first."""
    for i in range(count):
        yield layer(f"l{i:09}", f"l{i - 1:09}" if i else "", blob=False)


def holders(count: int) -> Iterator[Entry]:
    """Records that are not finalised, each of which names the one before as the owner of its data; the last one comes first."""
    yield layer("base", blob=False)
    for i in range(count):
        owner = f"h{i + 1:09}" if i + 1 < count else "mutable"
        yield Entry(f"h{i:09}", {b"cache.equalMutable": value(owner)}, None)
    yield Entry("mutable", {b"cache.createdAt": _CREATED}, Kind.ACTIVE, "base")


def keys(count: int) -> Iterator[Entry]:
    """One record with so many keys, each of them with an index."""
    fields = {b"key %09d" % i: value("x", f"index {i:09}") for i in range(count)}
    for name in ("a", "b"):
        plain = layer(name, "a" if name == "b" else "")
        yield replace(plain, values={**plain.values, **fields}, indexes=count) if name == "b" else plain


def external(count: int) -> Iterator[Entry]:
    """One record with an external value of so many bytes, among small ones."""
    for name, size in (("a", 1024), ("b", count), ("c", 1024)):
        yield replace(layer(name), external=size)


def external_beside_a_dropped_one(count: int) -> Iterator[Entry]:
    """The same where a record goes, and its external value with it."""
    for entry in external(count):
        yield replace(entry, kind=None) if entry.name == "a" else entry


def tiny(count: int) -> Iterator[Entry]:
    """Records with next to nothing in them."""
    fields = {b"cache.createdAt": _CREATED}
    for i in range(count):
        yield Entry(f"{i:09}", fields)


def long_ids(count: int, length: int, *, blob: bool) -> Iterator[Entry]:
    """Layers with names of this length, each on the one before."""
    before = ""
    for i in range(count):
        entry = layer(f"{i:09}".ljust(length, "x"), before, blob=blob)
        before = entry.name
        yield entry


def long_owner(count: int) -> Iterator[Entry]:
    """Records that are not finalised, and their owners, all with the longest names."""
    for i in range(count):
        owner = f"{i:09}m".ljust(_LONGEST, "x")
        yield Entry(f"{i:09}h".ljust(_LONGEST, "x"), {b"cache.equalMutable": value(owner)}, None)
        yield Entry(owner, {b"cache.createdAt": _CREATED}, Kind.ACTIVE)


@dataclass(frozen=True, slots=True)
class Shape:
    """``make`` makes it from a count, ``full`` and ``few`` are counts; each is tried with half of it as well.

    ``refused`` is what the message of the error has in it, where there is to be one, by semantics.
    """

    name: str
    make: Callable[[int], Iterable[Entry]]
    full: int
    few: int
    per_thousand: float
    """Megabytes of memory that each thousand may take, beside those that it takes for nothing."""
    seconds_per_thousand: float
    """Seconds of a processor's time that each thousand may take."""
    refused: Mapping[str, str] | None = None
    dropped: int = 0
    """How many records hardened semantics drop."""
    alone: bool = False
    """Too large to be tried by halves, to be rolled back, or under both semantics: it takes minutes as it is."""

    @property
    def semantics_of_few(self) -> tuple[str, ...]:
        """Upstream's only where it goes its own way: each case is a process, and ``make test`` has little time."""
        return ("hardened", "upstream") if self.refused or self.make in (chain, holders) else ("hardened",)


_TOO_LONG = "its index entry would be 32769 bytes long"
SHAPES = (
    Shape("chain", chain, 100_000, 500, 4, 4.0),
    Shape("chain without blobs", chain_without_blobs, 20_000, 500, 4, 4.0),
    Shape("holders", holders, 100_000, 2000, 4, 4.0),
    Shape("keys of one record", keys, 10_000, 10_000, 4, 1.0),
    Shape("external value", external, 100 * 1024 * 1024, 8 * 1024 * 1024, 0.003, 0.0003),
    Shape(
        "external value beside a dropped one",
        external_beside_a_dropped_one,
        100 * 1024 * 1024,
        8 * 1024 * 1024,
        0.003,
        0.0003,
        {"upstream": "its snapshot does not exist"},
        1,
    ),
    Shape("tiny records", tiny, 20_000, 500, 3, 4.0),
    Shape("longest names", partial(long_ids, length=_LONGEST, blob=False), 2000, 20, 1500, 40.0),
    Shape("longest names of layers", partial(long_ids, length=_LONGEST_WITH_CHAIN, blob=True), 2000, 20, 1500, 40.0),
    Shape(
        "names too long for layers",
        partial(long_ids, length=_LONGEST_WITH_CHAIN + 1, blob=True),
        200,
        100,
        1500,
        10.0,
        {"upstream": _TOO_LONG},
    ),
    Shape("longest names of holders", long_owner, 1000, 20, 3000, 40.0),
    Shape("a million tiny records", tiny, 1_000_000, 100, 2, 1.0, alone=True),
)


# -- the campaign


class Scale(Campaign):
    """All shapes, under both semantics."""

    name = "scale"
    unit = "caches"
    full = 4 * len(SHAPES)
    few = len(SHAPES)

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """All of them, each once in half of its size; small ones where few are asked for.  The seed changes nothing."""
        is_full = count > self.few
        for shape in SHAPES:
            size = shape.full if is_full else shape.few
            for semantics in ("hardened", "upstream") if is_full else shape.semantics_of_few:
                if not shape.alone or (is_full and semantics == "hardened"):
                    yield Case(
                        f"{shape.name}, {semantics}",
                        partial(try_shape, directory, shape, size, semantics, is_full),
                        1 + is_full,
                    )


@dataclass(frozen=True, slots=True)
class Result:
    """What a process has told."""

    seconds: float
    megabytes: float
    error: str
    records: int
    dropped: int
    findings: list[str]
    rolled_back: bool


def try_shape(directory: Path, shape: Shape, size: int, semantics: str, is_full: bool) -> None:
    """Half of it, in a long run, and all of it: both must be right, and take no more than their share.

    Of time, too, in a long run; ``make test`` says nothing about the machine.
    """
    half = _try_size(directory, shape, size // 2, semantics) if is_full and not shape.alone else None
    whole = _try_size(directory, shape, size, semantics)
    for result, count in ((half, size // 2), (whole, size)):
        if result is not None:
            most = 100 + shape.per_thousand * count / 1000
            assert result.megabytes < most, f"{count}: {result.megabytes:.0f} MB, more than {most:.0f}"
            longest = 10 + shape.seconds_per_thousand * count / 1000
            assert not is_full or result.seconds < longest, f"{count}: {result.seconds:.1f} s, more than {longest:.0f}"
    if half is not None:
        # Twice as much, and what a busy machine adds; four times would be what grows with the square.
        longest = 3 * half.seconds + 2
        assert whole.seconds < longest, f"{size}: {whole.seconds:.1f} s, and half of it {half.seconds:.1f} s"


def _try_size(directory: Path, shape: Shape, count: int, semantics: str) -> Result:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        worker = Path(place) / "runc-overlayfs"
        write(worker, lambda: shape.make(count))
        rollback = "" if shape.alone else "rollback"
        arguments = [sys.executable, "-m", "tests.torture.scale", str(worker), semantics, rollback]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = Result(**json.loads(done.stdout))
        expected = (shape.refused or {}).get(semantics)
        if expected:
            assert expected in result.error, result.error
        else:
            assert not result.error, result.error
            dropped = shape.dropped if semantics == "hardened" else 0
            assert (result.records, result.dropped) == (sum(1 for _ in shape.make(count)) - dropped, dropped)
            assert not result.findings, f"the migrated cache has findings: {result.findings}"
            assert result.rolled_back or shape.alone, "it could not be rolled back"
        return result


def _main() -> None:
    worker, semantics, rollback = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    before = tree_state(worker) if _is_small(worker) else None
    result = Result(0, 0, "", 0, 0, [], rolled_back=False)
    try:
        report = anyio.run(asyncmig.migrate, worker, _OPTIONS[semantics])
        result = replace(result, records=report.counts.records, dropped=report.counts.dropped)
        found = anyio.run(asyncmig.verify, worker)
        # Upstream's result lacks the sizes, and has other such defects; docs/differences.md.
        codes = {finding.code for finding in found.findings} - (_OF_UPSTREAM if semantics == "upstream" else set())
        codes.discard("directories-missing")  # they would cost more than all the rest
        result = replace(result, findings=sorted(codes))
        if rollback:
            result = replace(result, rolled_back=anyio.run(asyncmig.rollback, worker).outcome is asyncmig.Outcome.ROLLED_BACK)
    except AsyncmigError as error:
        result = replace(result, error=str(error)[-2000:])
        assert before is None or tree_state(worker) == before, "refused, and something was changed"
    seconds = time.process_time()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({name: getattr(replace(result, seconds=seconds, megabytes=peak), name) for name in Result.__slots__}))


_OPTIONS = {"hardened": Options(max_dropped=100), "upstream": Options(semantics="upstream")}
_OF_UPSTREAM = {"size-missing", "media-type-wrong", "lease-surplus", "chain-bogus"}


def _is_small(worker: Path) -> bool:
    return sum(path.stat().st_size for path in worker.rglob("*") if path.is_file()) < 10_000_000


if __name__ == "__main__":
    _main()
