"""The exception tree.

Every error of the package is an :class:`AsyncmigError`.  Its message names the file, record or call, says what is wrong and, if
there is a remedy, names that.
"""

from __future__ import annotations

import errno
import os
import re

__all__ = [
    "AsyncmigError",
    "BucketError",
    "ContainerdError",
    "ContainerdUnavailableError",
    "CorruptDatabaseError",
    "DatabaseError",
    "DatabaseLockedError",
    "DropLimitError",
    "IncompleteMigrationError",
    "IncompleteRollbackError",
    "LayoutError",
    "OptionError",
    "RecordError",
    "ResourceError",
    "StoreError",
    "UncertainCommitError",
    "UntrustedError",
]

StrPath = str | os.PathLike[str]


class AsyncmigError(Exception):
    """Base of everything this package raises on purpose."""


class OptionError(AsyncmigError, ValueError):
    """An argument makes no sense: an option by itself, several together, or a path that can be none.

    ``names`` are the arguments, as a program names them, and ``cause`` is what is wrong with them.  Raised before anything has
    been looked at.
    """

    def __init__(self, names: str | tuple[str, ...], cause: str) -> None:
        self.names = (names,) if isinstance(names, str) else names
        super().__init__(f"{' and '.join(self.names)} {cause}")
        self.cause = cause


class DatabaseError(AsyncmigError):
    """A bolt file could not be opened, read or written.

    ``path`` is the file as the caller named it, ``cause`` is one sentence without the path.
    """

    def __init__(self, path: StrPath, cause: str) -> None:
        super().__init__(f"{printable(os.fspath(path))}: {cause}")
        self.path = os.fspath(path)
        self.cause = cause


class CorruptDatabaseError(DatabaseError):
    """The bytes of a bolt file are not what the format allows.

    ``page`` is ``None`` for the file as a whole, ``detail`` what is wrong with it.  ``mendable`` tells that this page says
    nothing but which others are free, so that the data are whole if nothing else is damaged.
    """

    def __init__(self, path: StrPath, page: int | None, cause: str, *, mendable: bool = False) -> None:
        what = "the database" if page is None else f"page {page}"
        super().__init__(path, f"{what} is corrupt ({cause}); {remedy(path, mendable=mendable)}")
        self.page = page
        self.detail = cause
        self.mendable = mendable


def remedy(path: StrPath, *, mendable: bool) -> str:
    """What to do about a damaged database.  ``mendable`` is as in :class:`CorruptDatabaseError`."""
    name = printable(os.path.basename(os.path.abspath(path)))
    if mendable:
        return (
            f"this is about free pages, not about data: stop the daemon, and 'asyncmig db repair {printable(os.fspath(path))} "
            "NEW' writes a sound copy"
        )
    if _OF_CONTAINERD.fullmatch(os.path.basename(os.path.dirname(os.path.abspath(path)))):
        # Other users of this containerd have their data in it, too.
        return f"restore {name} from a backup, with all of containerd's root directory"
    if name.removesuffix(".rolled-back") in _OF_A_CACHE:
        return f"restore {name} from a backup, or delete the cache"
    return f"restore {name} from a backup"


_OF_A_CACHE = ("metadata.db", "metadata_v2.db", "containerdmeta.db", "snapshots.db", "cache.db")
_OF_CONTAINERD = re.compile(r"io\.containerd\..*")


class DatabaseLockedError(DatabaseError):
    """Another process holds the file's ``flock``: almost always a daemon that is still running.

    ``holder`` is the name and pid of the process, "" if asyncmig could not find them out.
    """

    def __init__(self, path: StrPath, holder: str = "") -> None:
        who = holder or "another process"
        super().__init__(path, f"locked by {who}; stop the daemon that uses it (buildkitd, containerd) and try again")
        self.holder = holder


class UncertainCommitError(DatabaseError):
    """A commit failed so late that nobody knows whether it took effect.  The file is consistent either way."""


class BucketError(AsyncmigError):
    """A bolt call that the data model forbids: a missing bucket, a key that is too long, a value in place of a bucket."""


class LayoutError(AsyncmigError):
    """A directory is not a cache that can be migrated, or it is not clear which cache is meant."""


class UntrustedError(LayoutError):
    """A careful root must not touch a file or directory of a cache: it is a link or a pipe, or belongs to somebody else."""


class RecordError(AsyncmigError):
    """One cache record cannot be migrated.  Raised before anything has been changed.

    ``record`` is the record's id, ``path`` the database that holds it.
    """

    def __init__(self, path: StrPath, record: str, cause: str) -> None:
        super().__init__(f"{printable(os.fspath(path))}: record {printable(record)}: {cause}")
        self.path = os.fspath(path)
        self.record = record
        self.cause = cause


class DropLimitError(AsyncmigError):
    """More records would be dropped than the caller allows.  Raised before anything has been changed."""


class ResourceError(AsyncmigError):
    """The process lacks memory, threads or open files.  Raised before anything has been changed."""


class StoreError(AsyncmigError):
    """A content, snapshot or lease store did not do what was asked of it."""


class ContainerdError(StoreError):
    """A running containerd refused a call, or gave an answer that it must not give.

    ``address`` is its socket, ``call`` what was asked of it, ``cause`` one sentence, with the remedy if there is one.
    """

    def __init__(self, address: str, call: str, cause: str) -> None:
        super().__init__(f"containerd at {printable(address)}: {printable(call)}: {printable(cause)}")
        self.address = address
        self.call = call
        self.cause = cause


class ContainerdUnavailableError(ContainerdError):
    """containerd could not be reached, or did not answer, in the time that we waited for it."""


class IncompleteMigrationError(AsyncmigError):
    """The migration failed after it had begun to change the stores.

    No data is lost: everything without its label has a lease, and ``metadata.db`` is unchanged.  Running the migration again
    completes it.  ``stage`` names the stage that failed.
    """

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(
            f"stage {stage}: {described(cause)}. "
            "The migration is incomplete; no data is lost. Remove the cause and run the migration again"
        )
        self.stage = stage


class IncompleteRollbackError(AsyncmigError):
    """A rollback failed after it had begun to change the stores.

    No data is lost: everything without its lease has its label.  Running the rollback again completes it.  ``stage`` names the
    stage that failed.
    """

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(
            f"stage {stage}: {described(cause)}. "
            "The rollback is incomplete; no data is lost. Remove the cause and run the rollback again"
        )
        self.stage = stage


MORE_MEMORY = "not enough memory; raise the limit (ulimit -v, MemoryMax) or use a machine that has more"
_NO_MEMORY = {
    ImportError: re.compile("failed to map segment|[Cc]annot allocate memory"),
    SystemError: re.compile("without setting an exception|without exception set"),
}
"""What the dynamic linker says when memory runs out, and what Python says if it could not even raise a MemoryError."""


def lack_of_resources(error: BaseException) -> str:
    """What the process lacked, with the remedy, if that lack has caused ``error``; otherwise ""."""
    if isinstance(error, MemoryError):
        return MORE_MEMORY
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(lack_of_resources, error.exceptions)), "")
    text = str(error)
    if any(isinstance(error, kind) and said.search(text) for kind, said in _NO_MEMORY.items()):
        return MORE_MEMORY
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "no more threads can be started; raise the limit (ulimit -u, TasksMax, or ulimit -v, as each takes memory)"
    is_full = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if is_full or (isinstance(error, ImportError) and os.strerror(errno.EMFILE) in text):
        return "too many open files; raise the limit (ulimit -n)"
    return ""


def described(error: BaseException) -> str:
    """The text of any error, or the name of its type if it has no text, as many of Python's own have none."""
    return lack_of_resources(error) or str(error) or type(error).__name__


OTHER_USER = "run asyncmig as root, or as the user whose daemon made the cache"


def reason(error: OSError) -> str:
    """Why a call on a file of a cache has failed, with the remedy where another user has to make it."""
    text = error.strerror or printable(str(error))
    if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return f"{text}; {OTHER_USER}"
    return text


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal could take for a command or that is not a valid character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def counted(count: int, noun: str) -> str:
    """``count`` things: "1 record", "2,000 records"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(*counts: tuple[int, str], none: str = "nothing") -> str:
    """Counts of things in one phrase, without those of which there are none: "2 snapshots, 3 blobs and 1 stale view"."""
    parts = [counted(count, noun) for count, noun in counts if count]
    if not parts:
        return none
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
