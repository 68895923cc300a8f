"""What a migration was about to change, written down before it changes anything.

The journal lies beside the new database and stays there when the migration is complete.  Three kinds of later runs need it:

* one after an interruption: which leases were there before, and which ones did the interrupted run make?  (Over single calls a
  lease is first created and then filled.  ``upstream`` semantics leave alone what was there, and half-made ones of our own must
  not be taken for it.)  Which labels are still to go, if the new database is published already?
* a rollback: which leases are ours, and what were the labels?
* a later look: has a daemon changed either database since?

Format: JSON lines in ASCII.  The first one is the head; then one a lease, snapshot and blob; last comes the mark of its end.
Lines that are appended later say how far it went.  Reading takes memory for the whole of it, about 300 bytes a record.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from asyncmig.bolt import Checkpoint, PageFile, content_digest
from asyncmig.bolt.files import close, status, sync_all, sync_directory
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.concurrency import stepping
from asyncmig.errors import DatabaseError, UncertainCommitError, reason
from asyncmig.layouts.paths import open_to_read
from asyncmig.stores.ports import Resource

VERSION = 3

Resources = tuple[Resource, ...]


@dataclass(slots=True)
class Journal:
    """The content of a journal.

    ``place`` says where the stores were: the socket of a running containerd, the root directory of a stopped one, or "" for the
    worker directory itself.  ``v1`` and ``v2`` are fingerprints of the databases as the migration found and made them.
    ``leases`` are those that the migration makes or completes: what each held before, ``None`` for one that was not there.
    ``foreign`` are those that were there and are left alone.  ``snapshots`` and ``blobs`` have the labels that go.
    """

    semantics: str
    namespace: str
    snapshotter: str
    place: str
    v1: str
    v2: str
    leases: dict[str, Resources | None] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    snapshots: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, str] = field(default_factory=dict)
    is_complete: bool = False
    """All labels are gone and the new database is published: nothing is left to do."""
    is_rolling_back: bool = False
    """A rollback has begun."""

    def is_ours(self, lease_id: str) -> bool:
        """Whether a lease that exists now is the work of the run that wrote this: that run did not find it."""
        return lease_id not in self.foreign and self.leases.get(lease_id) is None

    def held_before(self, lease_id: str, now: Resources) -> Resources:
        """What a lease that was found already held before the first run; ``now`` is what it holds now."""
        before = self.leases.get(lease_id)
        return now if before is None else before

    def take_over(self, earlier: Journal) -> None:
        """Take what an earlier, interrupted run has noted for what was there: it saw it before anything had changed."""
        for ours, theirs in ((self.snapshots, earlier.snapshots), (self.blobs, earlier.blobs)):
            for name, label in theirs.items():
                ours[name] = label
        for lease_id, before in earlier.leases.items():
            self.leases.setdefault(lease_id, before)

    def lines(self) -> Iterator[str]:
        """The journal as it is written."""
        yield json.dumps({"asyncmig_journal": VERSION, **{name: getattr(self, name) for name in _HEAD}})
        # Put together here, because json.dumps() takes five times as long.
        for lease_id, before in self.leases.items():
            held = "null" if before is None else json.dumps([[resource.type, resource.id] for resource in before])
            yield f'["lease", {_quoted(lease_id)}, {held}]'
        for lease_id in self.foreign:
            yield f'["foreign", {_quoted(lease_id)}]'
        for kind, roots in (("snapshot", self.snapshots), ("blob", self.blobs)):
            for name, label in roots.items():
                yield f'["{kind}", {_quoted(name)}, {_quoted(label)}]'
        yield json.dumps(["end"])


class JournalFile:
    """The journal's file, beside the v2 database ``target``.  All methods block, and raise :class:`DatabaseError`."""

    def __init__(self, target: str) -> None:
        self.path = target + ".journal"

    def read(self, checkpoint: Checkpoint = no_checkpoint) -> Journal | None:
        """The journal; ``None`` if there is none."""
        try:
            with open(open_to_read(self.path), encoding="ascii") as file:
                return _parse(file, checkpoint)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatabaseError(self.path, f"cannot read: {reason(error)}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            cause = (
                "this is no journal, or another version of asyncmig wrote it; complete the migration with the "
                "version that began it"
            )
            raise DatabaseError(self.path, cause) from error

    def write(self, journal: Journal, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Write it, durably, in place of an earlier one."""
        temporary = self.path + ".tmp"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "w", encoding="ascii") as file:
                    file.writelines(f"{line}\n" for line in stepping(checkpoint, journal.lines()))
                    file.flush()
                    sync_all(fd, temporary)
                os.rename(temporary, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise DatabaseError(self.path, f"cannot write: {reason(error)}") from error
        sync_directory(os.path.dirname(self.path))

    def note_complete(self) -> None:
        """Note, durably, that nothing is left to do."""
        self._append("complete")

    def note_rollback(self) -> None:
        """Note, durably, that a rollback has begun."""
        self._append("rolling back")

    def remove(self) -> None:
        """Remove it, durably."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DatabaseError(self.path, f"cannot remove: {reason(error)}") from error
        sync_directory(os.path.dirname(self.path))

    def _append(self, what: str) -> None:
        # After a line that a power cut has torn, this one must not be a part of it.
        line = f"\n{json.dumps([what])}\n".encode()
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DatabaseError(self.path, f"cannot write: {reason(error)}") from error
        try:
            self._append_line(fd, line)
        finally:
            close(fd)

    def _append_line(self, fd: int, line: bytes) -> None:
        """Raises :class:`UncertainCommitError` where what was written in vain can't be taken back."""
        size = status(fd, self.path).st_size
        try:
            while line:
                line = line[os.write(fd, line) :]
        except OSError as error:
            cause = f"cannot write: {reason(error)}"
            try:
                os.ftruncate(fd, size)
            except OSError:
                raise UncertainCommitError(self.path, cause) from error
            raise DatabaseError(self.path, cause) from error
        try:
            sync_all(fd, self.path)
        except DatabaseError as error:
            raise UncertainCommitError(self.path, error.cause) from error


_HEAD = ("semantics", "namespace", "snapshotter", "place", "v1", "v2")


def _parse(file: Iterator[str], checkpoint: Checkpoint) -> Journal:
    head = json.loads(next(file, ""))
    if type(head) is not dict or head.pop("asyncmig_journal", None) != VERSION:
        raise ValueError("another version")
    if set(head) != set(_HEAD):
        raise ValueError("another head")
    semantics, namespace, snapshotter, place, v1, v2 = (_text(head[name]) for name in _HEAD)
    journal = Journal(semantics, namespace, snapshotter, place, v1, v2)
    lines = map(str.strip, stepping(checkpoint, file))
    for line in lines:
        kind, *rest = _list(json.loads(line))
        if kind == "end":
            break
        _NOTES[_text(kind)](journal, *rest)
    else:
        raise ValueError("it has no end")
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # a line that a power cut has torn says nothing yet
            _note_progress(journal, json.loads(line))
    return journal


def _text(value: object) -> str:
    """What must be a text that a store can have, or else a rollback would fail half-way."""
    if type(value) is not str:
        raise TypeError(f"{value!r} where a text should be")
    if not value.isascii():
        value.encode("utf-8", "surrogateescape")  # raises for surrogates that stand for no byte
    return value


def _list(value: object) -> list[object]:
    if type(value) is not list:
        raise TypeError(f"{value!r} where a list should be")
    return value


def _resource(pair: object) -> Resource:
    kind, name = _list(pair)
    return Resource(_text(kind), _text(name))


def _note_lease(journal: Journal, lease_id: object, before: object) -> None:
    journal.leases[_text(lease_id)] = None if before is None else tuple(map(_resource, _list(before)))


_NOTES: Mapping[str, Callable[..., Any]] = {
    "lease": _note_lease,
    "foreign": lambda journal, lease_id: journal.foreign.add(_text(lease_id)),
    "snapshot": lambda journal, name, label: journal.snapshots.__setitem__(_text(name), _text(label)),
    "blob": lambda journal, name, label: journal.blobs.__setitem__(_text(name), _text(label)),
}


def _note_progress(journal: Journal, line: object) -> None:
    if line == ["complete"]:
        journal.is_complete = True
    if line == ["rolling back"]:
        journal.is_rolling_back = True


def fingerprint(path: str, checkpoint: Checkpoint = no_checkpoint) -> str:
    """What tells whether a daemon has changed the contents of a database; transactions without changes don't count.

    Blocking: reads the whole file.  Raises :class:`DatabaseError`.
    """
    try:
        fd = open_to_read(path)
    except OSError as error:
        raise DatabaseError(path, f"cannot read: {reason(error)}") from error
    try:
        # A process that was killed when it made the file has left it empty; to bbolt that is a database without content.
        return content_digest(PageFile(fd, path), checkpoint) if status(fd, path).st_size else "empty"
    finally:
        close(fd)
