"""``flock`` exactly as bbolt takes it: on the database file itself, shared to read, exclusive to write.

bbolt does not see ``fcntl.lockf`` and ``fcntl`` locks, which are another kind.  A ``flock`` belongs to the open file
description: a second ``open`` in the same process conflicts with the first.
"""

from __future__ import annotations

import fcntl
import os
import time

from asyncmig.errors import DatabaseError, DatabaseLockedError, printable

RETRY_SECONDS = 0.05
"""bbolt's own ``flockRetryTimeout``."""


def lock(fd: int, path: str, *, exclusive: bool, timeout: float = 0.0) -> None:
    """Lock ``fd``, trying for ``timeout`` seconds (0: once).

    Raises :class:`DatabaseLockedError` if another process holds the lock, and :class:`DatabaseError` if the file system has no
    locks.  Sleeps between tries, so never call it with a timeout on an event loop.
    """
    kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, kind)
            return
        except BlockingIOError:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise DatabaseLockedError(path, lock_holder(fd)) from None
        except OSError as error:
            raise DatabaseError(path, f"cannot lock: {error.strerror}") from error
        time.sleep(RETRY_SECONDS)


def lock_holder(fd: int) -> str:
    """The process that holds a ``flock`` on the file: its name and pid, "" if it can't be found out.

    A process in another pid namespace has no pid here, and some file systems show other device numbers in ``/proc/locks``.
    """
    try:
        status = os.fstat(fd)
        file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks", encoding="ascii") as locks:
            # 3: FLOCK  ADVISORY  WRITE 2345 08:01:1234 0 EOF; a process that waits for the lock has "->" after the number.
            fields = [line.split() for line in locks]
        pid = next(entry[4] for entry in fields if entry[1] == "FLOCK" and entry[5] == file and int(entry[4]) > 0)
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return f"{printable(comm.read().strip())} (pid {pid})"
    except (OSError, ValueError, IndexError, StopIteration):
        return ""
