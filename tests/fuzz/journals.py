"""Target: the journal, which a later run trusts."""

from __future__ import annotations

import json
import random

import anyio

from asyncmig.errors import AsyncmigError, DatabaseError
from asyncmig.migration.completion import complete
from asyncmig.migration.journal import Journal, JournalFile
from asyncmig.migration.report import Outcome
from asyncmig.migration.rollback import Rollback
from asyncmig.stores.memory import MemoryStores
from asyncmig.stores.ports import Resource
from tests.caches import ROOT, TIME, marked_cache, new_reporter
from tests.fuzz.files import directory
from tests.fuzz.source import Source

MADE = 0xFE
"""First byte of an input that is no text but says what to make one of."""

WORDS = (
    b'["lease", ', b'["foreign", ', b'["snapshot", ', b'["blob", ', b'["end"]', b'["complete"]', b'["rolling back"]',
    b"null", b"[[",
    b"]]", b"{}", b"[]", b"1", b"1.5", b"true", b'"a"', b'"b"', b'", "', b"\n", b'"\\ud800"', b'"\\u0000"', b"[" * 30,
    b"[" * 2000,
    b'{"asyncmig_journal": 3', b'"semantics": ', b'"leases": ', b'"is_complete": ', b'"v1": ', b"NaN", b"9" * 30, b"\xff",
    b"\xef\xbb\xbf",
)  # fmt: skip


_TEXTS: list[object] = ["a", "b", "c", "view", "somebody", "sha256:00", TIME, "", "\udcff", "\u2028", "x" * 500]
_HELD: list[object] = [None, [], [["snapshots/overlayfs", "c"]], [["content", "a"], ["content", "b"]], [["", ""]]]
_ODD: list[object] = [5, -1.5, True, None, [], {}, ["a"], [["a"]], [[5, "a"]], {"a": "b"}, "\ud800", [["a", "b", "c"]], "ab"]
_KINDS: list[tuple[str, list[list[object]]]] = [
    ("lease", [_TEXTS, _HELD]),
    ("foreign", [_TEXTS]),
    ("snapshot", [_TEXTS, _TEXTS]),
    ("blob", [_TEXTS, _TEXTS]),
]


def bytes_of(data: bytes) -> bytes:
    """The journal that an input stands for: itself, or lines made of pieces, few of which are odd."""
    if data[:1] != bytes([MADE]):
        return data
    source = Source(data[1:])
    names = ("semantics", "namespace", "snapshotter", "place", "v1", "v2")
    lines: list[object] = [{"asyncmig_journal": 3, **{name: _piece(source, _TEXTS) for name in names}}]
    while not source.is_empty:
        kind, arguments = source.pick(_KINDS)
        lines.append([kind, *(_piece(source, texts) for texts in arguments)])
    lines += [["end"], ["complete"]][: 1 + source.number() % 2]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _piece(source: Source, usual: list[object]) -> object:
    return source.pick(_ODD if source.number() > 250 else usual)


def journal(data: bytes) -> None:
    """A journal, or an error that names the file; and one that is read is fit to be used."""
    target = str(directory() / "v2")
    file = JournalFile(target)
    with open(file.path, "wb") as out:
        out.write(bytes_of(data))
    try:
        found = file.read()
    except DatabaseError as error:
        assert file.path in str(error)
        return
    assert found is not None
    _check_types(found)
    file.write(found)
    assert file.read() == _unfinished(found), "it is not what was written"
    _use(found, file, target)


def _unfinished(found: Journal) -> Journal:
    """Without what is appended later."""
    return Journal(
        found.semantics, found.namespace, found.snapshotter, found.place, found.v1, found.v2,
        found.leases, found.foreign, found.snapshots, found.blobs,
    )  # fmt: skip


def _check_types(found: Journal) -> None:
    texts = [found.semantics, found.namespace, found.snapshotter, found.v1, found.v2, *found.foreign, *found.leases]
    for roots in (found.snapshots, found.blobs):
        assert type(roots) is dict
        texts += [*roots, *roots.values()]
    assert type(found.leases) is dict
    assert type(found.foreign) is set
    for held in found.leases.values():
        if held is not None:
            assert type(held) is tuple
            for resource in held:
                assert type(resource) is Resource
                texts += [resource.type, resource.id]
    assert all(type(text) is str and text.encode("utf-8", "surrogateescape") is not None for text in texts)
    assert type(found.is_complete) is bool
    assert type(found.is_rolling_back) is bool


def _use(found: Journal, file: JournalFile, target: str) -> None:
    """Complete and roll back by it: what it does not name stays."""
    cache = marked_cache()
    for run in (_complete, _rollback):
        state = cache.in_memory()
        try:
            anyio.run(run, found, file, target, state)
        except AsyncmigError:
            continue
        finally:
            _check_unharmed(found, cache.in_memory(), state)


async def _complete(found: Journal, file: JournalFile, _: str, state: MemoryStores) -> None:
    await complete(found, file, state.stores(), new_reporter("", Outcome.COMPLETED))


async def _rollback(found: Journal, _: JournalFile, target: str, state: MemoryStores) -> None:
    await Rollback(found, target, state.stores(), new_reporter("", Outcome.ROLLED_BACK)).run()


def _check_unharmed(found: Journal, before: MemoryStores, state: MemoryStores) -> None:
    for lease, held in before.leases.items():
        if lease not in found.leases:
            assert state.leases[lease] == held
    for name, snapshot in before.snapshots.items():
        if name not in found.snapshots:
            assert state.snapshots[name] == snapshot
    for name, blob in before.blobs.items():
        if name not in found.blobs:
            assert state.blobs[name] == blob


def seeds() -> list[bytes]:
    full = Journal(
        "hardened", "buildkit", "overlayfs", "", "1-aa", "2-bb",
        leases={"a": None, "b": (Resource("snapshots/overlayfs", "c"),), "c": ()},
        foreign={"somebody"},
        snapshots={"a": TIME, "view": TIME},
        blobs={"sha256:00": TIME, ROOT: ""},
    )  # fmt: skip
    text = "".join(f"{line}\n" for line in full.lines()).encode()
    empty = "".join(f"{line}\n" for line in Journal("upstream", "", "", "", "", "").lines()).encode()
    noted = [text + b'\n["complete"]\n', text + b'\n["rolling back"]\n["com']
    r = random.Random(5)
    made = [bytes([MADE]) + bytes(10) + r.randbytes(r.choice([0, 6, 30, 90])).replace(b"\xff", b"\0") for _ in range(40)]
    return [*made, text, *noted, empty, b"", b"\n", b"{}\n", text[:-8], b"[]", b"1"]
