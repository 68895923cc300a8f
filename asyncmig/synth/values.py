"""The values that BuildKit stores for a record in ``metadata.db``."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache

from asyncmig.buildkit import keys
from asyncmig.buildkit.gojson import encode_string, quote
from asyncmig.synth.layers import digest_of
from asyncmig.synth.records import Kind, Record, Source

CONTENT_HASH = b"buildkit.contenthash.v0"

_COMMANDS = (
    "apt-get update && apt-get install -y pkg-{0}",
    "echo step {1}.{2} && cat src/*.c | md5sum > /out/s{2}",
    "mkdir -p /deps && cat go.mod > /deps/lock && date >> /cache/mod/log{0}",
    "make -j4 -C /src target-{0} 2>&1 | tee /out/log",
    "cp /ctx/app-{0}.conf /out/ && echo hi >> /cache/build/x",
    "python -m pip install -r requirements-{0}.txt",
    "sort < /in/{0} > /out/{0}",
)
_RETAIN = b'{"value":1}'
_RECORD_TYPES = {
    Source.LOCAL: "source.local",
    Source.GIT: "source.git.checkout",
    Source.CACHE_MOUNT: "exec.cachemount",
}
_SECOND = 1_000_000_000

Values = dict[bytes, bytes]


def record_values(record: Record, started: int) -> tuple[Values, list[bytes]]:
    """Keys and values of a record, and the names under which the index lists it."""
    values = _common(record, started)
    index: list[bytes] = []
    _SPECIFIC[record.kind](record, values, index)
    return values, index


def _common(record: Record, started: int) -> Values:
    values = {
        b"cache.createdAt": b'{"value":%d}' % record.created,
        b"cache.description": encode_string(_description(record.target or record)),
    }
    detail = record.detail
    if detail % 64 or record.kind is Kind.PULLED:  # the others' daemon was killed before this
        used = record.created + (detail >> 4) % (started - record.created)
        count = 1 + (detail >> 12) % (120 if record.kind is Kind.PULLED else 4)
        values[b"cache.lastUsedAt"] = b'{"value":%d}' % used
        values[b"cache.usageCount"] = b'{"value":%d}' % count
    return values


def _description(record: Record) -> str:
    return _DESCRIPTIONS[record.source](record)


def _image(record: Record) -> str:
    if record.blob and not record.blob.references:
        return f"imported {record.blob.digest.decode()}"
    return f"pulled from library/app-{record.group}:latest"


def _number(record: Record) -> int:
    return (record.detail >> 20) % 5000


def _command(record: Record) -> str:
    template = _COMMANDS[(record.detail >> 36) % len(_COMMANDS)]
    return template.format(_number(record), record.group, record.depth)


def _repository(record: Record) -> str:
    return f"git://git.example/team/repo-{_number(record)}.git"


def _local_name(record: Record) -> str:
    return ("context", "dockerfile", "src")[record.detail % 3]


_DESCRIPTIONS: dict[Source, Callable[[Record], str]] = {
    Source.IMAGE: _image,
    Source.EXEC: lambda record: f"mount / from exec /bin/sh -c {_command(record)}",
    Source.FILE: lambda _: "fileop target",
    Source.HTTP: lambda record: f"http url http://files.example/pkg-{_number(record)}.tar",
    Source.GIT: lambda record: f"git snapshot for {_repository(record)}#master",
    Source.GIT_REPOSITORY: lambda record: f"shared git repo for {_repository(record)}",
    Source.LOCAL: lambda record: f"local source for {_local_name(record)}",
    Source.CACHE_MOUNT: lambda record: f"cached mount /cache/mod{_number(record)} from exec /bin/sh -c {_command(record)}",
}


# -- values that depend on the kind


def _pulled(record: Record, values: Values, index: list[bytes]) -> None:
    _add_blob(record, values, index)
    _add_size(record, values)
    if record.blob and not record.blob.references:
        values[b"cache.cachePolicy"] = _RETAIN


def _committed(record: Record, values: Values, index: list[bytes]) -> None:
    values[keys.EQUAL_MUTABLE] = b""  # cleared when it was finalised
    values[b"cache.cachePolicy"] = _RETAIN
    _add_blob(record, values, index)
    _add_size(record, values)
    _add_download(record, values, index)


def _holder(record: Record, values: Values, index: list[bytes]) -> None:
    assert record.target is not None
    values[keys.EQUAL_MUTABLE] = b'{"value":"%s"}' % record.target.id
    if record.source not in (Source.LOCAL, Source.CACHE_MOUNT, Source.GIT_REPOSITORY):
        values[b"cache.cachePolicy"] = _RETAIN
    _add_size(record.target, values)
    _add_download(record, values, index)


def _mutable(record: Record, values: Values, index: list[bytes]) -> None:
    if record.source not in (Source.EXEC, Source.GIT, Source.HTTP):
        values[b"cache.cachePolicy"] = _RETAIN
    if record.source in _RECORD_TYPES:
        values[b"cache.recordType"] = encode_string(_RECORD_TYPES[record.source])
    if record.source is Source.LOCAL:
        name = _local_name(record)
        hint = f"{name}-.dockerignore" if record.detail >> 2 & 1 else name
        client = f"{(record.detail >> 28) % 100_000:05x}" if record.detail >> 3 & 3 else ""
        _add_named(f"local.sharedKey:{name}:{hint}:{client}", values, index)
    elif record.source is Source.CACHE_MOUNT:
        parent = f":{record.parent.id.decode()}" if record.parent else ""
        _add_named(f"cache-dir:/mod{_number(record)}{parent}", values, index)
    elif record.source is Source.GIT_REPOSITORY:
        _add_indexed(b"git-remote", f"git-remote::{_repository(record)}", values, index)


_SPECIFIC = {Kind.PULLED: _pulled, Kind.COMMITTED: _committed, Kind.HOLDER: _holder, Kind.MUTABLE: _mutable}


def _add_blob(record: Record, values: Values, index: list[bytes]) -> None:
    blob = record.blob
    if blob:
        name = b"blobmap::" + blob.digest
        pair = (blob.digest, blob.diff_id, name)
        values[keys.BLOB_MAPPING] = b'{"value":{"Blobsum":"%s","DiffID":"%s"},"index":"%s"}' % pair
        index.append(name)


def _add_size(record: Record, values: Values) -> None:
    values[b"snapshot.size"] = b'{"value":%d}' % (record.size + (record.blob.size if record.blob else 0))


def _add_download(record: Record, values: Values, index: list[bytes]) -> None:
    """Add the values that spare a later build fetching the source again."""
    of = record.target or record
    if of.source is Source.GIT:
        commit = digest_of(b"%d" % of.detail)[-40:].decode()
        _add_indexed(b"git-snapshot", f"git-snapshot::{commit}:{'' if of.detail & 1 else 'sub'}", values, index)
    elif of.source is Source.HTTP:
        name = digest_of(b"url %d" % _number(of)).decode()
        text = quote(digest_of(b"file %d" % of.detail).decode())
        values[b"http.checksum"] = f'{{"value":{text},"index":"{name}"}}'.encode()
        values[b"http.modtime"] = encode_string(formatdate(of.created // _SECOND, usegmt=True))
        values[b"etag"] = encode_string(f'"{of.detail & 0xFFFFFF:06x}"')
        index.append(name.encode())


def _add_named(key: str, values: Values, index: list[bytes]) -> None:
    """Add a value that is its own key and index."""
    _add_indexed(key.encode(), key, values, index)


def _add_indexed(key: bytes, text: str, values: Values, index: list[bytes]) -> None:
    values[key] = encode_string(text, text)
    index.append(text.encode())


# -- checksums of a record's files

_MOST_FILES = 230
_POOL = 4096


def content_hash(record: Record) -> bytes:
    """The record's value in ``_external``: checksums of its files as protobuf; empty for three of four records."""
    if record.kind is Kind.MUTABLE or (record.detail >> 40) % 100 >= 32:
        return b""
    chance = (record.detail >> 48) / 65536
    for _ in range(4):  # a few records have many files, most have very few
        chance *= chance
    first = record.detail % (_POOL - _MOST_FILES)
    size, pool = _file_pool()
    files = pool[first * size : (first + 1 + int(chance * _MOST_FILES)) * size]
    return _entry(b"", digest_of(files), 1) + _entry(b"\0", digest_of(b""), 2) + files


@lru_cache(maxsize=1)
def _file_pool() -> tuple[int, bytes]:
    """The size of an entry, and the entries of files in order; any part of this sequence makes a directory."""
    entries = [_entry(b"\0src-%04d.c" % i, digest_of(b"file %d" % i), 0) for i in range(_POOL)]
    return len(entries[0]), b"".join(entries)


def _entry(path: bytes, digest: bytes, kind: int) -> bytes:
    """A ``CacheRecordWithPath`` (moby/buildkit ``cache/contenthash/checksum.proto``) as a field of ``CacheRecords``."""
    record = b"\x0a" + bytes([len(digest)]) + digest + (b"\x10" + bytes([kind]) if kind else b"")
    entry = (b"\x0a" + bytes([len(path)]) + path if path else b"") + b"\x12" + bytes([len(record)]) + record
    return b"\x0a" + bytes([len(entry)]) + entry
