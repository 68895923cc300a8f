"""A disk that can tell what a power cut would have left at any time.

It records every file operation below a directory, and from the recording builds the states that the syncs allow:

* of the 512-byte sectors written to a file since its last sync, any subset, each in any of the versions it had;
* of the lengths that the file had since then, any one;
* of the names made, changed and removed in a directory since its last sync, any subset, in their order; a rename is one thing.
  A sync of a file does not make its name durable.

No file system is as bad as that; each one is so in part.
"""

from __future__ import annotations

import copy
import io
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

SECTOR = 512


@dataclass(eq=False, slots=True)
class Inode:
    """A file, whatever its names; ``content`` and ``mode`` are those of the beginning."""

    content: bytes = b""
    mode: int = 0o600
    number: int = 0


# -- what happened


@dataclass(frozen=True, slots=True)
class Write:
    inode: Inode
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Length:
    inode: Inode
    length: int


@dataclass(frozen=True, slots=True)
class Mode:
    inode: Inode
    mode: int


@dataclass(frozen=True, slots=True)
class Sync:
    inode: Inode


@dataclass(frozen=True, slots=True)
class Name:
    """A name in ``directory`` now means another file, or none; ``moved_from`` is the name that it had before."""

    directory: str
    name: str
    inode: Inode | None
    moved_from: str = ""


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    directory: str


Event = Write | Length | Mode | Sync | Name | SyncDirectory
Names = dict[tuple[str, str], Inode]
State = dict[str, tuple[bytes, int]]
"""Path below the root, content and mode."""


class Recording:
    """What a program did to the files below ``root``, and what was there before."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.names: Names = {}
        self.events: list[Event] = []
        self.numbers = 0
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                inode = self.new_inode(path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
                self.names[self.place(str(path))] = inode

    def new_inode(self, content: bytes = b"", mode: int = 0o600) -> Inode:
        self.numbers += 1
        return Inode(content, mode, self.numbers)

    def place(self, path: str) -> tuple[str, str]:
        directory, name = os.path.split(os.path.relpath(path, self.root))
        return directory, name

    def is_below(self, path: str) -> bool:
        return os.path.abspath(path).startswith(self.root + os.sep)

    def names_now(self) -> Names:
        names = dict(self.names)
        for event in self.events:
            if isinstance(event, Name):
                _rename(names, event)
        return names

    def cuts(self, start: int = 0) -> list[int]:
        """The times at which most is undecided: before each sync behind ``start``, and at the end.

        What a cut between two syncs may leave is among what one before the second of them may leave.
        """
        syncs = [i for i, event in enumerate(self.events) if isinstance(event, Sync | SyncDirectory) and i >= start]
        return [*syncs, len(self.events)]

    def killed(self, point: int) -> Recording:
        """The recording up to an event behind which the process is gone; what it had not synced is as open as before."""
        shortened = copy.copy(self)
        shortened.events = self.events[:point]
        return shortened


def _rename(names: Names, event: Name) -> None:
    if event.moved_from:
        names.pop((event.directory, event.moved_from), None)
    if event.inode is None:
        names.pop((event.directory, event.name), None)
    else:
        names[event.directory, event.name] = event.inode


# -- recording


@contextmanager
def recording(root: Path, earlier: Recording | None = None) -> Iterator[Recording]:
    """Record all that this process does below ``root`` until the end of the block.

    ``earlier``: the recording of another one that was killed; it goes on.  Raises ``AssertionError`` at the end if anything has
    escaped: what was recorded must give what is there.
    """
    record = earlier or Recording(root)
    with ExitStack() as stack:
        for name, function in _Recorder(record).functions().items():
            stack.enter_context(mock.patch.object(os, name, function))
        yield record
    assert replay(record) == contents(root), "the recording is not complete"


class _Recorder:
    """The functions of :mod:`os` that change files, with a recording.  One lock makes the order of threads definite."""

    def __init__(self, record: Recording) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._files: dict[int, Inode] = {}
        self._directories: dict[int, str] = {}

    def functions(self) -> dict[str, Callable[..., Any]]:
        names = (
            "open", "close", "fdopen", "write", "pwrite", "pwritev", "ftruncate", "fsync", "fdatasync", "rename", "unlink",
            "copy_file_range", "fchmod",
        )  # fmt: skip
        self._real = {name: getattr(os, name) for name in names}
        return {name: getattr(self, name) for name in names}

    def _note(self, event: Event) -> None:
        self._record.events.append(event)

    def open(self, path: str, flags: int, mode: int = 0o777, **more: Any) -> int:
        with self._lock:
            known = self._record.names_now() if self._record.is_below(path) else {}
            fd: int = self._real["open"](path, flags, mode, **more)
            if not self._record.is_below(path) and os.path.abspath(path) != self._record.root:
                return fd
            if os.path.isdir(path):
                self._directories[fd] = os.path.relpath(path, self._record.root).removeprefix(".")
                return fd
            place = self._record.place(path)
            if place not in known:
                known[place] = self._record.new_inode(mode=stat.S_IMODE(os.fstat(fd).st_mode))
                self._note(Name(*place, known[place]))
            self._files[fd] = known[place]
            if flags & os.O_TRUNC:
                self._note(Length(known[place], 0))
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._files.pop(fd, None)
            self._directories.pop(fd, None)
            self._real["close"](fd)

    def fdopen(self, fd: int, mode: str = "r", **more: Any) -> Any:
        if "r" in mode or fd not in self._files:
            return self._real["fdopen"](fd, mode, **more)
        raw = _RecordedFile(self, fd, mode)
        return io.TextIOWrapper(io.BufferedWriter(raw), **more)

    def write(self, fd: int, data: Any) -> int:
        with self._lock:
            at = os.fstat(fd).st_size if fd in self._files else 0  # nobody seeks in what is written so
            written: int = self._real["write"](fd, data)
            if fd in self._files:
                self._note(Write(self._files[fd], at, bytes(data)[:written]))
            return written

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._lock:
            written: int = self._real["pwrite"](fd, data, offset)
            if fd in self._files:
                self._note(Write(self._files[fd], offset, bytes(data)[:written]))
            return written

    def pwritev(self, fd: int, buffers: Sequence[Any], offset: int, *more: Any) -> int:
        with self._lock:
            written: int = self._real["pwritev"](fd, buffers, offset, *more)
            if fd in self._files:
                self._note(Write(self._files[fd], offset, b"".join(buffers)[:written]))
            return written

    def copy_file_range(self, source: int, fd: int, count: int, at: int | None = None, to: int | None = None) -> int:
        with self._lock:
            copied: int = self._real["copy_file_range"](source, fd, count, at, to)
            if fd in self._files:
                assert to is not None
                self._note(Write(self._files[fd], to, os.pread(fd, copied, to)))
            return copied

    def ftruncate(self, fd: int, length: int) -> None:
        with self._lock:
            self._real["ftruncate"](fd, length)
            if fd in self._files:
                self._note(Length(self._files[fd], length))

    def fchmod(self, fd: int, mode: int) -> None:
        with self._lock:
            self._real["fchmod"](fd, mode)
            if fd in self._files:
                self._note(Mode(self._files[fd], mode))

    def fsync(self, fd: int) -> None:
        with self._lock:
            if fd in self._files:
                self._note(Sync(self._files[fd]))
            elif fd in self._directories:
                self._note(SyncDirectory(self._directories[fd]))

    fdatasync = fsync

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            names = self._record.names_now()
            self._real["rename"](source, target)
            if self._record.is_below(source):
                (directory, old), (other, new) = self._record.place(source), self._record.place(target)
                assert directory == other, "a rename between directories, which the states know nothing of"
                self._note(Name(directory, new, names[directory, old], moved_from=old))

    def unlink(self, path: str, **more: Any) -> None:
        with self._lock:
            self._real["unlink"](path, **more)
            if self._record.is_below(path):
                self._note(Name(*self._record.place(path), None))


class _RecordedFile(io.FileIO):
    """A file object whose writes are recorded: those of :mod:`io` don't come by :func:`os.write`."""

    def __init__(self, recorder: _Recorder, fd: int, mode: str) -> None:
        super().__init__(fd, mode)
        self._recorder = recorder

    def write(self, data: Any) -> int:
        return self._recorder.write(self.fileno(), data)

    def close(self) -> None:
        if not self.closed:
            self._recorder._files.pop(self.fileno(), None)
        super().close()


def contents(root: Path) -> State:
    """What is below ``root``."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def replay(record: Recording) -> State:
    """What is there when all of it has happened."""
    states = {inode: _Pending(inode, record.events, len(record.events)) for inode in set(record.names_now().values())}
    everything = {inode: pending.complete() for inode, pending in states.items()}
    return {os.path.join(directory, name): everything[inode] for (directory, name), inode in sorted(record.names_now().items())}


# -- what a power cut may leave


class _Pending:
    """What of one file is certain at a cut, and what is not."""

    def __init__(self, inode: Inode, events: Sequence[Event], cut: int) -> None:
        own = [event for event in events[:cut] if not isinstance(event, Name | SyncDirectory) and event.inode is inode]
        synced = max((i for i, event in enumerate(own) if isinstance(event, Sync)), default=-1) + 1
        image = bytearray(inode.content)
        self._mode = inode.mode
        for event in own[:synced]:
            self._apply(image, event)
        self._image = image
        self.lengths = [len(image)]
        self.sectors: dict[int, list[bytes]] = {}
        """Offset, and the versions that the sector had since the last sync, the one on the disk first."""
        latest = bytearray(image)
        for event in own[synced:]:
            self._apply(latest, event)
            if len(latest) not in self.lengths:
                self.lengths.append(len(latest))
            if isinstance(event, Write):
                self._add_versions(latest, event)
        self._latest = bytes(latest)
        self.sectors = {at: versions for at, versions in self.sectors.items() if len(versions) > 1}

    def _apply(self, image: bytearray, event: Event) -> None:
        match event:
            case Write(_, offset, data):
                if offset > len(image):
                    image.extend(bytes(offset - len(image)))
                image[offset : offset + len(data)] = data
            case Length(_, length):
                image.extend(bytes(max(0, length - len(image))))
                del image[length:]
            case Mode(_, mode):
                self._mode = mode  # a wrong mode is no danger, so it counts as durable

    def _add_versions(self, latest: bytearray, event: Write) -> None:
        for at in range(event.offset // SECTOR * SECTOR, event.offset + len(event.data), SECTOR):
            versions = self.sectors.setdefault(at, [bytes(self._image[at : at + SECTOR]).ljust(SECTOR, b"\0")])
            version = bytes(latest[at : at + SECTOR]).ljust(SECTOR, b"\0")
            if version not in versions:
                versions.append(version)

    def complete(self) -> tuple[bytes, int]:
        return self._latest, self._mode

    def choices(self) -> list[int]:
        """How many ways there are for the length, and for each sector."""
        return [len(self.lengths), *(len(versions) for versions in self.sectors.values())]

    def choose(self, choice: Sequence[int]) -> tuple[bytes, int]:
        """The content with one way for each."""
        image = bytearray(self._image)
        for (at, versions), chosen in zip(self.sectors.items(), choice[1:], strict=True):
            if chosen:
                image.extend(bytes(max(0, at + SECTOR - len(image))))
                image[at : at + SECTOR] = versions[chosen]
        length = self.lengths[choice[0]]
        image.extend(bytes(max(0, length - len(image))))
        return bytes(image[:length]), self._mode


@dataclass(slots=True)
class Cut:
    """A power cut at one time of a recording."""

    record: Recording
    at: int
    _files: dict[Inode, _Pending] = field(default_factory=dict)

    def _pending(self, inode: Inode) -> _Pending:
        if inode not in self._files:
            self._files[inode] = _Pending(inode, self.record.events, self.at)
        return self._files[inode]

    def _names(self) -> tuple[Names, list[Name]]:
        """The names that are certain, and the changes to them that are not."""
        events = self.record.events[: self.at]
        certain, open_changes = dict(self.record.names), []
        for i, event in enumerate(events):
            if isinstance(event, Name):
                if any(isinstance(e, SyncDirectory) and e.directory == event.directory for e in events[i:]):
                    _rename(certain, event)
                else:
                    open_changes.append(event)
        return certain, open_changes

    def every_state(self, limit: int) -> Iterator[State] | None:
        """Every state that may be left; ``None`` if there are more than ``limit``.

        Files that have a temporary name in a state are taken as they were and as they should be only: nobody reads them.
        """
        certain, open_changes = self._names()
        found: list[tuple[Names, list[Inode]]] = []
        count = 0
        for chosen in product((False, True), repeat=len(open_changes)):
            names = dict(certain)
            for event in (event for event, happened in zip(open_changes, chosen, strict=True) if happened):
                _rename(names, event)
            inodes = sorted({inode for (_, name), inode in names.items() if not name.endswith(".tmp")}, key=lambda i: i.number)
            found.append((names, inodes))
            ways = 1
            for inode in inodes:
                for n in self._pending(inode).choices():
                    ways *= n
            count += ways
            if count > limit:
                return None
        return self._states(found)

    def _states(self, found: list[tuple[Names, list[Inode]]]) -> Iterator[State]:
        for names, inodes in found:
            rest = {inode: self._pending(inode).complete() for inode in names.values() if inode not in inodes}
            sizes = [self._pending(inode).choices() for inode in inodes]
            for chosen in product(*(range(n) for choices in sizes for n in choices)):
                ways = iter(chosen)
                images = {
                    inode: self._pending(inode).choose([next(ways) for _ in choices])
                    for inode, choices in zip(inodes, sizes, strict=True)
                }
                yield _as_state(names, images | rest)

    def random_state(self, rng: random.Random) -> State:
        """One of the states that may be left."""
        names, open_changes = self._names()
        for event in open_changes:
            if rng.random() < 0.5:
                _rename(names, event)
        images = {}
        for inode in sorted(set(names.values()), key=lambda i: i.number):
            pending = self._pending(inode)
            share = rng.choice([0.0, 0.05, 0.5, 0.95, 1.0])
            choice = [rng.randrange(1, n) if n > 1 and rng.random() < share else 0 for n in pending.choices()]
            images[inode] = pending.choose(choice)
        return _as_state(names, images)


def _as_state(names: Names, images: dict[Inode, tuple[bytes, int]]) -> State:
    return {os.path.join(directory, name): images[inode] for (directory, name), inode in names.items()}


def write_state(state: State, target: Path) -> None:
    """Make ``target`` what the state says, directories aside."""
    for path, (content, mode) in state.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
