"""Calls of the operating system that fail, or do less than they were asked, on the files below a directory."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

_open = open

WRITING = (
    *("pwrite", "pwritev", "write", "copy_file_range", "ftruncate", "fsync", "fdatasync"),
    *("rename", "unlink", "fchmod", "fchown"),
)
READING = ("open", "pread", "read", "stat", "lstat", "scandir")
GROUPS = {"writing": WRITING, "any": WRITING + READING}
"""Operations of a fault that hits several kinds of calls: a disk that is full or read-only, or gone."""

_OF_OS = (
    *(
        "open",
        "pread",
        "write",
        "pwrite",
        "pwritev",
        "ftruncate",
        "fsync",
        "fdatasync",
        "rename",
        "unlink",
        "copy_file_range",
        "close",
    ),
    *("fchmod", "fchown", "stat", "lstat", "fstat", "lseek", "scandir", "statvfs"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """The ``number``-th call of ``operation`` fails with ``code``.

    ``code`` is the name of an errno, or ``short``: then the call does half of what it is asked.  ``stays``: all later calls
    fail, too.  ``late``: the call does its work and says that it has failed, as one does whose answer was lost.
    """

    operation: str
    number: int
    code: str
    stays: bool = False
    late: bool = False

    def __str__(self) -> str:
        return f"{self.operation}:{self.number}:{self.code}" + ":stays" * self.stays + ":late" * self.late


class Calls:
    """Counts the calls, each kind by itself, and makes those fail that ``fault`` means."""

    def __init__(self, directory: Path, fault: Fault | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.failed = 0
        self._directory = str(directory)
        self._fault = fault
        self._readlink = os.readlink

    def _concerns(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether the call is about a file below the directory; event loops and Python itself have files, too."""
        subject = args[1] if name == "copy_file_range" else args[0] if args else None
        if isinstance(subject, int):
            try:
                subject = self._readlink(f"/proc/self/fd/{subject}")
            except OSError:
                return False
        path = os.fspath(subject) if isinstance(subject, str | os.PathLike) else ""
        return isinstance(path, str) and path.startswith(self._directory)

    def _is_hit(self, name: str) -> bool:
        fault = self._fault
        for group in (name, *(group for group, names in GROUPS.items() if name in names)):
            self.counts[group] += 1
        if fault is None or (name != fault.operation and name not in GROUPS.get(fault.operation, ())):
            return False
        count = self.counts[fault.operation]
        return count >= fault.number if fault.stays else count == fault.number

    def watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """``real``, which fails when it is its turn."""

        def call(*args: Any, **kwargs: Any) -> Any:
            # Whether there is such a name is found out before anything is written.
            is_vain = name == "unlink" and os.path.basename(args[0]) not in os.listdir(os.path.dirname(args[0]) or ".")
            if is_vain or not self._concerns(name, args) or not self._is_hit(name):
                return real(*args, **kwargs)
            return self._fail(name, real, args, kwargs)

        return call

    def _fail(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._fault is not None
        self.failed += 1
        if self._fault.code == "short":
            return real(*_shortened(name, args), **kwargs)
        if name == "close" or self._fault.late:
            real(*args, **kwargs)  # Linux closes whatever close() says
        code = getattr(errno, self._fault.code)
        raise OSError(code, os.strerror(code), *(a for a in args[:1] if isinstance(a, str)))

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """``open`` and ``os.fdopen``, whose reads, writes and closing go by the same rules."""
        if not self._concerns("open", (file,)):
            return _open(file, mode, *args, **kwargs)
        if not isinstance(file, int) and self._is_hit("open"):
            self._fail("open", lambda *_: None, (file,), {})
        raw = self._raw(file, mode.replace("b", "").replace("t", ""))
        buffered: Any = io.BufferedReader(raw) if raw.readable() else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=kwargs.get("encoding", "utf-8"))

    def _raw(self, file: Any, mode: str) -> io.RawIOBase:
        watched = self.watched

        class Raw(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                return int(watched("read", lambda _: io.FileIO.readinto(self, buffer))(self.fileno()))

            def readall(self) -> bytes:
                return bytes(watched("read", lambda _: io.FileIO.readall(self))(self.fileno()))

            def write(self, data: Any) -> int:
                return int(watched("write", lambda _, data: io.FileIO.write(self, data))(self.fileno(), data))

        return Raw(file, mode)


def _shortened(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call that does half of what was asked, but at least a byte, as the operating system may."""
    if name == "copy_file_range":
        return (*args[:2], max(1, args[2] // 2), *args[3:])
    data = b"".join(args[1]) if name == "pwritev" else bytes(args[1])
    half = data[: max(1, len(data) // 2)]
    return (args[0], [half] if name == "pwritev" else half, *args[2:])


@contextmanager
def injected(directory: Path, fault: Fault | None = None) -> Iterator[Calls]:
    """Let ``fault`` happen to files below ``directory`` until the end of the block; without one, count the calls only."""
    calls = Calls(directory, fault)
    with ExitStack() as stack:
        for name in _OF_OS:
            stack.enter_context(mock.patch.object(os, name, calls.watched(name, getattr(os, name))))
        stack.enter_context(mock.patch.object(fcntl, "flock", calls.watched("flock", fcntl.flock)))
        stack.enter_context(mock.patch.object(os, "fdopen", calls.open))
        stack.enter_context(mock.patch.object(builtins, "open", calls.open))
        yield calls
